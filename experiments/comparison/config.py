"""The configuration of a comparison of cells."""

from dataclasses import dataclass

from experiments.trainer.config import (
  CELLS,
  LARGEST,
  DataConfig,
  JobConfig,
)
from experiments.trainer.records import only
from lstm_jax.language import BatchingConfig, ModelConfig
from lstm_jax.language.options import check_options, option
from lstm_jax.training import OptimizerConfig


@dataclass(frozen=True)
class CompareConfig:
  """The settings of `compare_cells`.

  Each plain field is a flag, and so are those fields of a nested configuration
  that `only(...)` names.
  """

  data: DataConfig = only(DataConfig(), "corpus", "val_fraction")
  # Sizes of the LSTM; the other cells get the nearest number of parameters.
  model: ModelConfig = only(
    ModelConfig(hidden_size=160), "embedding_size", "hidden_size"
  )
  batching: BatchingConfig = only(BatchingConfig(), "batch_size", "seq_len")
  # The optimizer's rate is 1: the updates of each model that is trained are
  # multiplied by the learning rate of that model.
  optimizer: OptimizerConfig = only(
    OptimizerConfig(learning_rate=1.0, weight_decay=0.3), "weight_decay"
  )
  job: JobConfig = only(JobConfig(), "devices")  # which share the models
  cells: tuple[str, ...] = option(
    ("rnn", "gru", "lstm"),
    "Cell to compare. Repeat the flag for several; lstm must be among them, "
    "since the others get its number of parameters and its time.",
    choices=tuple(CELLS),
  )
  num_seeds: int = option(
    3,
    "Number of models of each cell, which differ in their initial weights and "
    "are trained together.",
    bounds="[1, inf)",
  )
  seed: int = option(
    0,
    "Seed of the key that all random numbers are derived from.",
    bounds=f"[0, {LARGEST}]",
  )
  num_steps: int = option(
    1000,
    "Training steps of the LSTM, and of every cell with equal steps.",
    bounds="[1, inf)",
  )
  learning_rate: tuple[float, ...] = option(
    (5e-3, 1e-2, 2e-2),
    "Peak learning rate. Repeat the flag to try several: each cell takes the "
    "one with the lowest loss on the end of the training split. While that is "
    "the largest or the smallest, twice or half of it is tried too, at most 8 "
    "times. A single one is taken without a trial.",
    bounds="(0, inf)",
  )
  trial_steps: int = option(
    300,
    "Training steps with which each learning rate is tried.",
    bounds="[1, inf)",
  )
  equal_time: bool = option(
    True,
    "Also train the other cells for the time that the LSTM's training takes.",
  )
  timing_rounds: int = option(
    11,
    "Training steps of each cell that are timed; the median is used.",
    bounds="[1, inf)",
  )
  context: int = option(
    512,
    "Longest context for which the validation loss is measured, in characters.",
    bounds="[1, inf)",
  )
  gradient_steps: int = option(
    200,
    "Longest distance, in time steps, for which the gradient of a character's "
    "loss with respect to an earlier state is measured.",
    bounds="[1, inf)",
  )
  delay: tuple[int, ...] = option(
    (1, 2, 5, 10, 20, 50, 100, 200, 500),
    "Recall task: blanks between a symbol and the step that names it. Repeat "
    "the flag for several.",
    bounds="[1, inf)",
  )
  recall_hidden_size: int = option(
    32,
    "Hidden units of the LSTM in the recall task; the other cells get the "
    "nearest number of parameters.",
    bounds="[1, inf)",
  )
  recall_steps: int = option(
    300,
    "Training steps for each delay of the recall task; 0 leaves it out.",
    bounds="[0, inf)",
  )
  recall_learning_rate: tuple[float, ...] = option(
    (1e-3, 3e-3, 1e-2, 3e-2),
    "Peak learning rate in the recall task. Repeat the flag to try several: "
    "the best for each cell, kind of initial biases and delay is reported.",
    bounds="(0, inf)",
  )

  def __post_init__(self):
    check_options(self)
    if "lstm" not in self.cells or len({*self.cells}) < len(self.cells):
      raise ValueError(
        f"cells must be distinct and include lstm, got {', '.join(self.cells)}"
      )
    for name in ("learning_rate", "delay", "recall_learning_rate"):
      values = getattr(self, name)
      if len({*values}) < len(values):
        raise ValueError(
          f"{name} must have distinct values, got {', '.join(map(str, values))}"
        )
