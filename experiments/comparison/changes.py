"""The changes of an ablation: what each makes of the recipe, and its checks."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from experiments.comparison.ablations import BASE
from experiments.trainer.config import JobConfig, TrainConfig
from experiments.trainer.records import (
  from_name,
  leaves,
  replace,
)
from experiments.trainer.run_dir import JOB_FLAGS
from experiments.trainer.setup import make_setup


def apply_change(config: TrainConfig, change: str) -> TrainConfig:
  """Return the configuration with the values of NAME=VALUE[,NAME=VALUE ...].

  Raises:
    ValueError: a name is not that of a training flag, is one of JOB_FLAGS, or
      is given twice; or a value is not of the flag's kind or out of its range.
  """
  known = {leaf.name: leaf for leaf in leaves(config)}
  values: dict[str, Any] = {}
  for part in change.split(","):
    name, _, text = part.partition("=")
    if name not in known or name in JOB_FLAGS or name in values:
      raise ValueError(
        f"--change must be NAME=VALUE[,NAME=VALUE ...] of training flags, each "
        f"once, got {name!r} in {change!r}"
      )
    kind = known[name].kind
    try:
      if known[name].repeated:  # a change gives one value, or none
        values[name] = (kind(text),) if text else ()
        continue
      value = {"true": True, "false": False}[text] if kind is bool else text
      values[name] = from_name(name, kind(value))
    except (KeyError, ValueError) as error:
      if isinstance(error, ValueError) and kind is str:
        raise  # what `from_name` says
      wanted = "true or false" if kind is bool else f"of kind {kind.__name__}"
      raise ValueError(
        f"--change of {name} must be {wanted}, got {text!r}"
      ) from None
  return replace(config, **values)


def check_changes(configs: Mapping[str, TrainConfig]) -> None:
  """Raise ValueError for a set-up that fails, or a change that changes nothing.

  A change must differ from the recipe and from every other change, and leave
  the data as they are, so that the losses compare.

  Args:
    configs: those of BASE and of each change, by name.
  """
  base, seen = configs[BASE], dict[TrainConfig, str]()
  for change, config in configs.items():
    other = seen.setdefault(_without_job(config), change)
    if other == BASE != change:
      raise ValueError(f"--change={change} is the recipe itself")
    if other != change:
      raise ValueError(f"--change={change} is the same as {other}")
    if config.data != base.data:
      names = ", ".join(leaf.name for leaf in leaves(base.data))
      raise ValueError(
        f"--change must leave {names} as they are, or the losses do not "
        f"compare, got {change!r}"
      )
    make_setup(config)


def _without_job(config: TrainConfig) -> TrainConfig:
  """Return a configuration with the default job flags.

  They do not change what is trained. `share_batches` may give two changes
  different numbers of devices: a resumed run keeps the number on which it
  began, and a batch may not be divisible by the recipe's number.
  """
  return dataclasses.replace(config, job=JobConfig())
