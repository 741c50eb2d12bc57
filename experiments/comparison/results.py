"""The results of a program in a directory: a record as JSON, and its tables."""

import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.trainer.files import ensure_directory
from experiments.trainer.run_dir import CONFIG, lock


def recorded_command(program: str) -> str:
  """Return this process's command line for a record that others will read.

  Unlike that of `cli.command_line`, it never has the path of this machine's
  Python. Paths in its arguments stay as they were given.
  """
  return shlex.join(["python", "-m", f"experiments.{program}", *sys.argv[1:]])


@contextmanager
def opened(directory: Path) -> Iterator[None]:
  """Create a directory, and lock it until the end of the block.

  New directories are removed again if the block has written nothing there.

  Raises:
    ValueError: it is not a directory, or another process writes there.
    OSError: it cannot be created or locked.
  """
  made = [p for p in (directory, *directory.parents) if not p.exists()]
  ensure_directory(directory)
  try:
    with lock(directory):
      yield
  finally:
    with suppress(OSError):  # a directory is not empty
      for path in made:
        path.rmdir()


@contextmanager
def open_results(
  directory: Path, names: Sequence[str], overwrite: bool
) -> Iterator[None]:
  """Open the directory of a program's results, as `opened`.

  Args:
    directory: the directory.
    names: of the files that the program writes there, the record first.
    overwrite: whether results that it holds may be replaced.

  Raises:
    ValueError: the directory holds a run, or a record that may not be replaced,
      or one of the other files without a record;
      or as in `opened`.
    OSError: the directory cannot be written.
  """
  with opened(directory):
    record, *others = names
    is_there = (directory / record).exists()
    if is_there and not overwrite:
      raise ValueError(
        f"{directory} holds results already: --overwrite replaces them, "
        "another --out keeps them"
      )
    foreign = [CONFIG] if is_there else [CONFIG, *others]
    for name in foreign:
      if (directory / name).exists():
        raise ValueError(
          f"{directory} holds {name}, which is not of these results: choose "
          "another --out"
        )
    yield


@contextmanager
def naming_damaged(path: Path) -> Iterator[None]:
  """Add the record's path to the errors of a block that reads the record.

  Raises:
    ValueError: the record lacks an entry, or an entry is not what it must be.
  """
  try:
    yield
  except KeyError as error:
    raise ValueError(f"{path} is damaged: it lacks {error}") from None
  except (IndexError, TypeError, AttributeError, ValueError) as error:
    raise ValueError(f"{path} is damaged: {error}") from None


@contextmanager
def naming_missing(path: Path) -> Iterator[None]:
  """Add the record's path to the KeyError of a block that draws the record.

  Only a missing entry is blamed on the record.

  Raises:
    ValueError: the record lacks an entry.
  """
  try:
    yield
  except KeyError as error:
    raise ValueError(f"{path} is damaged: it lacks {error}") from None


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
  with naming_damaged(path):
    record = json.loads(path.read_text("utf-8"))
  found = record if isinstance(record, dict) else {}
  lacking = [entry for entry in entries if entry not in found]
  if lacking:
    raise ValueError(f"{path} is damaged: it has no {', '.join(lacking)}")
  return record


def check_length(name: str, values: Sequence[Any], length: int) -> None:
  """Raise ValueError unless an entry of a record has `length` values."""
  if len(values) != length:
    raise ValueError(f"{name} must have {length} values, got {len(values)}")


def print_held(directory: Path, names: Sequence[str], console: Console) -> None:
  """Print which of these files a directory holds."""
  held = [name for name in names if (directory / name).exists()]
  console.print(f"\n{directory} holds {', '.join(held)}", soft_wrap=True)


def print_tables(tables: dict[str, str], console: Console) -> None:
  """Print tables, each below its title."""
  for title, table in tables.items():
    console.print(f"\n{title}\n", soft_wrap=True)
    console.print(table, soft_wrap=True)
