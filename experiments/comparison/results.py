"""The results of a program in a directory: a record as JSON, and its tables."""

import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.trainer.files import (
  ensure_directory,
)
from experiments.trainer.run_dir import CONFIG, lock


def recorded_command(program: str) -> str:
  """Return this process's command line for a record that others will read.

  Unlike that of `cli.command_line`, it never has the path of this machine's
  Python. Paths in its arguments stay as they were given.
  """
  return shlex.join(["python", "-m", f"experiments.{program}", *sys.argv[1:]])


@contextmanager
def open_results(
  directory: Path, names: Sequence[str], overwrite: bool
) -> Iterator[None]:
  """Create the directory of results, and lock it until the end of the block.

  What a kill has left half-written there is removed. New directories are
  removed again if the block has written nothing there.

  Args:
    directory: the directory.
    names: of the files that the program writes there, the record first.
    overwrite: whether results that it holds may be replaced.

  Raises:
    ValueError: the directory holds a run, or a record that may not be replaced,
      or one of the other files without a record; or it is not a directory, or
      another process writes there, or a file is a link, a pipe or a device.
    OSError: the directory cannot be written.
  """
  with _made(directory), lock(directory):
    record, *others = names
    if (directory / record).exists():
      if not overwrite:
        raise ValueError(
          f"{directory} holds results already: --overwrite replaces them, "
          "another --out keeps them"
        )
      if (directory / CONFIG).exists():
        raise ValueError(
          f"{directory} holds {CONFIG}, of a run: choose another --out"
        )
    else:
      for name in (CONFIG, *others):
        if (directory / name).exists():
          raise ValueError(
            f"{directory} holds {name} but no {record}: choose another --out"
          )
    yield


@contextmanager
def _made(directory: Path) -> Iterator[None]:
  """Make a directory and its missing parents; remove the empty ones at the end.

  Those that the block has filled stay, and so does all that was there before.

  Raises:
    ValueError: the path is not that of a directory.
  """
  made = [p for p in (directory, *directory.parents) if not p.exists()]
  ensure_directory(directory)
  try:
    yield
  finally:
    with suppress(OSError):  # a directory is not empty
      for path in made:
        path.rmdir()


@contextmanager
def naming_damaged(path: Path) -> Iterator[None]:
  """Add the record's path to the errors of a block that checks the record.

  Raises:
    ValueError: the record lacks an entry, or an entry is not what it must be.
  """
  try:
    yield
  except KeyError as error:
    raise ValueError(f"{path} is damaged: it lacks {error}") from None
  except (
    IndexError,
    TypeError,
    AttributeError,
    ValueError,
    ArithmeticError,  # an integer above the range of float
  ) as error:
    reason = str(error) if isinstance(error, ValueError) else repr(error)
    raise ValueError(f"{path} is damaged: {reason}") from None


@contextmanager
def naming_missing(path: Path) -> Iterator[None]:
  """Add the record's path to the KeyError of a block that draws the record.

  Only a missing entry is blamed on the record; other errors are raised as they
  are.

  Raises:
    ValueError: the record lacks an entry.
  """
  try:
    yield
  except KeyError as error:
    raise ValueError(f"{path} is damaged: it lacks {error}") from None


def check_length(name: str, values: Sequence[Any], length: int) -> None:
  """Raise ValueError unless an entry of a record has `length` values."""
  if len(values) != length:
    raise ValueError(f"{name} must have {length} values, got {len(values)}")


def read_record(
  path: Path, missing: str, entries: Sequence[str]
) -> dict[str, Any]:
  """Return the record of a program's results.

  Args:
    path: its file.
    missing: how the message begins if there is no such file.
    entries: names of entries that the record must have.

  Raises:
    ValueError: there is no such file, or it is not a JSON object with these
      entries.
    OSError: the file cannot be read.
  """
  if not path.is_file():
    raise ValueError(f"{missing} in {path.parent}: no {path.name}")
  try:
    record = json.loads(path.read_text("utf-8"))
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{path} is damaged: {error}") from None
  found = record if isinstance(record, dict) else {}
  lacking = [entry for entry in entries if entry not in found]
  if lacking:
    raise ValueError(f"{path} is damaged: it has no {', '.join(lacking)}")
  return record


def print_held(directory: Path, names: Sequence[str], console: Console) -> None:
  """Print which of these files a directory holds."""
  held = [name for name in names if (directory / name).exists()]
  console.print(f"\n{directory} holds {', '.join(held)}", soft_wrap=True)


def print_tables(tables: dict[str, str], console: Console) -> None:
  """Print tables, each below its title."""
  for title, table in tables.items():
    console.print(f"\n{title}\n", soft_wrap=True)
    console.print(table, soft_wrap=True)
