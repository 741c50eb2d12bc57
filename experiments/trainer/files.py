"""Writing of files; an error names the file."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_json(path: Path, record: dict[str, Any]) -> None:
  """Write a record as JSON, atomically.

  Raises:
    OSError: it cannot be written; the error names the file.
  """
  text = json.dumps(record, indent=2, allow_nan=False)
  write_bytes(path, f"{text}\n".encode())


def write_bytes(path: Path, data: bytes) -> None:
  """Write a file, atomically.

  Raises:
    OSError: it cannot be written; the error names the file.
  """
  part = path.with_name(path.name + ".part")
  with naming(path):
    part.write_bytes(data)
    part.replace(path)


def append(path: Path, text: str) -> None:
  """Append text to a file of the run, and close it.

  Raises:
    OSError: it cannot be written; the error names the file.
  """
  with naming(path), path.open("a", encoding="utf-8", newline="\n") as file:
    file.write(text)


@contextmanager
def naming(path: Path) -> Iterator[None]:
  """Name the file in an OSError, which on a full disk has no file name."""
  try:
    yield
  except OSError as error:
    raise OSError(error.errno, error.strerror, str(path)) from None


def check_parent(path: Path) -> None:
  """Raise ValueError if the directory of a file does not exist."""
  if not path.parent.is_dir():
    raise ValueError(f"{path} cannot be written: no such directory")
