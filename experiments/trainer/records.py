"""Configurations as flags, and as the flat records of config.json.

There is a flag for each leaf field of a configuration. A *record* has one JSON
value for each flag.

  >>> from experiments.trainer.config import TrainConfig
  >>> config = replace(TrainConfig(), cell=CELLS["gru"], batch_size=8)
  >>> config.batching.batch_size, to_record(config)["cell"]
  (8, 'gru')
  >>> from_record(TrainConfig(), to_record(config)) == config
  True
"""

import copy
import dataclasses
import operator
import os
import sys
import typing
from collections.abc import Collection, Iterator, Mapping
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

import jax.numpy as jnp
from absl import app, flags

from experiments.trainer.config import CELLS, LARGEST
from experiments.trainer.files import are_numbers
from experiments.trainer.own_cell import import_cell

# Fields whose values are objects; flags and records hold their names. A cell
# that is not in CELLS is named by its module.
NAMED: Mapping[str, Mapping[str, Any]] = {
  "cell": CELLS,
  "compute_dtype": {"float32": None, "bfloat16": jnp.bfloat16},
}
TITLE = "{} flags"  # of a group in --help; absl takes it for a module's name
NOT_FLAGS = ("dtype",)  # of the weights: float64 is for tests

Config = TypeVar("Config")


class Leaf(NamedTuple):
  """A field of a nested configuration that is a flag."""

  name: str
  group: str  # the field that holds its nested configuration; "" for none
  kind: type  # bool, int, float or str: of the value, or of its elements
  repeated: bool  # whether the value is a tuple, a list in a record
  optional: bool  # whether None is a value
  value: Any  # as a record has it
  help: str
  bounds: str | None
  choices: tuple[str, ...] | None


def only(config: Any, *names: str) -> Any:
  """Return a field for a nested configuration of which only `names` are flags.

  The other fields keep the values that they have in `config`.
  """
  return dataclasses.field(default=config, metadata={"flags": names})


def leaves(
  config: Any, names: Collection[str] | None = None, group: str = ""
) -> Iterator[Leaf]:
  """Yield the fields of a configuration that are flags, nested ones too.

  Args:
    config: the configuration.
    names: the fields that may be flags, of those that are not nested; None for
      all. NOT_FLAGS never are. `only` limits a nested configuration.
    group: `Leaf.group` of the fields that are not nested.
  """
  types = typing.get_type_hints(type(config))
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if dataclasses.is_dataclass(value):
      yield from leaves(value, field.metadata.get("flags"), field.name)
    elif field.name not in NOT_FLAGS and (names is None or field.name in names):
      yield _leaf(field, value, types[field.name], group)


def to_record(config: Any) -> dict[str, Any]:
  """Return a configuration as a record, in the order of its fields."""
  return {leaf.name: leaf.value for leaf in leaves(config)}


def from_record(default: Config, record: Mapping[str, Any]) -> Config:
  """Return the configuration of a record.

  Args:
    default: an instance of the configuration's class.
    record: has a value for each flag of the class; other entries are ignored.

  Raises:
    ValueError: a value is missing, or not of its flag's kind or range; or there
      is no object of its name (`from_name`).
  """
  values = {}
  for leaf in leaves(default):
    if leaf.name not in record:
      raise ValueError(f"the configuration lacks {leaf.name}")
    value = record[leaf.name]
    if not _is_valid(value, leaf):
      raise ValueError(
        f"{leaf.name} must be {'a list of ' * leaf.repeated}"
        f"{leaf.kind.__name__}{' or null' * leaf.optional}, got {value!r}"
      )
    value = tuple(value) if leaf.repeated else value
    values[leaf.name] = from_name(leaf.name, value)
  return replace(default, **values)


def from_name(name: str, value: Any) -> Any:
  """Return the object that a record or flag names; other values as they are.

  Raises:
    ValueError: there is no object of that name, or its module is not a cell.
  """
  if name not in NAMED:
    return value
  if value in NAMED[name]:
    return NAMED[name][value]
  names = ", ".join(NAMED[name])
  if name != "cell":
    raise ValueError(f"{name} must be one of {names}, got {value!r}")
  try:
    return import_cell(value)
  except ValueError as error:
    raise ValueError(
      f"cell must be one of {names}, or a module with a cell "
      f"(docs/own-cell.md), got {value!r}: {error}"
    ) from None


def to_name(name: str, value: Any) -> str:
  """Return the name of an object in a record; see `from_name`.

  Raises:
    ValueError: it is a dtype that is not in NAMED, or a cell that is not a
      module.
  """
  same = operator.is_ if name == "cell" else _same_dtype
  for known, found in NAMED[name].items():
    if same(found, value):
      return known
  if name != "cell":
    dtypes = " or ".join(
      str(dtype and jnp.dtype(dtype)) for dtype in NAMED[name].values()
    )
    raise ValueError(f"{name} must be {dtypes}, got {value!r}")
  if isinstance(value, ModuleType):
    return value.__name__
  raise ValueError(f"cell must be a module to have a name, got {value!r}")


def _same_dtype(a: Any, b: Any) -> bool:
  """Return whether two dtypes are equal; None equals itself alone."""
  if a is None or b is None:
    return a is b
  return jnp.dtype(a) == jnp.dtype(b)


def replace(config: Config, **values: Any) -> Config:
  """Return a copy with other values of flags, those of nested configs too.

  Raises:
    TypeError: a name is neither a flag nor a plain field of `config`.
    ValueError: a value is out of its range.
  """
  changes, rest = {}, dict(values)
  for field in dataclasses.fields(config):  # type: ignore[arg-type]
    value = getattr(config, field.name)
    if dataclasses.is_dataclass(value):
      names = {f.name for f in dataclasses.fields(value)} & rest.keys()
      names &= set(field.metadata.get("flags", names)) - {*NOT_FLAGS}  # `only`
      if names:
        inner = {name: rest.pop(name) for name in names}
        changes[field.name] = dataclasses.replace(value, **inner)  # type: ignore[type-var]
    elif field.name in rest:
      changes[field.name] = rest.pop(field.name)
  if rest:
    raise TypeError(f"the configuration has no flag {next(iter(rest))!r}")
  return dataclasses.replace(config, **changes)  # type: ignore[type-var]


def _leaf(
  field: dataclasses.Field, value: Any, annotation: Any, group: str
) -> Leaf:
  choices, text = field.metadata.get("choices"), field.metadata.get("help", "")
  kinds = set(typing.get_args(annotation)) or {annotation}
  optional = type(None) in kinds and field.name not in NAMED
  if field.name in NAMED:
    choices, value = NAMED[field.name], to_name(field.name, value)
  if field.name == "cell":
    text += f" {' | '.join(CELLS)}, or the name of a module of your own."
  if choices:
    kinds = {str}
  repeated = typing.get_origin(annotation) is tuple
  (kind,) = kinds - {type(None), Ellipsis}
  return Leaf(
    name=field.name,
    group=group,
    kind=kind,
    repeated=repeated,
    optional=optional,
    value=list(value) if repeated else value,
    help=text,
    bounds=field.metadata.get("bounds"),
    # A cell may also be a module of the user's own.
    choices=tuple(choices) if choices and field.name != "cell" else None,
  )


def _is_valid(value: Any, leaf: Leaf) -> bool:
  """Return whether a record's value is of the kind of its flag."""
  if leaf.repeated:
    single = leaf._replace(repeated=False)
    return isinstance(value, list) and all(_is_valid(x, single) for x in value)
  if value is None:
    return leaf.optional
  if leaf.kind is float:
    return are_numbers([value])
  return type(value) is leaf.kind


def define_flags(
  default: Any,
  flag_values: flags.FlagValues = flags.FLAGS,
  *,
  group: str = "",
) -> list[flags.FlagHolder]:
  """Define a flag for each leaf field of a configuration, and return the flags.

  A flag has the default of its field. `--help` lists the flags of each nested
  configuration together.

  Args:
    default: the configuration.
    flag_values: where the flags are defined.
    group: the group of the fields that are not nested; "" for the program's
      own flags.
  """
  holders = []
  for leaf in leaves(default, group=group):
    holder = _define(leaf, flag_values)
    if leaf.bounds:  # absl is not told of the upper ones
      flag = flag_values[leaf.name]
      flag.parser = copy.copy(flag.parser)  # flags of equal bounds share it
      bounds = leaf.bounds
      if leaf.kind is int:
        bounds = bounds.replace("inf)", f"{LARGEST}]")
      flag.parser.syntactic_help = f"in {bounds}"
    if leaf.choices:  # absl breaks a long line of help only at spaces
      flag = flag_values[leaf.name]
      joined, spaced = "|".join(leaf.choices), " | ".join(leaf.choices)
      flag.help = flag.help.replace(joined, spaced, 1)
    holders.append(holder)
  return holders


def grouped_help(flag_values: flags.FlagValues = flags.FLAGS) -> str:
  """Return the help of the program's own flags, and of each group's."""
  program, ending = sys.argv[0], TITLE.format("")
  groups = [m for m in flag_values.flags_by_module_dict() if m.endswith(ending)]
  own = flag_values.module_help(program).replace(f"{program}:", "flags:", 1)
  return "\n".join([own, *map(flag_values.module_help, groups)])


class HelpFlag(app.HelpFlag):
  """`--help`: prints what the program does, and all of its flags in groups."""

  def __init__(self):
    super().__init__()
    self.allow_override = True  # replaces absl's --help

  def parse(self, arg):
    """Print the help and exit, if the flag is given."""
    if self._parse(arg):
      usage = sys.modules["__main__"].__doc__ or ""  # `python -OO` has none
      print(f"{usage}{grouped_help()}", flush=True)
      sys.exit(0)


def config_from_flags(
  default: Config, holders: list[flags.FlagHolder]
) -> Config:
  """Return the configuration that the flags' values describe.

  Args:
    default: an instance of the configuration's class, with the values of fields
      that are not flags.
    holders: what `define_flags` has returned for it.

  Raises:
    ValueError: a value is out of its range, or no object has its name
      (`from_name`).
  """
  values = {}
  for holder in holders:
    value = holder.value
    value = tuple(value) if isinstance(value, list) else value
    values[holder.name] = from_name(holder.name, value)
  return replace(default, **values)


def finite(
  flag: flags.FlagHolder, flag_values: flags.FlagValues = flags.FLAGS
) -> flags.FlagHolder:
  """Have a flag refuse NaN and infinity, which absl's bounds let pass."""
  flags.register_validator(
    flag,
    lambda value: value is None or -float("inf") < value < float("inf"),
    "must be a finite number",
    flag_values,
  )
  return flag


def decoded_as_utf8(text: str) -> str:
  """Return a text decoded as UTF-8, even if Python read ASCII (locale C)."""
  try:
    text.encode()
  except UnicodeEncodeError:  # it has surrogates, for bytes that are not ASCII
    return os.fsencode(text).decode(errors="surrogateescape")
  return text


def _define(leaf: Leaf, flag_values: flags.FlagValues) -> flags.FlagHolder:
  name, value, text = leaf.name, leaf.value, leaf.help
  module = TITLE.format(leaf.group) if leaf.group else sys.argv[0]
  options: dict[str, Any] = {"flag_values": flag_values, "module_name": module}
  if leaf.choices:
    define: Any = flags.DEFINE_enum
    define = flags.DEFINE_multi_enum if leaf.repeated else define
    return define(name, value, leaf.choices, text, **options)
  if leaf.kind is bool:
    return flags.DEFINE_boolean(name, value, text, **options)
  if leaf.kind is str:
    define = flags.DEFINE_string
    define = flags.DEFINE_multi_string if leaf.repeated else define
    return define(name, value, text, **options)
  low = float(leaf.bounds[1:].split(",")[0]) if leaf.bounds else None
  low = int(low) if leaf.kind is int and low is not None else low
  if leaf.kind is int:
    define = flags.DEFINE_integer
    define = flags.DEFINE_multi_integer if leaf.repeated else define
    return define(name, value, text, low, LARGEST, **options)
  if leaf.repeated:
    return flags.DEFINE_multi_float(name, value, text, low, **options)
  flag = flags.DEFINE_float(name, value, text, low, **options)
  return finite(flag, flag_values)
