"""The results of an ablation, in ablations.json, and their table.

A change is a text NAME=VALUE[,NAME=VALUE ...] of training flags, or BASE for
the recipe itself.
"""

import os
from collections.abc import Container, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from experiments.trainer.config import TrainConfig
from experiments.trainer.evaluation import started_at
from experiments.trainer.files import (
  are_numbers,
  read_json,
  write_json,
)
from experiments.trainer.format import format_nats, number_table
from experiments.trainer.records import replace

RECORD = "ablations.json"
BASE = "base"  # the recipe without a change
MAX_BYTES = 255  # of a file's name, on Linux and macOS
# Entries of a row. "cold" is the loss of windows that are read from the zero
# state, and "stateful" that of one pass over the text, in nats per token.
MEASURED = "parameters", "cold", "stateful", "seconds"


class Ablations(NamedTuple):
  """The results so far.

  A row is {"change", the entries of MEASURED, "val_loss", "step",
  "environment"}, or {"change", "diverged": True, "environment"}.
  """

  recipe: Mapping[str, Any]  # the flags of the base
  corpus_sha256: str
  rows: list[dict[str, Any]]  # the base's first; a new one is appended
  # The start of each run that --overwrite replaces, by its directory's name.
  outdated: Mapping[str, str] = {}
  split: str = "val"  # "val" or "dev": the split whose losses are compared
  models: Mapping[str, str] = {}  # `models_sha256` of all runs so far

  def has(self, change: str) -> bool:
    """Return whether there is a row of this change."""
    return any(row["change"] == change for row in self.rows)

  def with_models(self, path: Path, models: Mapping[str, str]) -> "Ablations":
    """Return a copy with the models that a further run reads.

    Raises:
      ValueError: the weights of one have changed since an earlier run read
        them; the message names `path`, that of ablations.json.
    """
    for name, sha256 in models.items():
      if self.models.get(name, sha256) != sha256:
        raise ValueError(
          f"runs of {path} have read other weights of {name}, which have "
          "changed since; choose another --run, or --overwrite"
        )
    return self._replace(models={**self.models, **models})

  def is_outdated(self, directory: Path) -> bool:
    """Return whether a directory still holds a run that is to be replaced.

    It does if its start time is the recorded one. Which time is later does not
    count, because clocks are put back.
    """
    started = start_times([directory]).get(directory.name)
    return started is not None and started == self.outdated.get(directory.name)

  def config_in(self, directory: Path, config: TrainConfig) -> TrainConfig:
    """Return `config` for a directory, where it replaces an outdated run."""
    overwrite = config.job.overwrite or self.is_outdated(directory)
    return replace(config, run=str(directory), overwrite=overwrite)

  def write(self, path: Path) -> None:
    """Write ablations.json, whole or not at all."""
    write_json(path, self._asdict())


def read_ablations(
  path: Path, recipe: Mapping[str, Any], corpus_sha256: str
) -> Ablations:
  """Return the results that a file holds, without rows if there is no file.

  Raises:
    ValueError: the file is damaged, is a link, or is of another recipe or
      corpus.
    OSError: it cannot be read.
  """
  if not path.exists():
    return Ablations(recipe, corpus_sha256, [])
  try:
    record = read_json(path)
    found = Ablations(
      dict(record["recipe"]),
      record["corpus_sha256"],
      record["rows"],
      dict(record["outdated"]),
      record["split"],
      dict(record["models"]),
    )
    _check_rows(found.rows)
    if found.split not in ("val", "dev"):
      raise ValueError(f"split must be val or dev, got {found.split!r}")
  except KeyError as error:
    raise ValueError(
      f"{path} is damaged, or of another version: it lacks {error}"
    ) from None
  except (
    ValueError,
    TypeError,
    AttributeError,
    RecursionError,  # too many nested brackets
  ) as error:
    raise ValueError(f"{path} is damaged: {error!r}") from None
  for name, value in recipe.items():
    if name == "corpus" and found.corpus_sha256 == corpus_sha256:
      continue  # the same text at another path
    if found.recipe.get(name) != value:
      raise ValueError(
        f"{path} is of another recipe: {name} was {found.recipe.get(name)!r} "
        f"and is {value!r}; choose another --run, or --overwrite"
      )
  if found.corpus_sha256 != corpus_sha256:
    raise ValueError(
      f"{path} is of another corpus: {recipe['corpus']} has changed; choose "
      "another --run, or --overwrite"
    )
  return found


def start_times(directories: Iterable[Path]) -> dict[str, str]:
  """Return when the runs in directories started, by the directories' names."""
  found = {}
  for directory in directories:
    with suppress(OSError):  # what cannot be read cannot be trained, either
      if started := started_at(directory):
        found[directory.name] = started
  return found


def check_all_named(
  path: Path,
  recipe: Mapping[str, Any],
  corpus_sha256: str,
  names: Container[str],
) -> None:
  """Raise ValueError if --overwrite would drop results of unnamed changes.

  Results that `read_ablations` refuses, such as those of another recipe or
  corpus, are dropped without an error. A link is refused here, too.

  Args:
    path: ablations.json.
    recipe: the flags of the base.
    corpus_sha256: the hash of the corpus.
    names: the changes that are given, which are all trained again.
  """
  try:
    rows = read_ablations(path, recipe, corpus_sha256).rows
  except ValueError:  # damaged, or rows that cannot stay beside new ones
    return
  others = [row["change"] for row in rows if row["change"] not in names]
  if others:
    raise ValueError(
      f"--overwrite trains all again, and {path} also holds "
      f"{', '.join(others)}: name them with --change, or choose another --run"
    )


def check_kept(path: Path, earlier: Ablations, found: Ablations) -> None:
  """Raise ValueError if another process has begun ablations.json again.

  Args:
    path: ablations.json.
    earlier: what it held.
    found: what it holds now.
  """
  kept = all(found.has(row["change"]) for row in earlier.rows)
  if found.outdated != earlier.outdated or not kept:
    raise ValueError(
      f"{path} was begun again by another process, with --overwrite; when it "
      "has ended, the same command without --overwrite adds what is missing"
    )


def check_directories(directories: Mapping[str, Path]) -> None:
  """Raise ValueError unless each change can have a run directory of its own.

  Two changes share one if they differ only in having / or -.

  Args:
    directories: the run directory of each change.
  """
  changes: dict[Path, str] = {}
  for change, directory in directories.items():
    size = len(os.fsencode(directory.name))
    if size > MAX_BYTES:
      raise ValueError(
        f"--change must have at most {MAX_BYTES} bytes, as it names a "
        f"directory, got {size}: {change}"
      )
    other = changes.setdefault(directory, change)
    if other != change:
      raise ValueError(
        f"--change={change} and {other} would share the directory {directory}"
      )


def make_table(rows: list[dict[str, Any]]) -> Table:
  """Return the rows as a table, each compared with the first, the base."""
  table = number_table(
    "", "parameters", "cold", "stateful", "− base", "seconds"
  )
  base = rows[0]["stateful"]
  for row in rows:
    if row.get("diverged"):
      table.add_row(row["change"], "", "", "diverged", "", "")
      continue
    difference = row["stateful"] - base
    table.add_row(
      row["change"],
      f"{row['parameters']:,}",
      format_nats(row["cold"]),
      format_nats(row["stateful"]),
      "" if row["change"] == BASE else _format_change(difference),
      f"{row['seconds']:.0f}",
    )
  return table


def _format_change(nats: float) -> str:
  return f"{nats:+{'.4f' if abs(nats) < 1e4 else '.3g'}}"


def _check_rows(rows: list[dict[str, Any]]) -> None:
  """Raise an error if rows are damaged, or the first is no result of BASE."""
  if not isinstance(rows, list):
    raise TypeError(f"rows must be a list, got {type(rows).__name__}")
  for row in rows:
    change = row["change"]
    if not isinstance(change, str) or not change:
      raise ValueError(f"a row must name its change, got {change!r}")
    measured = () if row.get("diverged") else MEASURED
    if not are_numbers(row[entry] for entry in measured):
      raise ValueError(f"{change} must have numbers: {', '.join(MEASURED)}")
  if rows and (rows[0]["change"] != BASE or rows[0].get("diverged")):
    raise ValueError("the recipe itself is missing")
