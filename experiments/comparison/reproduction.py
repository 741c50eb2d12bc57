"""The results of a reproduction, in reproduction.json."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.comparison.board import Row
from experiments.comparison.plan import (
  Job,
  ensemble_results,
  single_run_results,
)
from experiments.comparison.published import UNIT
from experiments.trainer.files import are_numbers, read_json, write_json

RECORD = "reproduction.json"


def read_done(path: Path, row: Row) -> dict[int, dict[str, Any]]:
  """Return the entries of reproduction.json by seed, if it is of this row.

  A seed without an entry, or with a damaged one, is evaluated again.
  """
  try:
    seeds = _read_record(path, row)["seeds"]
    entries = {int(seed): entry for seed, entry in seeds.items()}
    return {s: entry for s, entry in entries.items() if _is_whole(entry, row)}
  except (ValueError, KeyError, AttributeError):
    return {}


def read_together(
  path: Path, row: Row, jobs: Sequence[Job]
) -> dict[str, float]:
  """Return reproduction.json's losses of the seeds' ensemble, by protocol.

  They are of the runs beside the file: `experiments.reproduce` deletes these
  losses before it trains one of the runs again. Return {} if a protocol of the
  ensembles is missing.
  """
  results = ensemble_results(row, jobs)
  names = [result.evaluated_by for result in results]
  losses = _read_record(path, row).get("together")
  if isinstance(losses, dict) and are_numbers(map(losses.get, names)):
    return losses
  return {}


def write_reproduction(
  path: Path,
  row: Row,
  done: dict[int, dict[str, Any]],
  together: dict[str, float],
  rows: list[dict[str, Any]],
) -> None:
  """Write reproduction.json, whole or not at all.

  Args:
    path: reproduction.json.
    row: the row of the board.
    done: the entry of each seed.
    together: the losses of the seeds' ensemble, by protocol; {} for none.
    rows: of the printed table.
  """
  seeds = {str(seed): done[seed] for seed in sorted(done)}
  found = {"seeds": seeds, "together": together, "results": rows}
  write_json(path, _head(row) | found)


def _read_record(path: Path, row: Row) -> dict[str, Any]:
  """Return reproduction.json, or {} if it is damaged, or not of this row."""
  try:
    record = read_json(path)
    if _head(row).items() <= record.items():
      return record
  except (OSError, ValueError, AttributeError, RecursionError):
    pass
  return {}


def _is_whole(entry: Any, row: Row) -> bool:
  """Return whether an entry has all numbers that this program reads."""
  try:
    losses = [
      entry[UNIT][result.protocol] for result in single_run_results(row)
    ]
    return are_numbers([entry["seconds"], *losses])
  except (KeyError, TypeError):
    return False


def _head(row: Row) -> dict[str, Any]:
  """Return the entries that identify a reproduction of this row."""
  protocols = [result.protocol for result in single_run_results(row)]
  return {
    "name": row.name,
    "flags": [*row.flags],
    "evaluate": [*row.evaluate],
    "protocols": protocols,
  }
