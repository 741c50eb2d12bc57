"""Write files whole or not at all, and read JSON; an error names the file."""

import json
import math
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lstm_jax.training.durable import make_directory, sync


def ensure_directory(directory: Path, advice: str = "") -> None:
  """Create a directory and its parents, where they do not exist.

  Raises:
    ValueError: it or a parent is a file; the message ends with the advice.
    OSError: it cannot be created.
  """
  try:
    make_directory(directory)
  except (FileExistsError, NotADirectoryError):
    paths = (directory, *directory.parents)
    file = next(p for p in paths if os.path.lexists(p) and not p.is_dir())
    raise ValueError(f"{file} is not a directory{advice}") from None


def read_json(path: Path) -> Any:
  """Return the JSON value of a file.

  Raises:
    ValueError: it is not JSON in UTF-8.
    OSError: it cannot be read.
  """
  try:
    return json.loads(path.read_bytes())
  except RecursionError:
    raise ValueError(f"{path} is nested too deeply") from None


def write_json(path: Path, record: dict[str, Any]) -> None:
  """Write a record as JSON, whole or not at all.

  Raises:
    ValueError: it holds a number that is not finite.
    OSError: it cannot be written; the error names the file.
  """
  text = json.dumps(record, indent=2, allow_nan=False)
  write_bytes(path, f"{text}\n".encode())


def are_numbers(values: Iterable[Any]) -> bool:
  """Return whether the values of a JSON file are finite numbers."""
  try:
    return all(type(v) in (int, float) and math.isfinite(v) for v in values)
  except OverflowError:  # an integer above the largest float
    return False


def check_numbers(name: str, values: Iterable[Any]) -> None:
  """Raise ValueError that names the first value that is not a finite number."""
  for value in values:
    if not are_numbers([value]):
      raise ValueError(f"{name} must be finite numbers, got {value!r}")


def write_bytes(path: Path, data: bytes) -> None:
  """Write a file, whole or not at all; it survives a power failure.

  A link is followed. A path that is no regular file, such as a named pipe or
  /dev/stdout, is written to and not replaced.

  Raises:
    OSError: it cannot be written; the error names the file.
  """
  with naming(path):
    if path.exists() and not path.is_file():
      path.write_bytes(data)
      return
    path = path.resolve()
    # A name of its own: other processes, perhaps of other machines, may write
    # the same path.
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
      part.write_bytes(data)
      sync(part)
      part.replace(path)
      sync(path.parent)
    finally:
      with suppress(OSError):
        part.unlink()


def remove_parts(directory: Path, names: Iterable[str]) -> None:
  """Remove what a kill has left half-written of these files.

  No other process may be writing them.
  """
  for name in names:
    for part in directory.glob(f"{name}.????????.part"):
      part.unlink(missing_ok=True)


def append(path: Path, text: str) -> None:
  """Append text to a file, and wait until it is on the disk.

  Raises:
    OSError: it cannot be written; the error names the file.
  """
  with naming(path):
    is_new = not path.exists()
    with path.open("a", encoding="utf-8", newline="\n") as file:
      file.write(text)
      file.flush()
      os.fsync(file.fileno())
    if is_new:
      sync(path.parent)


@contextmanager
def naming(path: Path) -> Iterator[None]:
  """Name the file in an OSError, which on a full disk has no file name."""
  try:
    yield
  except OSError as error:
    raise OSError(error.errno, error.strerror, str(path)) from None


def check_output(path: Path) -> None:
  """Raise ValueError if a path is a directory, or lies in none."""
  if not path.parent.is_dir():
    raise ValueError(f"{path} cannot be written: no such directory")
  if path.is_dir():
    raise ValueError(f"{path} cannot be written: it is a directory")
