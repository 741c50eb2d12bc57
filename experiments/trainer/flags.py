"""Command-line flags of a configuration: one for each of its leaf fields."""

import copy
import os
import sys
from typing import Any, TypeVar

from absl import app, flags

from experiments.trainer.config import LARGEST
from experiments.trainer.records import Leaf, from_name, leaves, replace

TITLE = "{} flags"  # of a group in --help; absl takes it for a module's name
Config = TypeVar("Config")


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
