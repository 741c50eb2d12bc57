"""The run that --overwrite sets aside, and results that are damaged."""

import shutil

import pytest

from experiments.trainer.run_dir import read_result, set_aside


@pytest.fixture
def successor(finished):
  """A finished run, which replaces another that has a file more."""
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


@pytest.mark.parametrize("finished_too", [False, True])
def test_without_a_checkpoint_a_finished_run_alone_replaces_the_previous(
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


def test_a_run_whose_result_is_damaged_is_finished(tmp_path):
  assert read_result(tmp_path) is None
  (tmp_path / "result.json").write_text('{"step": 2')
  assert read_result(tmp_path) == {}
