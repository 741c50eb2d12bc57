"""The run that --overwrite sets aside, and results that are damaged."""

import re
import shutil
from pathlib import Path

import pytest

from experiments.trainer import run_dir
from experiments.trainer.run_dir import (
  check_is_run_or_empty,
  check_outside_runs,
  delete_previous,
  read_record,
  read_result,
  set_aside,
)
from tests.patterns import exact


@pytest.fixture
def successor(finished):
  """A finished run; the run that it has replaced also has evaluation.json."""
  (finished / "evaluation.json").write_text("{}")
  set_aside(finished)
  shutil.copytree(finished / "previous", finished, dirs_exist_ok=True)
  (finished / "evaluation.json").unlink()
  (finished / "samples.txt").write_text("newer")
  return finished


def test_a_previous_run_is_replaced_as_a_whole(successor):
  previous = successor / "previous"
  assert (previous / "evaluation.json").exists()
  names = {path.name for path in successor.iterdir()} - {"previous"}
  set_aside(successor)
  assert [*successor.iterdir()] == [previous]
  assert {path.name for path in previous.iterdir()} == names
  assert (previous / "samples.txt").read_text() == "newer"


def test_a_run_is_not_mixed_with_a_previous_one_that_cannot_be_deleted(
  successor, monkeypatch
):
  def rmtree(path):
    raise PermissionError(13, "Permission denied", str(path))

  monkeypatch.setattr(run_dir.shutil, "rmtree", rmtree)
  previous = successor / "previous"
  before = {path.name for path in successor.iterdir()}
  with pytest.raises(OSError, match=f"^{exact(previous)} cannot be deleted$"):
    set_aside(successor)
  assert {path.name for path in successor.iterdir()} == before


def test_a_run_is_moved_with_every_file_that_it_may_have(tmp_path):
  named = set(re.findall(r"^([\w.]+)/?  ", run_dir.__doc__, re.MULTILINE))
  named -= {"previous", "lock"}
  assert {"config.json", "ensemble.json", "profile"} < named
  for name in named:
    (tmp_path / name).touch()
  set_aside(tmp_path)
  assert [*tmp_path.iterdir()] == [tmp_path / "previous"]
  assert {path.name for path in (tmp_path / "previous").iterdir()} == named


@pytest.mark.parametrize("finished_too", [False, True])
def test_without_a_checkpoint_only_a_finished_run_replaces_the_previous(
  finished_too, successor
):
  shutil.rmtree(successor / "checkpoints")
  if not finished_too:
    (successor / "result.json").unlink()
  previous = successor / "previous"
  set_aside(successor)
  assert [*successor.iterdir()] == [previous]
  kept = (previous / "samples.txt").read_text()
  assert (kept == "newer") == finished_too
  assert (previous / "evaluation.json").exists() != finished_too


def test_a_damaged_checkpoint_hides_no_best_one_before_it(successor):
  """The run is not finished, and its checkpoint of step 40 names a best."""
  (successor / "result.json").unlink()
  shutil.rmtree(successor / "checkpoints" / "47" / "description")
  set_aside(successor)
  kept = successor / "previous" / "samples.txt"
  assert kept.read_text() == "newer"


def test_a_previous_run_that_cannot_be_deleted_keeps_its_config(
  successor, monkeypatch
):
  """So it still counts as a run, and a later call deletes the rest."""
  rmtree, previous = shutil.rmtree, successor / "previous"

  def refuse(path):
    raise PermissionError(13, "Permission denied", str(path))

  monkeypatch.setattr(shutil, "rmtree", refuse)
  delete_previous(successor)
  assert (previous / "config.json").exists()
  assert not (previous / "metrics.jsonl").exists()
  monkeypatch.setattr(shutil, "rmtree", rmtree)
  delete_previous(successor)
  assert not previous.exists()


def test_a_link_in_a_previous_run_is_deleted_and_not_followed(
  successor, tmp_path
):
  """In place of its checkpoints, and then of a file: what it leads to is kept.

  That may be shared.
  """
  elsewhere = tmp_path / "elsewhere"
  (successor / "previous" / "checkpoints").rename(elsewhere)
  (successor / "previous" / "checkpoints").symlink_to(elsewhere)
  set_aside(successor)
  assert not (successor / "previous" / "checkpoints").is_symlink()
  (successor / "previous" / "metrics.jsonl").unlink()
  (successor / "previous" / "metrics.jsonl").symlink_to(elsewhere)
  delete_previous(successor)
  assert not (successor / "previous").exists()
  assert [*elsewhere.iterdir()]


def test_a_config_without_permission_is_named(successor, monkeypatch):
  def refuse(path, **options):
    raise PermissionError(13, "Permission denied", str(path))

  monkeypatch.setattr(Path, "read_bytes", refuse)
  named = exact(repr(str(successor / "config.json")))
  for read in check_is_run_or_empty, read_record:
    with pytest.raises(PermissionError, match=named):
      read(successor)
  # Another user's file in a directory that both share is no run to protect.
  monkeypatch.setattr("os.access", lambda path, mode: False)
  check_outside_runs("--out", successor / "page.html")


def test_a_run_whose_result_is_damaged_is_finished(tmp_path):
  assert read_result(tmp_path) is None
  (tmp_path / "result.json").write_text('{"step": 2')
  assert read_result(tmp_path) == {}


def test_a_link_to_no_file_is_set_aside_with_its_run(tmp_path):
  (tmp_path / "config.json").touch()
  (tmp_path / "metrics.jsonl").symlink_to(tmp_path / "missing")
  set_aside(tmp_path)
  # Else the new run would write to the missing file.
  assert [path.name for path in tmp_path.iterdir()] == ["previous"]


def test_a_link_in_place_of_the_previous_run_is_not_followed(tmp_path):
  directory, other = tmp_path / "run", tmp_path / "other"
  for path in (directory, other):
    path.mkdir()
    (path / "config.json").touch()
  (directory / "previous").symlink_to(other)
  delete_previous(directory)
  assert (other / "config.json").exists()
  with pytest.raises(ValueError, match="previous is a link"):
    check_is_run_or_empty(directory)
