"""The logs of an interrupted run, and the checkpoint that its message names."""

import jax.numpy as jnp
import pytest

from experiments.trainer.checkpoint import (
  Progress,
  read_progress,
  truncate_logs,
)
from lstm_jax.training import CheckpointError, CheckpointWriter
from tests.patterns import exact


def test_half_a_line_is_removed_and_a_missing_log_is_not_created(
  tmp_path, console
):
  metrics, samples = tmp_path / "metrics.jsonl", tmp_path / "samples.txt"
  samples.write_text("half")
  # The logs had 9 and 7 bytes at the checkpoint.
  truncate_logs(tmp_path, {metrics.name: 9, samples.name: 7}, console)
  shown = console.file.getvalue()
  assert f"{metrics} has lost 9 bytes\n{samples} has lost 3 bytes" in shown
  assert not metrics.exists() and samples.read_text() == ""


def test_a_log_that_lost_lines_and_has_grown_since_keeps_complete_lines(
  tmp_path, console
):
  metrics, samples = tmp_path / "metrics.jsonl", tmp_path / "samples.txt"
  metrics.write_text("one\nthree\n")  # "one\ntwo\n" at the checkpoint
  samples.write_text("one\ntwo\nthree\n")  # nothing was lost
  truncate_logs(tmp_path, {metrics.name: 8, samples.name: 8}, console)
  assert metrics.read_text() == "one\n"
  assert samples.read_text() == "one\ntwo\n"


@pytest.mark.parametrize("description", [{}, {"progress": {"members": 2}}])
def test_the_progress_of_another_kind_of_run_is_an_error(description, tmp_path):
  writer = CheckpointWriter(tmp_path)
  writer.save(3, {"w": jnp.ones(2)}, description)
  writer.close()
  message = (
    f"^the checkpoint of step 3 in {exact(tmp_path)} is of another kind of run"
  )
  with pytest.raises(CheckpointError, match=message):
    read_progress(tmp_path, 3, Progress)
