"""The results of a program in a directory: a record as JSON, and its tables."""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.trainer.files import write_bytes


def recorded_command(program: str) -> str:
  """Return this process's command line for a record that others will read.

  It names no directory of this machine, as `cli.command_line` may.
  """
  return shlex.join(["python", "-m", f"experiments.{program}", *sys.argv[1:]])


def write_record(path: Path, record: dict[str, Any]) -> None:
  """Write a record as JSON, atomically."""
  text = json.dumps(record, indent=1, allow_nan=False)
  write_bytes(path, f"{text}\n".encode())


def read_record(path: Path, missing: str) -> dict[str, Any]:
  """Return the record that `write_record` wrote.

  Raises:
    ValueError: there is no such file; the message begins with `missing`.
  """
  if not path.is_file():
    raise ValueError(f"{missing} in {path.parent}: no {path.name}")
  return json.loads(path.read_text("utf-8"))


def print_tables(tables: dict[str, str], console: Console) -> None:
  """Print tables, each below its title."""
  for title, table in tables.items():
    console.print(f"\n{title}\n", soft_wrap=True)
    console.print(table, soft_wrap=True)
