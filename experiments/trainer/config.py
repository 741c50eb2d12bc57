"""The configuration of a training run, nested from the library's own configs.

Each leaf field is a command-line flag of the same name, with its help text and
valid range in the field's metadata (`lstm_jax.language.options`).
"""

import math
from dataclasses import dataclass
from typing import Literal

from lstm_jax.cells import (
  RELU,
  Cell,
  coupled_lstm,
  gru,
  gru_reset_before,
  layernorm_lstm,
  lru,
  lstm,
  min_gru,
  min_lstm,
  mogrifier_lstm,
  peephole_lstm,
  projected_lstm,
  rnn,
  slstm,
)
from lstm_jax.language import BatchingConfig, ModelConfig, Regularizers
from lstm_jax.language.options import check_options, option
from lstm_jax.training import OptimizerConfig, check_mesh, parse_mesh

LARGEST = 2**31 - 1  # the largest value of an integer flag and of a seed

CELLS: dict[str, Cell] = {
  "lstm": lstm,
  "layernorm_lstm": layernorm_lstm,
  "projected_lstm": projected_lstm,
  "peephole_lstm": peephole_lstm,
  "coupled_lstm": coupled_lstm,
  "mogrifier_lstm": mogrifier_lstm,
  "slstm": slstm,
  "gru": gru,
  "gru_reset_before": gru_reset_before,
  "rnn": rnn,
  "relu_rnn": rnn.with_activation(RELU),
  "min_gru": min_gru,
  "min_lstm": min_lstm,
  "lru": lru,
}
AUTO = "auto"  # a value of --devices
EARLY_STEPS = 10, 30  # extra evaluations, while the loss falls fastest


@dataclass(frozen=True)
class DataConfig:
  """The corpus, its splits and its tokens."""

  corpus: str = option(
    "data/shakespeare.txt",
    "Text to learn: a UTF-8 file, or tinyshakespeare, which is downloaded "
    "once.",
  )
  val_fraction: float = option(
    0.1,
    "Share of the corpus, at its end, for validation. "
    "With a test split, share and end are those of the text before that split.",
    bounds="(0, 1)",
  )
  test_fraction: float = option(
    0.0,
    "Share of the corpus, at its end, for a test: evaluated once, with the "
    "best weights; 0 for none.",
    bounds="[0, 1)",
  )
  dev_fraction: float = option(
    0.0,
    "Share of the training split, from its middle, that is kept for "
    "development: left out of the training, and evaluated in place of the "
    "validation and the test split, while settings are being chosen. It is "
    "cut between paragraphs or scenes; 0 for none.",
    bounds="[0, 1)",
  )
  tokenizer: Literal["character", "word"] = option(
    "character",
    "What a token is. Punctuation marks and line breaks count as words.",
    choices=("character", "word"),
  )
  min_count: int = option(
    2,
    "Words that occur less often than this in the training split are unknown.",
    bounds="[1, inf)",
  )

  def __post_init__(self):
    check_options(self)


@dataclass(frozen=True)
class AveragingConfig:
  """How the weights are averaged; the average is evaluated and saved."""

  ema_decay: float = option(
    0.0,
    "Decay of an exponential moving average of the weights; 0 for none.",
    bounds="[0, 1)",
  )
  asgd_patience: int = option(
    0,
    "Average the weights (NT-ASGD) from the first evaluation whose loss is "
    "higher than one measured more than this many evaluations before; 0 for "
    "never.",
    bounds="[0, inf)",
  )

  def __post_init__(self):
    check_options(self)
    if self.ema_decay and self.asgd_patience:
      raise ValueError(
        "ema_decay and asgd_patience exclude each other: one must be 0, "
        f"got {self.ema_decay} and {self.asgd_patience}"
      )

  @property
  def enabled(self) -> bool:
    """Whether the weights are averaged at all."""
    return bool(self.ema_decay or self.asgd_patience)


@dataclass(frozen=True)
class DistillationConfig:
  """Other runs whose predictions a run learns from (`distillation`)."""

  teacher: tuple[str, ...] = option(
    (),
    "Run directory of a trained model to learn from: its probabilities on the "
    "training text become a part of the targets (knowledge distillation). "
    "Repeat the flag for the mean of several. Vocabulary, corpus and splits "
    "must be those of this run. train_loss is then the cross-entropy with "
    "these targets.",
  )
  teacher_weight: float = option(
    0.5,
    "Weight of the teachers' probabilities in the targets; the token itself "
    "has 1 minus this weight.",
    bounds="(0, 1]",
  )
  teacher_checkpoint: Literal["best", "last"] = option(
    "best",
    "The teachers' weights: those of their lowest validation loss, or those "
    "after the last training step, which only finished runs have.",
    choices=("best", "last"),
  )

  def __post_init__(self):
    check_options(self)


@dataclass(frozen=True)
class EvaluationConfig:
  """When a run is evaluated, and what it samples then."""

  eval_every: int = option(
    100,
    "Training steps between evaluations, which measure the validation loss, "
    "print a sample and save a checkpoint. Steps 10 and 30 and the last are "
    "evaluated as well.",
    bounds="[1, inf)",
  )
  patience: int = option(
    0,
    "End the run after this many evaluations in a row without a lower "
    "validation loss; 0 to train to the last epoch.",
    bounds="[0, inf)",
  )
  sample_length: int = option(
    200, "Tokens of a sample during training.", bounds="[1, inf)"
  )
  temperature: float = option(
    0.8, "Temperature of the samples; 0 is greedy.", bounds="[0, inf)"
  )

  def __post_init__(self):
    check_options(self)

  def is_due(self, step: int) -> bool:
    """Return whether to evaluate after that training step.

    `loop.fit` also evaluates after the last step, whatever this returns.
    """
    return step in EARLY_STEPS or step % self.eval_every == 0


@dataclass(frozen=True)
class JobConfig:
  """Where and how a run executes; results differ by rounding at most."""

  run: str = option(
    "", "Run directory, without * ? [ or \\; empty for a new one under runs/."
  )
  overwrite: bool = option(False, "Replace the run that --run holds.")
  resume: bool = option(True, "Resume the unfinished run that --run holds.")
  mesh: str = option(
    "",
    "How all devices share the training. data:8 splits the batch over 8; "
    "data:4,model:2 splits the batch over all 8 as well, and stores the "
    "weights in halves. Empty for one device or, on a CPU, for --devices.",
  )
  devices: str = option(
    AUTO,
    "CPU devices that share each batch: a number, or auto for one per core "
    "where that is known to be faster than one device, else 1. In a sweep, a "
    "comparison or a training of policies, the devices share the models and "
    "not the batch; auto is then the largest number that divides the number of "
    "models and is at most the number of cores.",
  )
  quiet: bool = option(False, "Show no progress bar and no samples.")

  @property
  def may_resume(self) -> bool:
    """Whether an unfinished run that --run holds is resumed."""
    return bool(self.run) and self.resume and not self.overwrite

  def __post_init__(self):
    check_options(self)
    if self.devices == AUTO:
      return
    if not self.devices.isdecimal() or int(self.devices) < 1:
      raise ValueError(
        f"devices must be {AUTO} or a number of at least 1, "
        f"got {self.devices!r}"
      )
    if self.mesh and math.prod(parse_mesh(self.mesh).values()) != int(
      self.devices
    ):
      raise ValueError(
        f"devices={self.devices} and mesh={self.mesh!r} must agree: pass one "
        "of them"
      )


@dataclass(frozen=True)
class TrainConfig:
  """The whole configuration of a training run."""

  seed: int = option(
    0,
    "Seed of initial weights, noise, samples, and random offsets and sequence "
    "lengths.",
    bounds=f"[0, {LARGEST}]",
  )
  init_from: str = option(
    "",
    "Run directory whose weights are the initial ones: those that `sample` "
    "would take. Its model must be of the same sizes and vocabulary. Empty for "
    "random weights.",
  )
  data: DataConfig = DataConfig()
  model: ModelConfig = ModelConfig()
  regularizers: Regularizers = Regularizers(output_dropout=0.2, weight_drop=0.2)
  batching: BatchingConfig = BatchingConfig(num_epochs=20)
  optimizer: OptimizerConfig = OptimizerConfig(
    learning_rate=2e-2, weight_decay=0.1
  )
  averaging: AveragingConfig = AveragingConfig()
  distillation: DistillationConfig = DistillationConfig()
  evaluation: EvaluationConfig = EvaluationConfig()
  job: JobConfig = JobConfig()

  def __post_init__(self):
    check_options(self)
    if self.job.mesh:
      sizes = parse_mesh(self.job.mesh)
      batching, hidden_size = self.batching, self.model.hidden_size
      check_mesh(sizes, batching.batch_size, hidden_size)
      try:
        for late_batch_size in batching.batch_sizes[1:]:
          check_mesh(sizes, late_batch_size, hidden_size)
      except ValueError as error:
        # It begins "batch_size must": the call above has raised all others.
        raise ValueError(f"late_{error}") from None
      if self.model.implementation == "mosaic_gpu":
        raise ValueError(
          "implementation='mosaic_gpu' takes no mesh, got "
          f"{self.job.mesh}: XLA does not divide the kernels"
        )
