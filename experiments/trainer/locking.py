"""Lock a directory of a run or of results, so that one process writes there."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from experiments.trainer.files import naming

LOCK = "lock"  # the file, in the directory


@contextmanager
def lock(directory: Path) -> Iterator[None]:
  """Lock an existing directory until the end of the block.

  The kernel releases the lock when the process ends, however it ends: a file
  that a crash leaves behind locks nothing.

  Raises:
    ValueError: another process holds it; or its file is a link.
    OSError: it cannot be locked, as in a file system without locks.
  """
  path = directory / LOCK
  while True:
    file = _open(path)
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
  try:
    with naming(path):
      file.truncate(0)
      file.write(str(os.getpid()).encode())
    yield
  finally:
    path.unlink(missing_ok=True)
    file.close()


def _open(path: Path) -> Any:
  """Open the file; do not follow a link, whose target would be overwritten."""
  try:
    # Unbuffered: `write` raises the error of a full disk, and not `close`.
    return open(path, "a+b", buffering=0, opener=_without_links)
  except OSError as error:
    if error.errno != errno.ELOOP:
      raise
  raise ValueError(f"{path} is a link, which would be overwritten: delete it")


def _without_links(path: str, flags: int) -> int:
  return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def _is_same(file, path: Path) -> bool:
  """Return whether a path still refers to the open file."""
  try:
    return os.path.samestat(os.fstat(file.fileno()), path.stat())
  except FileNotFoundError:
    return False
