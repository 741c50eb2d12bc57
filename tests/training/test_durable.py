"""A saved checkpoint is on the disk, and survives a power failure."""

import errno
import os
import re
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest

from lstm_jax.training import (
  CheckpointError,
  CheckpointWriter,
  list_checkpoints,
  read_params,
)
from lstm_jax.training.durable import make_directory, sync, sync_tree
from tests.draws import worst
from tests.patterns import exact
from tests.power import Disk, tree

PARAMS = {"w": np.arange(6.0).reshape(2, 3)}


def test_a_checkpoint_is_on_the_disk_once_the_writer_has_waited(
  tmp_path, monkeypatch
):
  disk, directory = Disk(monkeypatch), tmp_path / "a" / "checkpoints"
  writer = CheckpointWriter(directory)
  for step in (3, 5):
    writer.save(step, PARAMS | {"step": np.array(step)}, {"losses": [1.5]})
    writer.wait()
    left = tmp_path / f"left{step}"
    disk.after_failure(tmp_path, left)
    checkpoints = left / "a" / "checkpoints"
    assert tree(checkpoints / f"{step}") == tree(directory / f"{step}")
    like = PARAMS | {"step": np.array(0)}
    assert read_params(checkpoints, step, like)["step"] == step
  writer.close()


def test_a_writer_keeps_its_directory_when_the_current_one_changes(
  tmp_path, monkeypatch
):
  (tmp_path / "elsewhere").mkdir()
  monkeypatch.chdir(tmp_path)
  disk = Disk(monkeypatch)
  writer = CheckpointWriter(Path("checkpoints"))
  monkeypatch.chdir("elsewhere")
  writer.save(3, PARAMS, {})
  writer.wait()
  disk.after_failure(tmp_path, tmp_path / "left")
  kept = read_params(tmp_path / "left" / "checkpoints", 3, PARAMS)
  assert worst(kept, PARAMS) == 0
  writer.close()


def test_a_checkpoint_that_was_deleted_does_not_come_back(
  tmp_path, monkeypatch
):
  disk, left = Disk(monkeypatch), tmp_path / "left"
  (tmp_path / "disk").mkdir()
  writer = CheckpointWriter(tmp_path / "disk" / "checkpoints")
  for step in (3, 5):
    writer.save(step, PARAMS, {})
  writer.delete_after(3)  # waits for the one of step 5
  disk.after_failure(tmp_path / "disk", left)
  assert list_checkpoints(left / "checkpoints") == [3]
  first = "checkpoints/3"  # save(5, …) waited for it, no other call
  assert tree(left / first) == tree(tmp_path / "disk" / first)
  writer.close()


def test_the_files_of_a_checkpoint_are_on_the_disk_before_it_has_its_name(
  tmp_path, monkeypatch
):
  """Otherwise an older one could be deleted for one that may be empty."""
  disk, left, lost = Disk(monkeypatch), tmp_path / "left", set()
  replace = os.replace

  def checked(source, target, **options):
    if Path(target).name == "3":
      disk.after_failure(Path(source), left)
      lost.update(tree(Path(source)).items() - tree(left).items())
    replace(source, target, **options)

  monkeypatch.setattr(os, "replace", checked)
  monkeypatch.setattr(os, "rename", checked)
  writer = CheckpointWriter(tmp_path / "checkpoints")
  writer.save(3, PARAMS, {"losses": [1.5]})
  writer.close()
  files = tree(tmp_path / "checkpoints" / "3")
  assert len(files) > 8 and left.exists()  # else `checked` compared nothing
  # Orbax adds these last: they say when it has written the others.
  written_last = {"_CHECKPOINT_METADATA", "commit_success.txt"}
  assert {name for name, _ in lost} <= written_last


def test_what_was_not_synced_is_lost(tmp_path, monkeypatch):
  """Else the tests above would show nothing."""
  disk, directory = Disk(monkeypatch), tmp_path / "new"
  make_directory(directory)
  file = directory / "file"
  file.write_text("written")
  sync(directory)
  disk.after_failure(tmp_path, tmp_path / "left1")
  assert tree(tmp_path / "left1") == {}
  sync_tree(directory)
  file.write_text("written again")
  disk.after_failure(tmp_path, tmp_path / "left2")
  assert tree(tmp_path / "left2") == {"new/file": b"written"}


def test_a_new_file_is_not_taken_for_one_that_is_gone(monkeypatch):
  """Not in `tmp_path`: the memory that it may be in reuses no inode."""
  disk = Disk(monkeypatch)
  with tempfile.TemporaryDirectory() as directory:
    old, new = Path(directory, "old"), Path(directory, "new")
    old.write_text("old")
    sync(old)
    old.unlink()
    new.write_text("new")
    assert disk.contents(new) is None


@pytest.mark.parametrize("name", ["EINVAL", "ENOTSUP", "EOPNOTSUPP"])
def test_only_a_directory_may_be_without_fsync(name, tmp_path, monkeypatch):
  """Some network and FUSE file systems have no fsync of directories."""
  number = getattr(errno, name)

  def refuse(descriptor):
    raise OSError(number, os.strerror(number))

  monkeypatch.setattr(os, "fsync", refuse)
  sync(tmp_path)
  file = tmp_path / "file"
  file.touch()
  message = exact(f"{os.strerror(number)}: {str(file)!r}")
  with pytest.raises(OSError, match=message):
    sync(file)


def test_sync_closes_what_it_opened_even_after_an_error(tmp_path, monkeypatch):
  closed, opened = [], []
  file, (open_file, close) = tmp_path / "file", (os.open, os.close)
  file.touch()

  def record(*args):
    opened.append(open_file(*args))
    return opened[-1]

  def refuse(descriptor):
    raise OSError(errno.EIO, os.strerror(errno.EIO))

  monkeypatch.setattr(os, "open", record)
  monkeypatch.setattr(os, "close", lambda fd: (closed.append(fd), close(fd)))
  sync(file)
  monkeypatch.setattr(os, "fsync", refuse)
  with pytest.raises(OSError, match="Input/output error"):
    sync(file)
  assert closed == opened and len(opened) == 2


def test_sync_tree_and_make_directory_refuse_a_file(tmp_path):
  (tmp_path / "file").touch()
  with pytest.raises(NotADirectoryError):
    sync_tree(tmp_path / "file")
  with pytest.raises(FileExistsError):
    make_directory(tmp_path / "file")
  with pytest.raises(FileNotFoundError):
    sync_tree(tmp_path / "absent")


def test_a_checkpoint_that_was_removed_too_early_is_an_error_once(tmp_path):
  writer = CheckpointWriter(tmp_path)
  writer.save(3, PARAMS, {})
  writer._manager.wait_until_finished()
  shutil.rmtree(tmp_path / "3")
  name = re.escape(f"the last checkpoint in {tmp_path} cannot be written: ")
  message = f"^{name}FileNotFoundError: "
  with pytest.raises(CheckpointError, match=message):
    writer.wait()
  writer.save(5, PARAMS, {})
  writer.close()
  assert list_checkpoints(tmp_path) == [5]


def test_a_writer_is_closed_even_after_an_error(tmp_path):
  writer = CheckpointWriter(tmp_path)
  writer.save(3, PARAMS, {})
  writer._manager.wait_until_finished()
  shutil.rmtree(tmp_path / "3")
  with pytest.raises(CheckpointError, match=r"^the last checkpoint in "):
    writer.close()
  message = f"^the writer of {exact(tmp_path)} is"
  with pytest.raises(CheckpointError, match=message):
    writer.save(5, PARAMS, {})
  assert list_checkpoints(tmp_path) == []


@pytest.mark.parametrize("name", ["lr=[0.1]", "a*", "b?", "c\\d"])
def test_a_path_with_a_wildcard_or_a_backslash_is_refused(name, tmp_path):
  directory = tmp_path / name
  message = re.escape(f"none of * ? [ \\ in its path, got {directory}")
  with pytest.raises(CheckpointError, match=message):
    CheckpointWriter(directory)
  assert not directory.exists()
