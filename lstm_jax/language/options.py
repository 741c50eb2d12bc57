"""Fields of configuration dataclasses, with their help text and valid range.

A field declared with `option` carries both in its metadata, from which a
program generates a command-line flag. `check_options` refuses values that are
out of range.

>>> import dataclasses
>>> @dataclasses.dataclass(frozen=True)
... class Config:
...   hidden_size: int = option(256, "Hidden units.", bounds="[1, inf)")
...   schedule: str = option("cosine", "Decay.", choices=("cosine", "constant"))
...
...   def __post_init__(self):
...     check_options(self)
>>> Config(hidden_size=0)
Traceback (most recent call last):
  ...
ValueError: hidden_size must be in [1, inf), got 0
>>> dataclasses.fields(Config)[0].metadata["help"]
'Hidden units.'
"""

import dataclasses
import numbers
import typing
from typing import Any

import numpy as np

# Types of fields that are numbers, and what they may hold.
NUMBERS = {float: numbers.Real, int: numbers.Integral, bool: bool | np.bool}


def option(
  default: Any,
  help: str,
  *,
  bounds: str | None = None,
  choices: tuple[str, ...] | None = None,
) -> Any:
  """Return a dataclass field with a help text and a valid range.

  Args:
    default: the field's default value.
    help: what the field means, with its unit, for `--help`.
    bounds: the interval that values must lie in, such as "[1, inf)" or
      "(0, 1]". A round bracket excludes its end, so "inf)" refuses infinity.
      NaN lies in no interval. None for no limits.
    choices: the valid values; None for any value.
  """
  metadata = {"help": help, "bounds": bounds, "choices": choices}
  return dataclasses.field(default=default, metadata=metadata)


def check_options(config: Any) -> None:
  """Check each field of a dataclass against the range that `option` gave it.

  None is valid where the field's type says so, as in `float | None`. Every
  element of a tuple is checked; a tuple may be empty only if its default is
  empty or None. A NumPy number is replaced by a Python number, which neither
  overflows nor fails in JSON.

  Raises:
    ValueError: a value is not of the field's type (a tuple, a number, an
      integer, a bool), is out of its bounds or not one of its choices; or a
      tuple is empty, or has an empty string.
  """
  types = typing.get_type_hints(type(config))
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if value is None and type(None) in typing.get_args(types[field.name]):
      continue
    kinds = types[field.name], *typing.get_args(types[field.name])
    is_tuple = any(typing.get_origin(kind) is tuple for kind in kinds)
    if is_tuple and not isinstance(value, tuple):
      raise ValueError(f"{field.name} must be a tuple, got {value!r}")
    values = value if is_tuple else (value,)
    if not values and field.default:
      raise ValueError(f"{field.name} must have at least one value, got ()")
    kind = next((n for n in NUMBERS if n in _leaves(types[field.name])), None)
    if kind and not all(_is_number(element, kind) for element in values):
      raise ValueError(
        f"{field.name} must be of type {kind.__name__}, got {value!r}"
      )
    if kind and any(isinstance(element, np.generic) for element in values):
      values = tuple(
        e.item() if isinstance(e, np.generic) else e for e in values
      )
      plain = values if is_tuple else values[0]
      object.__setattr__(config, field.name, plain)  # it may be frozen
    if not kind and is_tuple and "" in values:  # as a path, it would be "."
      raise ValueError(f"{field.name} must have no empty value, got {value!r}")
    bounds = field.metadata.get("bounds")
    if bounds and not all(in_bounds(number, bounds) for number in values):
      raise ValueError(f"{field.name} must be in {bounds}, got {value!r}")
    choices = field.metadata.get("choices")
    if choices is None:
      continue
    if not all(element in choices for element in values):
      names = ", ".join(choices)
      raise ValueError(f"{field.name} must be one of {names}, got {value!r}")


def _leaves(kind: Any) -> set[Any]:
  """Return the types that a type such as `tuple[int, ...] | None` names."""
  arguments = typing.get_args(kind)
  return {kind}.union(*map(_leaves, arguments)) if arguments else {kind}


def _is_number(value: Any, kind: type) -> bool:
  """Return whether a field of type `kind` may hold a value."""
  # To Python, True is an int, and so is a time of NumPy.
  others = np.timedelta64 if kind is bool else (bool, np.timedelta64)
  return isinstance(value, NUMBERS[kind]) and not isinstance(value, others)


def in_bounds(value: float, bounds: str) -> bool:
  """Return whether a number lies in an interval such as "[0, 1)"."""
  low, high = (float(end) for end in bounds[1:-1].split(","))
  above = value >= low if bounds[0] == "[" else value > low
  below = value <= high if bounds[-1] == "]" else value < high
  return above and below
