"""Files that outlive a power failure.

What a program writes is in the system's memory at first. fsync of a file waits
until its contents are on the disk; fsync of a directory waits for the names in
it: of files that were created, renamed or deleted.
"""

import errno
import os
from collections.abc import Iterable
from pathlib import Path

# The last two are one number on Linux, and two on macOS.
NO_FSYNC = errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP


def sync(path: Path) -> None:
  """Wait until a file's contents, or the names in a directory, are on the disk.

  Raises:
    OSError: the path cannot be opened, or the contents or names cannot be
      written; it names the path. It is no error where a file system has no
      fsync of directories, as some network and FUSE file systems.
  """
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  except OSError as error:  # it names no file
    if error.errno not in NO_FSYNC or not path.is_dir():
      raise OSError(error.errno, error.strerror, str(path)) from None
  finally:
    os.close(descriptor)


def sync_tree(directory: Path) -> None:
  """Wait until a directory and everything in it are on the disk.

  Raises:
    OSError: it is not a directory, or something in it cannot be read or
      written.
  """

  def fail(error: OSError) -> None:
    raise error

  for root, _, names in os.walk(directory, topdown=False, onerror=fail):
    for name in names:
      sync(Path(root, name))
    sync(Path(root))


def check_path(directory: Path) -> None:
  """Raise ValueError if checkpoints cannot safely be written to a directory.

  orbax looks for the files that it has just written by a pattern that begins
  with the path: with a wildcard in the path, it may find none, or those of
  another directory. It cannot write to a path with a backslash. See also
  `check_files`.
  """
  path = str(directory.absolute())
  if {*"*?[\\"} & {*path}:
    raise ValueError(
      "a directory of checkpoints must have none of * ? [ \\ in its path, "
      f"got {path}"
    )
  check_files(directory)


def check_files(directory: Path, files: Iterable[Path] = ()) -> None:
  """Raise ValueError if a file of checkpoints is a pipe or a device.

  Reading it might never end. Whatever orbax does in a directory, it first reads
  the metadata of all its checkpoints.

  Args:
    directory: of the checkpoints; it need not exist.
    files: others that are to be read.
  """
  for path in (*files, *directory.glob("*/_CHECKPOINT_METADATA")):
    if is_special(path):
      raise ValueError(f"{path} is not a regular file")


def is_special(path: Path) -> bool:
  """Return whether a path, or what it links to, is a pipe or a device."""
  return path.exists() and not (path.is_file() or path.is_dir())


def make_directory(directory: Path) -> None:
  """Create a directory and its parents, where they do not exist, durably.

  Raises:
    OSError: it cannot be created, or is a file.
  """
  missing = [p for p in (directory, *directory.parents) if not p.exists()]
  directory.mkdir(parents=True, exist_ok=True)
  for path in missing:
    sync(path.parent)
