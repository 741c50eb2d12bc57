"""The configuration of a comparison of cells."""

from dataclasses import dataclass

from experiments.trainer.config import DataConfig
from experiments.trainer.records import only
from lstm_jax.language import BatchingConfig, ModelConfig
from lstm_jax.language.options import check_options, option
from lstm_jax.training import OptimizerConfig


@dataclass(frozen=True)
class CompareConfig:
  """What is compared, and how; each leaf field is a flag of `compare_cells`."""

  data: DataConfig = only(DataConfig(), "corpus", "val_fraction")
  # Of the LSTM; the other cells get as many parameters.
  model: ModelConfig = only(
    ModelConfig(hidden_size=160), "embedding_size", "hidden_size"
  )
  batching: BatchingConfig = only(BatchingConfig(), "batch_size", "seq_len")
  # The members of an ensemble scale its steps by their own learning rates.
  optimizer: OptimizerConfig = only(
    OptimizerConfig(learning_rate=1.0, weight_decay=0.3), "weight_decay"
  )
  num_seeds: int = option(
    3, "Seeds of each cell, trained at once.", bounds="[1, inf)"
  )
  seed: int = option(
    0, "Seed from which all seeds are derived.", bounds="[0, inf)"
  )
  num_steps: int = option(
    1000,
    "Training steps of the LSTM, and of every cell at equal parameters.",
    bounds="[1, inf)",
  )
  learning_rate: tuple[float, ...] = option(
    (5e-3, 1e-2, 2e-2),
    "Peak learning rate. Repeat the flag to try several: each cell takes the "
    "one with the lowest loss on the end of the training split.",
    bounds="(0, inf)",
  )
  trial_steps: int = option(
    300, "Training steps with which each rate is tried.", bounds="[1, inf)"
  )
  timing_rounds: int = option(
    11,
    "How often a training step of each cell is timed; the median counts.",
    bounds="[1, inf)",
  )
  context: int = option(
    512,
    "Longest context, in characters, whose validation loss is measured.",
    bounds="[1, inf)",
  )
  gradient_steps: int = option(
    200,
    "Time steps over which the gradient is followed back.",
    bounds="[1, inf)",
  )
  delay: tuple[int, ...] = option(
    (1, 2, 5, 10, 20, 50, 100, 200, 500),
    "Blanks between a symbol and its recall. Repeat the flag for several.",
    bounds="[1, inf)",
  )
  recall_hidden_size: int = option(
    32,
    "Hidden units of the LSTM in the recall task; the other cells get as many "
    "parameters.",
    bounds="[1, inf)",
  )
  recall_steps: int = option(
    300,
    "Training steps for each delay of the recall task.",
    bounds="[1, inf)",
  )
  recall_learning_rate: tuple[float, ...] = option(
    (1e-3, 3e-3),
    "Peak learning rate in the recall task. Repeat the flag to try several: "
    "the best for each cell and delay is reported.",
    bounds="(0, inf)",
  )

  def __post_init__(self):
    check_options(self)
