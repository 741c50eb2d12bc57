"""Command-line flags of a configuration: one for each of its leaf fields."""

import sys
from typing import Any, TypeVar

from absl import flags

from experiments.trainer.records import Leaf, from_name, leaves, replace

LARGEST = 2**31 - 1  # value of an integer flag
Config = TypeVar("Config")


def define_flags(
  default: Any,
  flag_values: flags.FlagValues = flags.FLAGS,
  *,
  required: tuple[str, ...] = (),
) -> list[flags.FlagHolder]:
  """Define a flag for each leaf field of a configuration, with its default.

  `--help` of the program that is running lists them. The required ones have no
  default: the program exits with an error if one is missing.
  """
  holders = [
    _define(leaf, flag_values, leaf.name in required)
    for leaf in leaves(default)
  ]
  for holder in holders:
    flag = flag_values[holder.name]
    flag_values.register_key_flag_for_module(sys.argv[0], flag)
  return holders


def config_from_flags(
  default: Config, holders: list[flags.FlagHolder]
) -> Config:
  """Return the configuration that the flags' values describe.

  Raises:
    ValueError: a value is out of its range.
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


def _define(
  leaf: Leaf, flag_values: flags.FlagValues, required: bool
) -> flags.FlagHolder:
  name, text = leaf.name, leaf.help
  value = None if required else leaf.value
  options: dict[str, Any] = {"flag_values": flag_values, "required": required}
  if leaf.choices:
    define: Any = flags.DEFINE_enum
    define = flags.DEFINE_multi_enum if leaf.repeated else define
    return define(name, value, leaf.choices, text, **options)
  if leaf.kind is bool:
    return flags.DEFINE_boolean(name, value, text, **options)
  if leaf.kind is str:
    return flags.DEFINE_string(name, value, text, **options)
  low = float(leaf.bounds[1:].split(",")[0]) if leaf.bounds else None
  low = int(low) if leaf.kind is int and low is not None else low
  if leaf.repeated:
    define = flags.DEFINE_multi_float
    define = flags.DEFINE_multi_integer if leaf.kind is int else define
    return define(name, value, text, low, **options)
  if leaf.kind is int:
    return flags.DEFINE_integer(name, value, text, low, LARGEST, **options)
  flag = flags.DEFINE_float(name, value, text, low, **options)
  return finite(flag, flag_values)
