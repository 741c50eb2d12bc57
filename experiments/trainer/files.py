"""Write files that survive a power failure; an error names the file.

When a function returns, what it has written is on the disk. `are_numbers` is
for files that are read again, which may have been damaged.
"""

import json
import os
import sys
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lstm_jax.training.durable import is_special, make_directory, sync


def ensure_directory(directory: Path, advice: str = "") -> None:
  """Create a directory and its parents, where they do not exist.

  Raises:
    ValueError: it or a parent is a file, or a link that leads to no directory;
      the message ends with the advice.
    OSError: it cannot be created.
  """
  try:
    make_directory(directory)
  except OSError:
    for path in (directory, *directory.parents):
      if os.path.lexists(path) and not path.is_dir():
        raise ValueError(f"{path} is not a directory{advice}") from None
    raise


def real_path(path: Path) -> Path:
  """Return an absolute path without links, or with those that form a loop.

  For such a loop, `Path.resolve` raises RuntimeError in Python 3.11.
  """
  return Path(os.path.realpath(path))


def read_file(path: Path) -> bytes:
  """Return the contents of a file of a run, which may be someone else's.

  Raises:
    ValueError: it is a pipe or a device, whose contents may never end.
    OSError: it cannot be read.
  """
  if is_special(path):
    raise ValueError(f"{path} is not a regular file")
  return path.read_bytes()


def read_json(path: Path) -> Any:
  """Return the JSON value of a file of a run.

  Raises:
    ValueError: as `read_file`, or it is not JSON in UTF-8.
    RecursionError: it is nested too deeply.
    OSError: it cannot be read.
  """
  return json.loads(read_file(path).decode())


def write_json(path: Path, record: dict[str, Any]) -> None:
  """Write a record as JSON, atomically.

  Raises:
    ValueError: it holds a number that is not finite, or is nested too deeply.
    OSError: it cannot be written; the error names the file.
  """
  try:
    text = json.dumps(record, indent=2, allow_nan=False)
  except RecursionError:
    raise ValueError(f"{path} would be nested too deeply") from None
  write_bytes(path, f"{text}\n".encode())


def are_numbers(values: Iterable[Any]) -> bool:
  """Return whether the values of a JSON file are numbers, finite as floats."""
  # `math.isfinite` would raise OverflowError for a very large integer.
  largest = sys.float_info.max
  return all(type(v) in (int, float) and abs(v) <= largest for v in values)


def check_numbers(name: str, values: Iterable[Any]) -> None:
  """Raise ValueError that names the first value that is not a finite number."""
  for value in values:
    if not are_numbers([value]):
      raise ValueError(f"{name} must be finite numbers, got {value!r}")


def write_bytes(path: Path, data: bytes) -> None:
  """Write a file, atomically.

  A symbolic link is followed. A path that is not a regular file, such as a
  named pipe or a terminal, is written to and not replaced.

  Raises:
    OSError: it cannot be written; the error names the file.
  """
  if path.exists() and not path.is_file():
    with naming(path):
      path.write_bytes(data)
    return
  path = real_path(path) if path.is_symlink() else path
  # A name of its own, since other processes may write the same path.
  part = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")
  try:
    with naming(path):
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
      part.unlink()


def append(path: Path, text: str) -> None:
  """Append text to a file, durably, and close it.

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


def check_regular(path: Path) -> None:
  """Raise ValueError if a file of a run is a link, which may lead anywhere.

  A run that someone else has made may hold a link to a file of the user. A pipe
  is refused, too: writing to it waits until another program reads.
  """
  if path.is_symlink():
    raise ValueError(f"{path} is a link, and not a file of the run: delete it")
  if is_special(path):
    raise ValueError(f"{path} is not a regular file: delete it")


def check_output(path: Path) -> None:
  """Raise ValueError if a path is a directory, lies in none, or is a loop."""
  if not path.parent.is_dir():
    raise ValueError(f"{path} cannot be written: no such directory")
  if path.is_dir():
    raise ValueError(f"{path} cannot be written: it is a directory")
  if real_path(path).is_symlink():
    raise ValueError(f"{path} cannot be written: it is a loop of links")
