"""Lock a directory of a run or of results, so that one process writes there."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from experiments.trainer.files import check_regular, naming

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
    check_regular(path)  # whose target would be overwritten
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
  try:
    with naming(path):
      file.truncate(0)
      file.write(str(os.getpid()).encode())
    yield
  finally:
    path.unlink(missing_ok=True)
    file.close()


def _is_same(file, path: Path) -> bool:
  """Return whether a path still refers to the open file."""
  try:
    return os.path.samestat(os.fstat(file.fileno()), path.stat())
  except FileNotFoundError:
    return False
