"""An ablation: the changes of a recipe, and the file of their results.

A change is a text NAME=VALUE[,NAME=VALUE ...] of training flags, or BASE for
the recipe itself.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from experiments.comparison.reproduction import parse
from experiments.comparison.results import naming_damaged, read_record
from experiments.trainer.config import JobConfig, TrainConfig
from experiments.trainer.files import write_json
from experiments.trainer.format import format_nats, number_table
from experiments.trainer.records import leaves, replace
from experiments.trainer.run_dir import INIT_FROM, JOB_FLAGS, TEACHERS
from experiments.trainer.setup import make_setup
from experiments.trainer.trained import BEST

RECORD = "ablations.json"
BASE = "base"  # the recipe without a change


def apply_change(config: TrainConfig, change: str) -> TrainConfig:
  """Return the configuration with the values of NAME=VALUE[,NAME=VALUE ...].

  Raises:
    ValueError: a name is not that of a training flag, is one of JOB_FLAGS, or
      is given twice; or a value is out of its range.
    absl.flags.Error: a value is not of the flag's kind.
  """
  repeated = {leaf.name: leaf.repeated for leaf in leaves(config)}
  parts = change.split(",")
  names = [part.partition("=")[0] for part in parts]
  for name, part in zip(names, parts, strict=True):
    if (
      "=" not in part
      or name not in repeated
      or name in JOB_FLAGS
      or names.count(name) > 1
    ):
      raise ValueError(
        f"--change must be NAME=VALUE[,NAME=VALUE ...] of training flags, each "
        f"once, got {name!r} in {change!r}"
      )
  # A repeated flag gets one value, or none.
  empty = {n: () for n in names if repeated[n] and f"{n}=" in parts}
  given = [part for part in parts if part.removesuffix("=") not in empty]
  return replace(parse(config, [f"--{part}" for part in given]), **empty)


def check_changes(configs: Mapping[str, TrainConfig]) -> None:
  """Raise ValueError for a set-up that fails, or a change that is none.

  A change must differ from the recipe and from every other change, and leave
  the data as they are, so that the losses compare.

  Args:
    configs: those of BASE and of each change, by name.
  """
  seen: dict[TrainConfig, str] = {}
  for change, config in configs.items():
    trained = dataclasses.replace(config, job=JobConfig())
    other = seen.setdefault(trained, change)
    if other != change:
      raise ValueError(f"--change={change} is the same as {other}")
    if config.data != configs[BASE].data:
      names = ", ".join(leaf.name for leaf in leaves(config.data))
      raise ValueError(
        f"--change must leave {names} as they are, or the losses do not "
        f"compare, got {change!r}"
      )
    make_setup(config)


class Ablations(NamedTuple):
  """The results so far, and what they must have in common.

  A row is {"change", "parameters", "cold", "stateful", "val_loss", "step",
  "seconds", "environment"}, or {"change", "diverged": True, "environment"}.
  "cold" is the loss of windows that are read from the zero state, "stateful"
  that of one pass over the text, in nats per token.
  """

  recipe: Mapping[str, Any]  # the flags of the base
  corpus_sha256: str
  split: str  # "val" or "dev": the split whose losses are compared
  rows: list[dict[str, Any]]  # the base's first
  models: dict[str, str]  # SHA-256 of the weights that runs have read, by run

  def has(self, change: str) -> bool:
    """Return whether there is a row of this change."""
    return any(row["change"] == change for row in self.rows)

  def add_models(self, record: Mapping[str, Any]) -> None:
    """Add the weights of --init_from and --teacher that a run has read.

    Args:
      record: config.json of the run.

    Raises:
      ValueError: an earlier run has read other weights of the same directory.
    """
    checkpoint = record["teacher_checkpoint"]
    # config.json has no hash of what is not given.
    found = [
      (f"{name} ({checkpoint})", sha256)
      for name, sha256 in zip(
        record["teacher"], record.get(TEACHERS, ()), strict=False
      )
    ]
    if INIT_FROM in record:
      found.append((f"{record['init_from']} ({BEST})", record[INIT_FROM]))
    for name, sha256 in found:
      if self.models.setdefault(name, sha256) != sha256:
        raise ValueError(
          f"earlier runs have read other weights of {name}, which have changed "
          "since; choose another --run, or --overwrite"
        )

  def write(self, path: Path) -> None:
    """Write ablations.json, whole or not at all."""
    write_json(path, self._asdict())


def read_ablations(path: Path, new: Ablations) -> Ablations:
  """Return the results that a file holds, or `new` if there is no file.

  Raises:
    ValueError: the file is damaged, or is of another recipe, corpus or split
      than `new`.
  """
  if not path.exists():
    return new
  record = read_record(path, "there is no ablation")
  with naming_damaged(path):
    found = Ablations(**{name: record[name] for name in Ablations._fields})
    make_table(found.rows)
  moved = {"corpus"} if found.corpus_sha256 == new.corpus_sha256 else set()
  for name, value in new.recipe.items():
    before = found.recipe.get(name)
    if name not in moved and before != value:
      raise ValueError(
        f"{path} is of another recipe: {name} was {before!r} and is {value!r}; "
        "choose another --run, or --overwrite"
      )
  if not moved:
    raise ValueError(
      f"{path} is of another corpus: {new.recipe['corpus']} has changed; "
      "choose another --run, or --overwrite"
    )
  return found


def make_table(rows: list[dict[str, Any]]) -> Table:
  """Return the rows as a table, each compared with the first, the base."""
  table = number_table(
    "", "parameters", "cold", "stateful", "− base", "seconds"
  )
  for row in rows:
    if row.get("diverged"):
      table.add_row(row["change"], "", "", "diverged", "", "")
      continue
    nats = row["stateful"] - rows[0]["stateful"]
    difference = f"{nats:+{'.4f' if abs(nats) < 1e4 else '.3g'}}"
    table.add_row(
      row["change"],
      f"{row['parameters']:,}",
      format_nats(row["cold"]),
      format_nats(row["stateful"]),
      "" if row["change"] == BASE else difference,
      f"{row['seconds']:.0f}",
    )
  return table
