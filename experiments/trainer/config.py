"""A training run's configuration, and what it makes of the library's parts."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax.numpy as jnp

from lstm_jax.cells import (
  coupled_lstm,
  gru,
  layernorm_lstm,
  lstm,
  peephole_lstm,
  projected_lstm,
  rnn,
)
from lstm_jax.language import (
  BatchingConfig,
  CharTokenizer,
  ModelConfig,
  Regularizers,
  Tokenizer,
  WordTokenizer,
  characters,
  words,
)
from lstm_jax.training import OptimizerConfig, check_sizes, parse_mesh
from lstm_jax.training.optimizer import Rule, Schedule

Tokens = Literal["character", "word"]
Nonfinite = Literal["stop", "skip"]
SKIPPED = 10  # gradients in a row that are not finite, and are skipped
COMPUTE_DTYPES = {"float32": None, "bfloat16": jnp.bfloat16}
CELLS = {
  "lstm": lstm,
  "layernorm_lstm": layernorm_lstm,
  "projected_lstm": projected_lstm,
  "peephole_lstm": peephole_lstm,
  "coupled_lstm": coupled_lstm,
  "gru": gru,
  "rnn": rnn,
}
EARLY = 10, 30  # updates after which to look as well: the most happens there


@dataclass(frozen=True)
class TrainConfig:
  """Everything that decides a run; `experiments.train --help` explains each.

  Where 0 means "none" or "the default", it does so here and in the flags.
  """

  corpus: str = "data/shakespeare.txt"
  val_fraction: float = 0.1
  development: float = 0.0
  tokenizer: Tokens = "character"
  min_count: int = 2
  run: str = ""
  overwrite: bool = False
  resume: bool = True
  mesh: str = ""
  quiet: bool = False
  seed: int = 0
  cell: str = "lstm"
  embedding_size: int = 64
  hidden_size: int = 256
  num_layers: int = 1
  tied: bool = False
  init_std: float = 0.0
  readout_std: float = 0.0
  compute_dtype: str = "float32"
  token_dropout: float = 0.0
  layer_dropout: float = 0.0
  output_dropout: float = 0.0
  weight_drop: float = 0.0
  zoneout_h: float = 0.0
  zoneout_c: float = 0.0
  ar_coef: float = 0.0
  tar_coef: float = 0.0
  batch_size: int = 32
  seq_len: int = 64
  num_epochs: int = 20
  random_offsets: bool = False
  short_seq_prob: float = 0.0
  late_batch_size: int = 0
  optimizer: Rule = "adamw"
  learning_rate: float = 5e-3
  schedule: Schedule = "cosine"
  warmup_steps: int = 100
  weight_decay: float = 0.3
  clip_norm: float = 1.0
  clip_value: float = 0.0
  nonfinite: Nonfinite = "stop"
  ema_decay: float = 0.0
  asgd_patience: int = 0
  eval_every: int = 100
  sample_length: int = 200
  temperature: float = 0.8

  def __post_init__(self):
    if self.seed < 0:
      raise ValueError(f"seed must be ≥ 0, got {self.seed}")
    for name in ("eval_every", "sample_length", "min_count"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name} must be ≥ 1, got {getattr(self, name)}")
    if not 0 <= self.temperature < math.inf:
      raise ValueError(f"temperature must be ≥ 0, got {self.temperature}")
    for name in ("ema_decay", "development"):
      if not 0 <= getattr(self, name) < 1:
        raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
    if self.ema_decay and self.asgd_patience:
      raise ValueError(
        "ema_decay and asgd_patience are two averages of the weights: "
        f"one of them must be 0, got {self.ema_decay} and {self.asgd_patience}"
      )
    regularizers(self), reading(self)  # which check their own
    if self.mesh:
      sizes = parse_mesh(self.mesh)
      for streams in (self.batch_size, self.late_batch_size):
        check_sizes(sizes, streams, self.hidden_size)
    if self.compute_dtype not in COMPUTE_DTYPES:
      raise ValueError(
        f"compute_dtype must be in {list(COMPUTE_DTYPES)}, "
        f"got {self.compute_dtype!r}"
      )
    if self.tokenizer not in get_args(Tokens):
      raise ValueError(
        f"tokenizer must be in {list(get_args(Tokens))}, got {self.tokenizer!r}"
      )
    if self.nonfinite not in get_args(Nonfinite):
      raise ValueError(
        f"nonfinite must be in {list(get_args(Nonfinite))}, "
        f"got {self.nonfinite!r}"
      )
    if self.cell not in CELLS:
      raise ValueError(f"cell must be in {list(CELLS)}, got {self.cell!r}")


def make_vocabulary(config: TrainConfig, text: str, training: str) -> Tokenizer:
  """Return the vocabulary of a run.

  Args:
    config: which tokens, and how often a word must occur.
    text: the whole corpus, whose characters are all known.
    training: the part that is trained on, whose words alone are known.

  Raises:
    ValueError: there are not two tokens, beside <unk>, to choose between.
  """
  vocabulary: Tokenizer
  if config.tokenizer == "word":
    vocabulary = words(training, config.min_count)
  else:
    vocabulary = characters(text)
  if vocabulary.size - len(vocabulary.unknown_tokens) < 2:
    raise ValueError(
      f"there is nothing to predict: corpus {config.corpus} has only one "
      f"{vocabulary.unit} to learn, {vocabulary.symbols[0]!r}"
    )
  return vocabulary


def stored_vocabulary(tokens: str, fields: dict[str, Any]) -> Tokenizer:
  """Return the vocabulary whose fields a checkpoint keeps as JSON.

  Raises:
    KeyError, TypeError, ValueError: they are not the fields of one.
  """
  match tokens:
    case "character":
      return CharTokenizer("".join(fields["symbols"]))
    case "word":
      return WordTokenizer(tuple(fields["symbols"]), tuple(fields["rare"]))
  raise ValueError(f"no vocabulary has tokens of {tokens!r}")


def model_config(config: TrainConfig, vocabulary_size: int) -> ModelConfig:
  """Return the model of a run over a vocabulary of that size."""
  return ModelConfig(
    vocabulary_size=vocabulary_size,
    cell=CELLS[config.cell],
    embedding_size=config.embedding_size,
    hidden_size=config.hidden_size,
    num_layers=config.num_layers,
    init_std=config.init_std or None,
    readout_std=config.readout_std or None,
    tied=config.tied,
    compute_dtype=COMPUTE_DTYPES[config.compute_dtype],
  )


def regularizers(config: TrainConfig) -> Regularizers | None:
  """Return what training adds to the loss, or None for nothing."""
  names = [field.name for field in dataclasses.fields(Regularizers)]
  chosen = Regularizers(**{name: getattr(config, name) for name in names})
  return chosen if chosen != Regularizers() else None


def is_evaluation_step(config: TrainConfig, step: int) -> bool:
  """Return whether a run looks at held-out text after that update."""
  return step in EARLY or step % config.eval_every == 0


def reading(config: TrainConfig) -> BatchingConfig:
  """Return how a run reads its training text."""
  names = [field.name for field in dataclasses.fields(BatchingConfig)]
  return BatchingConfig(**{name: getattr(config, name) for name in names})


def optimizer_config(config: TrainConfig) -> OptimizerConfig:
  """Return the optimiser of a run."""
  return OptimizerConfig(
    rule=config.optimizer,
    learning_rate=config.learning_rate,
    schedule=config.schedule,
    warmup_steps=config.warmup_steps,
    weight_decay=config.weight_decay,
    clip_norm=config.clip_norm or None,
    clip_value=config.clip_value or None,
    skipped=SKIPPED if config.nonfinite == "skip" else 0,
  )
