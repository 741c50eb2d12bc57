"""The results of an ablation, in ablations.json."""

import json
from collections.abc import Container, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from experiments.trainer import run_dir
from experiments.trainer.files import are_numbers, write_json

RECORD = "ablations.json"
BASE = "base"  # the recipe without a change
MEASURED = "parameters", "cold", "stateful", "seconds"  # entries of a row


class Ablations(NamedTuple):
  """The results so far.

  A row is {"change", the entries of MEASURED, "environment", ...}, or if the
  change diverged {"change", "diverged": True, "environment"}.
  """

  recipe: Mapping[str, Any]  # the flags of the base
  corpus_sha256: str
  rows: list[dict[str, Any]]  # the base's first
  overwritten: str | None = None  # when all was begun again, in ISO 8601

  def has(self, change: str) -> bool:
    """Return whether there is a row of this change."""
    return any(row["change"] == change for row in self.rows)

  def replaces(self, directory: Path) -> bool:
    """Return whether the run in a directory is older than `overwritten`."""
    record = run_dir.read_config(directory)
    if record is None or self.overwritten is None:
      return False
    started = datetime.fromisoformat(record["started"])
    return started < datetime.fromisoformat(self.overwritten)

  def write(self, path: Path) -> None:
    """Write the file."""
    write_json(path, self._asdict())


def read_ablations(
  path: Path, recipe: Mapping[str, Any], corpus_sha256: str
) -> Ablations:
  """Return the results that a file holds; none if there is no file.

  Raises:
    ValueError: it is damaged, or of another recipe or corpus.
  """
  if not path.exists():
    return Ablations(recipe, corpus_sha256, [])
  try:
    record = json.loads(path.read_text(encoding="utf-8"))
    found = Ablations(
      dict(record["recipe"]),
      record["corpus_sha256"],
      record["rows"],
      record.get("overwritten"),
    )
    _check_rows(found.rows)
    if found.overwritten is not None:
      datetime.fromisoformat(found.overwritten)
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(f"{path} is damaged: {error!r}") from None
  for name, value in recipe.items():
    if found.recipe.get(name) != value:
      raise ValueError(
        f"{path} is of another recipe: {name} was {found.recipe.get(name)!r} "
        f"and is {value!r}; choose another --run"
      )
  if found.corpus_sha256 != corpus_sha256:
    raise ValueError(
      f"{path} is of another corpus: {recipe['corpus']} has changed; choose "
      "another --run, or --overwrite"
    )
  return found


def check_all_named(
  path: Path,
  recipe: Mapping[str, Any],
  corpus_sha256: str,
  names: Container[str],
) -> None:
  """Raise ValueError if --overwrite would drop results of other changes."""
  try:
    rows = read_ablations(path, recipe, corpus_sha256).rows
  except ValueError:  # of nothing that could be kept
    return
  others = [row["change"] for row in rows if row["change"] not in names]
  if others:
    raise ValueError(
      f"--overwrite trains all again, and {path} also holds "
      f"{', '.join(others)}: name them with --change, or choose another --run"
    )


def _check_rows(rows: list[dict[str, Any]]) -> None:
  """Raise an error if a row lacks what is read of it."""
  for row in rows:
    measured = () if row.get("diverged") else MEASURED
    if not are_numbers(row[entry] for entry in measured) or not row["change"]:
      raise ValueError(f"{row['change']} has no numbers")
  if rows and (rows[0]["change"] != BASE or rows[0].get("diverged")):
    raise ValueError("the recipe itself is missing")
