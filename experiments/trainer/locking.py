"""Lock a directory of a run or of results, so that one process writes there."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple

from experiments.trainer.files import check_regular, naming

LOCK = "lock"  # the file, in the directory


class _Held(NamedTuple):
  """A directory that this process has locked."""

  directory: Path
  place: int  # a descriptor of the directory that was locked
  file: IO[bytes]  # the lock


_held: list[_Held] = []


@contextmanager
def lock(directory: Path) -> Iterator[None]:
  """Lock an existing directory until the end of the block.

  The kernel releases the lock when the process ends, however it ends: a file
  that a crash leaves behind locks nothing.

  Raises:
    ValueError: it is held already; or its file is a link, a pipe or a device.
    OSError: it cannot be locked, as in a file system without locks.
  """
  path = directory / LOCK
  while True:
    check_regular(path)  # the target of a link would be overwritten
    # Unbuffered: `write` raises the error of a full disk, and not `close`.
    file = path.open("a+b", buffering=0)
    try:
      with naming(path):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      with file:
        if error.errno != errno.EWOULDBLOCK:
          raise
        file.seek(0)
        pid = file.read().decode().strip()
      holder = f"process {pid}" if pid else "another process"
      raise ValueError(f"{directory} is in use by {holder}") from None
    if _is_same(file, path):
      break
    file.close()  # the previous holder has just deleted it
  with file:
    # Open until the end, so that no later directory gets its inode number.
    held = _Held(directory, os.open(directory, os.O_RDONLY), file)
    _held.append(held)
    try:
      with naming(path):
        file.truncate(0)
        file.write(str(os.getpid()).encode())
      yield
    finally:
      _held.remove(held)
      # In this directory, wherever it is: another's lock may be at its path.
      if _is_same(file, LOCK, held.place):
        with suppress(FileNotFoundError):
          os.unlink(LOCK, dir_fd=held.place)
      os.close(held.place)


def check_held() -> None:
  """Raise ValueError if a directory that is locked here is at another path now.

  If it was moved or deleted, as while this process was stopped by Ctrl-Z,
  another process may meanwhile have locked a new directory at its path. What
  this process writes would end up there.
  """
  for directory, place, file in _held:
    path = directory / LOCK
    held = _is_same(file, path)
    if not held and not path.exists() and directory.exists():
      # The file alone may have been deleted.
      held = os.path.samestat(directory.stat(), os.fstat(place))
    if not held:
      raise ValueError(
        f"{directory} was moved, deleted or replaced while this process wrote "
        "there: nothing more is written"
      )


def _is_same(
  file: IO[bytes], path: Path | str, place: int | None = None
) -> bool:
  """Return whether a path is still that of the open file.

  A relative path is taken from the directory of the descriptor `place`.
  """
  try:
    found = os.stat(path, dir_fd=place)
  except (FileNotFoundError, NotADirectoryError):
    return False
  return os.path.samestat(found, os.fstat(file.fileno()))
