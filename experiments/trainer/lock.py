"""One process a folder: a lock that ends with the process that holds it."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = "lock"


@contextmanager
def locked(directory: Path) -> Iterator[None]:
  """Hold the folder, which must exist, until the end of the block.

  The kernel gives the lock back when the process ends, however it ends: a file
  that a crash leaves behind locks nothing.

  Raises:
    ValueError: another process holds it.
  """
  path = directory / LOCK
  while True:
    file = path.open("a+", encoding="utf-8")
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      file.seek(0)
      holder = file.read().strip() or "another one"
      file.close()
      raise ValueError(f"{directory} is in use by process {holder}") from None
    if _is(file, path):
      break
    file.close()  # its holder has just removed it
  try:
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    yield
  finally:
    path.unlink(missing_ok=True)
    file.close()


def _is(file, path: Path) -> bool:
  try:
    return os.path.samestat(os.fstat(file.fileno()), path.stat())
  except FileNotFoundError:
    return False
