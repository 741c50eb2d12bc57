"""The results of an evaluation: its table, and its file in a run directory.

An evaluation measures the loss by one or more protocols, such as "stateful" or
"dynamic": `experiments.evaluate` describes them.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from experiments.trainer.files import read_json, write_json
from experiments.trainer.format import format_nats, number_table, perplexity
from experiments.trainer.run_dir import read_config

# Entries that must be equal for results to share a file (but see `_same`).
SAME = (
  *("corpus_sha256", "begin", "end", "device"),
  *("runs", "step", "val_loss"),  # of the members
)
# Entries that are dicts {protocol: number or null}; perplexity is per token.
FIGURES = (
  "nats",
  "nats_per_character",
  "bits_per_character",
  "perplexity",
  "spelling",
)


class Row(NamedTuple):
  """The result of one protocol, a row of the table."""

  title: str
  nats: float  # per token
  nats_per_character: float
  spelling: float  # nats that spelling all unknown words costs, in total

  @property
  def bits_per_character(self) -> float:
    """The loss per character in bits."""
    return self.nats_per_character / math.log(2)

  @property
  def figures(self) -> dict[str, float | None]:
    """The value of each of FIGURES; a perplexity that overflows is None."""
    per_token = perplexity(self.nats)
    return {
      "nats": self.nats,
      "nats_per_character": self.nats_per_character,
      "bits_per_character": self.bits_per_character,
      "perplexity": per_token if math.isfinite(per_token) else None,
      "spelling": self.spelling,
    }


def make_table(unit: str, rows: list[Row]) -> Table:
  """Return the results of protocols as a table."""
  units = dict.fromkeys((unit, "character"))  # one, if they are equal
  nats = (f"nats/{u[:4]}" for u in units)
  table = number_table("protocol", *nats, "bits/char", "perplexity")
  for row in rows:
    losses = {unit: row.nats, "character": row.nats_per_character}
    table.add_row(
      row.title,
      *(format_nats(losses[u]) for u in units),
      format_nats(row.bits_per_character),
      f"{perplexity(row.nats):.3f}",
    )
  return table


def started_at(directory: Path) -> str | None:
  """Return when the run in a directory started; None if there is no run."""
  record = read_config(directory) or {}
  return str(record["started"]) if "started" in record else None


def save(
  path: Path, record: dict[str, Any], started: Mapping[Path, str | None]
) -> None:
  """Write a record and the file's results of other protocols, atomically.

  Args:
    path: the file.
    record: the record.
    started: `started_at` of the directory of each run that was evaluated, from
      before the evaluation.

  Raises:
    ValueError: a run was moved, deleted or replaced since, as by --overwrite.
    OSError: the file cannot be written; the error names it.
  """
  for directory, before in started.items():
    if started_at(directory) != before:
      raise ValueError(
        f"{directory} was moved, deleted or replaced since the evaluation "
        "began: nothing is saved"
      )
  write_json(path, merge_earlier(path, record))


def _same(record: dict[str, Any]) -> tuple[str, ...]:
  """Return those entries of SAME that must be equal to share a file.

  Validation losses identify the weights, also where runs have been moved. If a
  member has no loss, as a checkpoint between evaluations, the paths of the runs
  must be equal too.
  """
  known = None not in record["val_loss"]
  return tuple(name for name in SAME if not (known and name == "runs"))


def merge_earlier(path: Path, record: dict[str, Any]) -> dict[str, Any]:
  """Return the record, with the file's results of other protocols added.

  The file is ignored if its results are of another text or part, other weights
  or another device, or are no record that can be written again.
  """
  try:
    earlier = read_json(path)
    if any(earlier[name] != record[name] for name in _same(record)):
      return record
    merged = earlier | record
    for name in FIGURES:
      merged[name] = earlier[name] | record[name]
    json.dumps(merged, allow_nan=False)
  except (OSError, ValueError, KeyError, TypeError, RecursionError):
    # There is no file, or no earlier record in it, or it holds a NaN.
    return record
  return merged
