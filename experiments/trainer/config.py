"""The configuration of a training run, nested from the library's own configs.

Each leaf field is a command-line flag of the same name, with its help text and
valid range in the field's metadata (`lstm_jax.language.options`). A *record* is
a configuration as config.json holds it: one JSON value for each flag.

  >>> config = replace(TrainConfig(), cell=gru, batch_size=8)
  >>> config.batching.batch_size, to_record(config)["cell"]
  (8, 'gru')
  >>> from_record(TrainConfig(), to_record(config)) == config
  True
"""

import dataclasses
import math
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

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
from lstm_jax.language import BatchingConfig, ModelConfig, Regularizers
from lstm_jax.language.options import check_options, option
from lstm_jax.training import OptimizerConfig, check_mesh, parse_mesh

CELLS = {
  "lstm": lstm,
  "layernorm_lstm": layernorm_lstm,
  "projected_lstm": projected_lstm,
  "peephole_lstm": peephole_lstm,
  "coupled_lstm": coupled_lstm,
  "gru": gru,
  "rnn": rnn,
}
# Fields whose values are objects, which flags and records name.
NAMED: Mapping[str, Mapping[str, Any]] = {
  "cell": CELLS,
  "compute_dtype": {"float32": None, "bfloat16": jnp.bfloat16},
}
NOT_FLAGS = ("dtype",)
EARLY_STEPS = 10, 30  # extra evaluations, while the loss falls fastest

Config = TypeVar("Config")


@dataclass(frozen=True)
class DataConfig:
  """The corpus, its splits and its tokens."""

  corpus: str = option("data/shakespeare.txt", "Text to learn: a UTF-8 file.")
  val_fraction: float = option(
    0.1,
    "Share of the corpus, at its end, for validation, whose loss chooses the "
    "best weights; with --test_fraction, share of what the test split leaves.",
    bounds="(0, 1)",
  )
  test_fraction: float = option(
    0.0,
    "Share of the corpus, at its end, for a test: evaluated once, with the "
    "best weights; 0 for none.",
    bounds="[0, 1)",
  )
  tokenizer: Literal["character", "word"] = option(
    "character",
    "What a token is. Punctuation marks and line breaks count as words.",
    choices=("character", "word"),
  )
  min_count: int = option(
    2,
    "Words that occur less often in the training split are unknown.",
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
    "above the lowest of more than this many evaluations earlier; 0 for never.",
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
class EvaluationConfig:
  """When a run is evaluated, and what it samples then."""

  eval_every: int = option(
    100,
    "Training steps between evaluations, which measure the validation loss, "
    "print a sample and save a checkpoint.",
    bounds="[1, inf)",
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
    """Return whether to evaluate after that training step."""
    return step in EARLY_STEPS or step % self.eval_every == 0


@dataclass(frozen=True)
class JobConfig:
  """Where and how a run executes; none of it changes what is computed."""

  run: str = option("", "Run directory; empty for a new one under runs/.")
  overwrite: bool = option(False, "Replace the run that --run holds.")
  resume: bool = option(True, "Resume the unfinished run that --run holds.")
  mesh: str = option(
    "",
    "How all devices share the training: data:8 splits the batch over 8, "
    "data:4,model:2 splits the weights over 2 as well; empty for one device.",
  )
  quiet: bool = option(False, "Show no progress bar and no samples.")


@dataclass(frozen=True)
class TrainConfig:
  """Everything that decides a training run."""

  seed: int = option(
    0, "Seed of initial weights, noise and samples.", bounds="[0, inf)"
  )
  data: DataConfig = DataConfig()
  model: ModelConfig = ModelConfig()
  regularizers: Regularizers = Regularizers()
  batching: BatchingConfig = BatchingConfig(num_epochs=20)
  optimizer: OptimizerConfig = OptimizerConfig(
    learning_rate=5e-3, weight_decay=0.3
  )
  averaging: AveragingConfig = AveragingConfig()
  evaluation: EvaluationConfig = EvaluationConfig()
  job: JobConfig = JobConfig()

  def __post_init__(self):
    check_options(self)
    if self.job.mesh:
      sizes = parse_mesh(self.job.mesh)
      batching = self.batching
      for batch_size in (batching.batch_size, batching.late_batch_size):
        check_mesh(sizes, batch_size, self.model.hidden_size)


class Leaf(NamedTuple):
  """A field of a nested configuration that is a flag."""

  name: str
  section: str  # the name of the nested configuration; "" for the outermost
  kind: type  # bool, int, float or str: of the value, or of its elements
  repeated: bool  # whether the value is a tuple, a list in a record
  optional: bool  # whether None is a value
  value: Any  # as a record has it
  help: str
  bounds: str | None
  choices: tuple[str, ...] | None


def leaves(config: Any, section: str = "") -> Iterator[Leaf]:
  """Yield the fields of a configuration that are flags, nested ones too."""
  types = typing.get_type_hints(type(config))
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if dataclasses.is_dataclass(value):
      yield from leaves(value, field.name)
    elif field.name not in NOT_FLAGS:
      yield _leaf(field, value, types[field.name], section)


def to_record(config: Any) -> dict[str, Any]:
  """Return a configuration as a record, in the order of its fields."""
  return {leaf.name: leaf.value for leaf in leaves(config)}


def from_record(default: Config, record: Mapping[str, Any]) -> Config:
  """Return the configuration of a record.

  Args:
    default: an instance of the configuration's class.
    record: has a value for each of its flags; other entries are ignored.

  Raises:
    ValueError: a value is missing, or not of its flag's kind or range.
  """
  values = {}
  for leaf in leaves(default):
    if leaf.name not in record:
      raise ValueError(f"the configuration lacks {leaf.name}")
    value = record[leaf.name]
    if not _is_valid(value, leaf):
      raise ValueError(
        f"{leaf.name} must be {'a list of ' * leaf.repeated}"
        f"{leaf.kind.__name__}, got {value!r}"
      )
    value = tuple(value) if leaf.repeated else value
    values[leaf.name] = from_name(leaf.name, value)
  return replace(default, **values)


def from_name(name: str, value: Any) -> Any:
  """Return the object that a record or flag names; other values as they are.

  Raises:
    ValueError: there is no object of that name.
  """
  if name not in NAMED:
    return value
  if value not in NAMED[name]:
    names = ", ".join(NAMED[name])
    raise ValueError(f"{name} must be one of {names}, got {value!r}")
  return NAMED[name][value]


def replace(config: Config, **values: Any) -> Config:
  """Return a copy with other values of flags, those of nested configs too.

  Raises:
    TypeError: a name is not a flag.
    ValueError: a value is out of its range.
  """
  changes, rest = {}, dict(values)
  for field in dataclasses.fields(config):  # type: ignore[arg-type]
    value = getattr(config, field.name)
    if dataclasses.is_dataclass(value):
      nested = {f.name for f in dataclasses.fields(value)} & rest.keys()
      if nested:
        inner = {name: rest.pop(name) for name in nested}
        changes[field.name] = dataclasses.replace(value, **inner)  # type: ignore[type-var]
    elif field.name in rest:
      changes[field.name] = rest.pop(field.name)
  if rest:
    raise TypeError(f"the configuration has no flag {next(iter(rest))!r}")
  return dataclasses.replace(config, **changes)  # type: ignore[type-var]


def _leaf(
  field: dataclasses.Field, value: Any, annotation: Any, section: str
) -> Leaf:
  choices = field.metadata.get("choices")
  kinds = set(typing.get_args(annotation)) or {annotation}
  optional = type(None) in kinds
  if field.name in NAMED:
    objects = NAMED[field.name]
    value = next(name for name, found in objects.items() if found is value)
    choices = objects
  if choices:
    kinds = {str}
  repeated = typing.get_origin(annotation) is tuple
  (kind,) = kinds - {type(None), Ellipsis}
  return Leaf(
    name=field.name,
    section=section,
    kind=kind,
    repeated=repeated,
    optional=optional,
    value=list(value) if repeated else value,
    help=field.metadata.get("help", ""),
    bounds=field.metadata.get("bounds"),
    choices=tuple(choices) if choices else None,
  )


def _is_valid(value: Any, leaf: Leaf) -> bool:
  """Return whether a record's value is of the kind of its flag."""
  if leaf.repeated:
    single = leaf._replace(repeated=False)
    return isinstance(value, list) and all(_is_valid(x, single) for x in value)
  if value is None:
    return leaf.optional
  if leaf.kind is float and type(value) in (int, float):
    return abs(value) < math.inf  # and not NaN
  return type(value) is leaf.kind
