"""The results of a program in a directory: a record as JSON, and its tables."""

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console


def recorded_command(program: str) -> str:
  """Return this process's command line for a record that others will read.

  It names no directory of this machine, as `cli.command_line` may.
  """
  return shlex.join(["python", "-m", f"experiments.{program}", *sys.argv[1:]])


def check_unused(path: Path, overwrite: bool) -> None:
  """Raise ValueError if there are results that may not be replaced."""
  if path.exists() and not overwrite:
    raise ValueError(
      f"{path.parent} holds results already: --overwrite replaces them, "
      "another --out keeps them"
    )


def read_record(
  path: Path, missing: str, entries: Sequence[str]
) -> dict[str, Any]:
  """Return the record of a program's results.

  Args:
    path: its file.
    missing: how the message begins if there is no such file.
    entries: what the record holds.

  Raises:
    ValueError: there is no such file, or it is not such a record.
  """
  if not path.is_file():
    raise ValueError(f"{missing} in {path.parent}: no {path.name}")
  try:
    record = json.loads(path.read_text("utf-8"))
  except ValueError as error:
    raise ValueError(f"{path} is damaged: {error}") from None
  found = record if isinstance(record, dict) else {}
  lacking = [entry for entry in entries if entry not in found]
  if lacking:
    raise ValueError(f"{path} is damaged: it has no {', '.join(lacking)}")
  return record


def print_tables(tables: dict[str, str], console: Console) -> None:
  """Print tables, each below its title."""
  for title, table in tables.items():
    console.print(f"\n{title}\n", soft_wrap=True)
    console.print(table, soft_wrap=True)
