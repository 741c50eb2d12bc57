"""The lock of a directory: held by another process, refused, or left behind."""

import errno
import fcntl
import os

import pytest

from experiments.trainer.locking import LOCK, check_held, lock
from tests.patterns import exact


def test_a_lock_that_the_file_system_refuses_names_its_file(
  tmp_path, monkeypatch
):
  def refuse(*_):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

  monkeypatch.setattr(fcntl, "flock", refuse)
  with pytest.raises(OSError, match="No locks") as raised, lock(tmp_path):
    pass
  assert raised.value.filename == str(tmp_path / LOCK)


def test_a_lock_without_room_on_the_disk_names_its_file(tmp_path, no_room):
  with (
    no_room(),
    pytest.raises(OSError, match="File too large") as raised,
    lock(tmp_path),
  ):
    pass
  assert raised.value.filename == str(tmp_path / LOCK)
  assert not (tmp_path / LOCK).exists()


def test_a_directory_that_is_locked_names_the_process(tmp_path):
  message = f"^{exact(tmp_path)} is in use by process {os.getpid()}$"
  with (
    lock(tmp_path),
    pytest.raises(ValueError, match=message),
    lock(tmp_path),
  ):
    pass
  with lock(tmp_path):
    pass


def test_a_lock_whose_file_was_deleted_is_taken_again(tmp_path, monkeypatch):
  """The previous holder deletes its file once another process has opened it."""
  path, flock, calls = tmp_path / LOCK, fcntl.flock, []

  def delete_once(file, operation):
    flock(file, operation)
    calls.append(operation)
    if len(calls) == 1:
      path.unlink()

  monkeypatch.setattr(fcntl, "flock", delete_once)
  with lock(tmp_path):
    assert path.read_text() == str(os.getpid())
    with pytest.raises(ValueError, match="is in use"), lock(tmp_path):
      pass
  assert not path.exists()


def test_a_file_that_a_crash_leaves_locks_nothing(tmp_path):
  path = tmp_path / LOCK
  path.write_text("1234567890")
  with lock(tmp_path):
    assert path.read_text() == str(os.getpid())


def test_a_lock_is_held_until_its_file_is_deleted(tmp_path, monkeypatch):
  """Or else the file of the next holder would be deleted."""
  unlink, deleted = os.unlink, []

  def unlink_held(path, **options):
    with (tmp_path / path).open("rb") as file, pytest.raises(BlockingIOError):
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    unlink(path, **options)
    deleted.append(path)

  monkeypatch.setattr(os, "unlink", unlink_held)
  with lock(tmp_path):
    pass
  assert deleted == [LOCK]


def test_a_link_in_place_of_the_lock_is_refused_and_not_followed(tmp_path):
  target = tmp_path / "target"
  for text in ("kept", None):
    (tmp_path / LOCK).unlink(missing_ok=True)
    (tmp_path / LOCK).symlink_to(target)
    if text:
      target.write_text(text)
    with pytest.raises(ValueError, match="is a link"), lock(tmp_path):
      pass
    assert (target.read_text() if target.exists() else None) == text
    target.unlink(missing_ok=True)


@pytest.mark.parametrize("deleted", [False, True])
def test_a_directory_that_was_moved_away_is_no_longer_held(tmp_path, deleted):
  """Another process may lock a new directory at its path, and end."""
  directory = tmp_path / "run"
  directory.mkdir()
  message = "run was moved, deleted or replaced"
  with lock(directory):
    check_held()
    (directory / LOCK).rename(tmp_path / LOCK)
    check_held()  # a directory without its lock is still the same
    if deleted:
      directory.rmdir()
    else:
      directory.rename(tmp_path / "moved")
    with pytest.raises(ValueError, match=message):
      check_held()
    directory.mkdir()
    with pytest.raises(ValueError, match=message):
      check_held()
    (directory / LOCK).write_text("12345")  # that of another process
    with pytest.raises(ValueError, match=message):
      check_held()
  assert (directory / LOCK).read_text() == "12345"
  check_held()


def test_a_directory_that_was_moved_keeps_no_lock(tmp_path):
  """Not even where a file, in which there is no path, has taken its place."""
  directory, moved = tmp_path / "run", tmp_path / "moved"
  directory.mkdir()
  with lock(directory):
    directory.rename(moved)
    directory.write_text("a file")
    with pytest.raises(ValueError, match="run was moved, deleted or replaced"):
      check_held()
  assert [*moved.iterdir()] == []
