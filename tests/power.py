"""A simulated disk: a power failure leaves only what `fsync` has written."""

import os
import weakref
from pathlib import Path


class Disk:
  """What each file and directory held at its last `fsync`, by inode.

  For a file, that is its contents; for a directory, the names in it. A name is
  lost if what it names had no `fsync`; a real disk may keep an empty file. All
  of them are kept open: most file systems, though not that of /dev/shm, give
  the inode of a file that is gone to the next one.
  """

  def __init__(self, monkeypatch):
    self._files, self._names = {}, {}
    self._fsync, kept_open = os.fsync, []
    self._kept_open = kept_open
    weakref.finalize(self, lambda: [*map(os.close, kept_open)])
    monkeypatch.setattr(os, "fsync", self._record)

  def _record(self, descriptor):
    path, inode = f"/proc/self/fd/{descriptor}", os.fstat(descriptor).st_ino
    if inode not in self._names and inode not in self._files:
      self._kept_open.append(os.dup(descriptor))
    if os.path.isdir(path):
      with os.scandir(path) as entries:
        self._names[inode] = {entry.name: entry.inode() for entry in entries}
    else:
      self._files[inode] = Path(path).read_bytes()
    self._fsync(descriptor)

  def contents(self, path):
    """Return a file's contents at its last `fsync`; None without one."""
    return self._files.get(path.stat().st_ino)

  def after_failure(self, directory, target):
    """Create `target` as what a power failure leaves of a directory."""
    self._restore(directory.stat().st_ino, target)

  def _restore(self, inode, target):
    if inode in self._names:
      target.mkdir()
      for name, each in self._names[inode].items():
        self._restore(each, target / name)
    elif inode in self._files:
      target.write_bytes(self._files[inode])


def tree(directory):
  """Return the contents of every file in a directory, by its path there."""
  return {
    str(path.relative_to(directory)): path.read_bytes()
    for path in directory.rglob("*")
    if path.is_file()
  }
