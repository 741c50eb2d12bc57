"""Files that are written as a whole, or not at all."""

import errno
import math
import os
import threading

import pytest

from experiments.trainer import files
from experiments.trainer.files import (
  are_numbers,
  write_bytes,
  write_json,
)


def test_a_link_stays_a_link(tmp_path):
  target, link = tmp_path / "target.json", tmp_path / "link.json"
  target.write_text("old")
  link.symlink_to(target)
  write_json(link, {"new": 1})
  assert link.is_symlink() and target.read_text() == '{\n  "new": 1\n}\n'
  assert sorted(p.name for p in tmp_path.iterdir()) == [
    "link.json",
    "target.json",
  ]


def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
  pipe, read = tmp_path / "pipe", []
  os.mkfifo(pipe)
  reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
  reader.start()
  write_bytes(pipe, b"through")
  reader.join(timeout=10)
  assert read == [b"through"] and pipe.is_fifo()


def test_a_link_to_a_pipe_is_written_to(tmp_path):
  """As /dev/stdout, where the output of a program goes to another one."""
  reading, writing = os.pipe()
  link = tmp_path / "stdout"
  link.symlink_to(f"/dev/fd/{writing}")
  write_bytes(link, b"through")
  os.close(writing)
  with os.fdopen(reading, "rb") as pipe:
    assert pipe.read() == b"through"


def test_what_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
  def full(part):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(files, "sync", full)
  with pytest.raises(OSError, match=r"No space left on device: .*result"):
    write_bytes(tmp_path / "result.json", b"text")
  assert not [*tmp_path.iterdir()]


def test_a_directory_is_an_error_that_leaves_nothing(tmp_path):
  (tmp_path / "taken").mkdir()
  with pytest.raises(OSError, match="taken"):
    write_bytes(tmp_path / "taken", b"text")
  assert [p.name for p in tmp_path.iterdir()] == ["taken"]


def test_what_no_finite_float_can_hold_is_no_number():
  assert are_numbers([0, -1, 2.5, 10**300])
  huge = 10**400
  for other in (True, None, "1", [1], math.nan, -math.inf, huge, -huge):
    assert not are_numbers([0, other])


def test_a_record_with_a_nan_is_not_written(tmp_path):
  with pytest.raises(ValueError, match="JSON"):
    write_json(tmp_path / "result.json", {"loss": math.nan})
  assert not [*tmp_path.iterdir()]
