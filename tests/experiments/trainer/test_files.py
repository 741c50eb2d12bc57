"""Files that are written as a whole, or not at all."""

import errno
import math
import os
import threading

import pytest

from experiments.trainer import files
from experiments.trainer.files import (
  are_numbers,
  check_regular,
  read_file,
  write_bytes,
  write_json,
)
from experiments.trainer.history import read_rows
from experiments.trainer.run_dir import read_config
from lstm_jax.training.durable import sync
from tests.patterns import exact


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


def test_two_processes_may_write_one_path_at_once(tmp_path, monkeypatch):
  path = tmp_path / "result.json"

  def sync_while_another_writes(part):
    monkeypatch.undo()
    write_bytes(path, b"theirs")
    sync(part)

  monkeypatch.setattr(files, "sync", sync_while_another_writes)
  write_bytes(path, b"ours")
  assert path.read_bytes() == b"ours"
  assert [*tmp_path.iterdir()] == [path]


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


def test_a_pipe_or_device_in_a_run_is_not_read(tmp_path):
  pipe, link = tmp_path / "config.json", tmp_path / "metrics.jsonl"
  os.mkfifo(pipe)
  link.symlink_to("/dev/zero")
  for path in (pipe, link):  # neither would end
    message = f"{exact(path)} is not a regular file"
    with pytest.raises(ValueError, match=message):
      read_file(path)
  assert read_config(tmp_path) is None
  with pytest.raises(ValueError, match=f"{exact(link)} is not a regular file"):
    read_rows(link)
  with pytest.raises(ValueError, match="not a regular file: delete it"):
    check_regular(pipe)


def test_what_no_finite_float_can_hold_is_no_number():
  assert are_numbers([0, -1, 2.5, 10**300])
  huge = 10**400
  for other in (True, None, "1", [1], math.nan, -math.inf, huge, -huge):
    assert not are_numbers([0, other])


def test_a_record_with_a_nan_is_not_written(tmp_path):
  with pytest.raises(ValueError, match="JSON"):
    write_json(tmp_path / "result.json", {"loss": math.nan})
  assert not [*tmp_path.iterdir()]


def test_a_record_that_is_nested_too_deeply_is_an_error(tmp_path):
  nested = []
  for _ in range(20_000):
    nested = [nested]
  with pytest.raises(ValueError, match="nested too deeply"):
    write_json(tmp_path / "result.json", {"entry": nested})
