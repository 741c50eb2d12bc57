"""Runs whose files are damaged or lost, also by a power failure.

The run `stopped` was evaluated after steps 10, 20 and 30, and stopped after
step 33. Each saved a checkpoint, of which the last two and the best are kept.
"""

import json
import pickle
import shutil
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import train
from experiments.trainer import checkpoint, distributed, logger
from experiments.trainer.checkpoint import (
  Progress,
  read_progress,
  restore,
  truncate_logs,
)
from experiments.trainer.logger import initial_state
from experiments.trainer.records import replace
from experiments.trainer.run_dir import OpenedRun
from experiments.trainer.setup import make_setup
from experiments.trainer.trained import load
from lstm_jax.training import (
  CheckpointError,
  CheckpointWriter,
  list_checkpoints,
)
from lstm_jax.training.checkpoint import STATE
from tests.experiments.trainer.resuming import outcome, signal_at, stop_at
from tests.power import Disk, tree


def test_a_run_whose_checkpoints_hold_no_state_is_not_resumed(
  stopped, config, console
):
  for state in stopped.glob(f"checkpoints/*/{STATE}"):
    shutil.rmtree(state)
  message = "an unfinished run without a checkpoint to continue from; --overwr"
  with pytest.raises(ValueError, match=message):
    train.run(config, console)


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("place", [0, 0.5, 1])
def test_a_bit_that_flipped_in_any_file_is_found_or_harms_nothing(
  place, stopped, config, console, garbage_collected, monkeypatch
):
  """In the first, middle or last byte of each file of the newest checkpoint."""
  # The best weights are in another checkpoint, which stays as it is.
  monkeypatch.setattr(checkpoint, "read_best", lambda *arguments: None)
  state = make_setup(config).state_like
  good = restore(stopped, state, console)
  assert int(good.state.step) == 33 != good.progress.best[1]
  newest = stopped / "checkpoints" / "33"
  files = [p for p in newest.rglob("*") if p.is_file() and p.stat().st_size]
  damaged = []  # items for which the checkpoint of step 30 was used
  for path in files:
    data = path.read_bytes()
    flipped = bytearray(data)
    flipped[int(place * (len(data) - 1))] ^= 4
    path.write_bytes(bytes(flipped))
    restored = restore(stopped, state, console)
    step = int(restored.state.step)
    if step == 33:
      leaves = map(jax.tree.leaves, (good.state, restored.state))
      assert all(map(np.array_equal, *leaves)), path
      assert restored.progress == good.progress
    else:
      assert step == 30
      damaged.append(path.relative_to(newest).parts[0])
    path.write_bytes(data)
  assert {STATE, "description", "checksums"} <= set(damaged)


@pytest.mark.everyday(1)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", ["truncated", "state", "description"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
  damage, stopped, config, console, undisturbed, garbage_collected, capsys
):
  for path in (stopped / "checkpoints" / "33" / STATE).rglob("*"):
    if path.is_file() and damage == "truncated":
      path.write_bytes(path.read_bytes()[:-20])
  if damage != "truncated":
    shutil.rmtree(stopped / "checkpoints" / "33" / damage)
  if damage == "description":  # `load` names it, too
    assert load(stopped).step <= 30
    assert "checkpoints/33" in capsys.readouterr().err
  train.run(config, console)
  shown = console.file.getvalue()
  assert "checkpoints/33" in shown and ": not used" in shown
  assert "resumed     after step 30" in shown
  assert outcome(stopped) == undisturbed


def test_a_run_whose_best_weights_are_lost_chooses_others(
  stopped, config, console, monkeypatch
):
  """It chooses those of step 47, although the lost ones had a lower loss."""
  lost, losses = load(stopped), iter((9.0, 8.0))  # after steps 40 and 47
  shutil.rmtree(stopped / "checkpoints" / f"{lost.step}")
  monkeypatch.setattr(train, "stateful_loss", lambda *_: next(losses))
  result = train.run(config, console)
  assert (
    f": the best weights, of step {lost.step} and a loss of "
    f"{lost.val_loss:.4f}, are lost, and later evaluations choose others\n"
  ) in console.file.getvalue()
  assert "resumed     after step 33\n" in console.file.getvalue()
  assert (result.best_step, result.val_loss) == (47, 8.0)
  assert load(stopped).val_loss == 8.0


def test_a_damaged_checkpoint_makes_way_for_one_of_an_earlier_step(
  stopped, config, console
):
  shutil.rmtree(stopped / "checkpoints" / "33" / STATE)
  assert stop_at(32, config, console).stopped_by  # resumed after step 30
  assert list_checkpoints(stopped / "checkpoints")[-1] == 32


def test_other_processes_are_told_the_checkpoint_or_that_none_can_be_read(
  stopped, config, console, monkeypatch
):
  """They wait for this process: an error that it kept to itself hangs them."""
  told = []

  @contextmanager
  def failing_together():
    try:
      yield
    except Exception as error:
      told.append(type(error))
      raise

  monkeypatch.setattr(distributed, "failing_together", failing_together)
  monkeypatch.setattr(
    distributed, "check_same_checkpoint", lambda _, step: told.append(step)
  )
  logger = SimpleNamespace(
    resume=lambda restored: None,
    sample_during_training=lambda title, params: None,
  )
  setup, opened = make_setup(config), OpenedRun(stopped, resuming=True)
  assert initial_state(setup, logger, console, opened, None).step == 33
  for path in stopped.glob("checkpoints/*/checksums/metadata"):
    path.write_text(path.read_text().replace("a", "b"))
  with pytest.raises(CheckpointError, match="none of the checkpoints") as error:
    initial_state(setup, logger, console, opened, None)
  assert "\n" not in str(error.value)
  shutil.rmtree(stopped / "checkpoints")
  assert initial_state(setup, logger, console, opened, None).step == 0
  assert told == [33, CheckpointError, 0]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_hostile_checkpoint_runs_no_code(
  stopped, config, console, tmp_path, garbage_collected
):
  """Whatever is in its files, none of them is unpickled."""

  class Bomb:
    def __reduce__(self):
      return Path(tmp_path / "exploded").touch, ()

  state, bomb = make_setup(config).state_like, pickle.dumps(Bomb())
  newest = stopped / "checkpoints" / "33"
  # One by one: once a file cannot be read, the others are not read at all.
  for path in filter(Path.is_file, newest.rglob("*")):
    good = path.read_bytes()
    path.write_bytes(bomb)
    restore(stopped, state, console)
    path.write_bytes(good)
  for path in (stopped / "checkpoints").rglob("*"):
    if path.is_file():
      path.write_bytes(bomb)
  with pytest.raises(ValueError, match="none of the checkpoints"):
    restore(stopped, state, console)
  assert not (tmp_path / "exploded").exists()


def test_logs_that_have_lost_their_ends_keep_complete_lines(
  stopped, config, console
):
  """As after a power failure: the checkpoint was on the disk, the ends not."""
  metrics, samples = stopped / "metrics.jsonl", stopped / "samples.txt"
  for log in (metrics, samples):
    log.write_bytes(log.read_bytes()[:-5])
  kept = metrics.read_text().splitlines()[:-1]
  train.run(config, console)
  shown = console.file.getvalue()
  assert f"{metrics} has lost 5 bytes" in shown
  assert f"{samples} has lost 5 bytes" in shown
  lines = metrics.read_text().splitlines()
  assert lines[: len(kept)] == kept
  steps = [json.loads(line)["step"] for line in lines]
  assert steps == sorted(steps) and steps[len(kept)] == 40
  assert (stopped / "result.json").exists()


@pytest.mark.exhaustive
def test_a_run_at_its_end_without_its_best_weights_says_so(
  config, console, monkeypatch
):
  """A kill came before result.json was written; the best checkpoint is lost."""
  losses = iter((1.0, 2.0, 0.5, 3.0, 4.0))  # after steps 10, 20, 30, 40, 47
  monkeypatch.setattr(train, "stateful_loss", lambda *_: next(losses))
  directory = train.run(config, console).directory
  (directory / "result.json").unlink()
  shutil.rmtree(directory / "checkpoints" / "30")
  message = "has made its last step and has no best checkpoint: --overwrite"
  with pytest.raises(ValueError, match=message):
    train.run(config, console)


# The lock, and what only shows the metrics: a run does without them.
NOT_PROMISED = "loss.png", "lock", "tensorboard"


def promised(directory):
  """Return the contents of a run's files, by path, without NOT_PROMISED."""
  files = tree(directory).items()
  return {n: b for n, b in files if n.split("/")[0] not in NOT_PROMISED}


def test_a_run_is_on_the_disk_when_it_says_so(
  config, console, monkeypatch, tmp_path
):
  """It says so when it stops or ends; rows are on the disk once written."""
  (tmp_path / "disk").mkdir()
  directory = tmp_path / "disk" / "runs" / "one"
  config = replace(config, run=str(directory))
  disk, rows, left = Disk(monkeypatch), [], []
  append, show = logger.append, console.print

  def appended(path, text):
    append(path, text)
    assert disk.contents(path) == path.read_bytes()
    rows.append(path.name)

  def shown(*objects, **options):
    # The line of a stopped run, and the one that names the files of a run.
    if any(line in f"{objects}" for line in ("SIGTERM: stopped", " holds ")):
      copy = tmp_path / f"left{len(left)}"
      disk.after_failure(tmp_path / "disk", copy)
      left.append(promised(copy / "runs" / "one"))
      assert left[-1] == promised(directory)
    show(*objects, **options)

  monkeypatch.setattr(logger, "append", appended)
  monkeypatch.setattr(console, "print", shown)
  with pytest.MonkeyPatch.context() as patch:
    signal_at(patch, 33)
    train.run(config, console)
  train.run(config, console)
  # Of 47 training steps a row for each 10 and the last, and for evaluations at
  # steps 10, 20, 30, 40 and the last.
  assert rows.count("metrics.jsonl") == 5 + 5
  stopped, *_, finished = left
  assert {"config.json", "metrics.jsonl", "samples.txt"} <= stopped.keys()
  assert any(name.startswith("checkpoints/33/state/") for name in stopped)
  assert finished.keys() - stopped.keys() >= {"result.json"}


def test_a_log_that_lost_lines_and_has_grown_since_keeps_complete_lines(
  tmp_path, console
):
  metrics, samples = tmp_path / "metrics.jsonl", tmp_path / "samples.txt"
  metrics.write_text("one\nthree\n")  # "one\ntwo\n" at the checkpoint
  samples.write_text("one\ntwo\nthree\n")  # nothing was lost
  sizes = {metrics.name: 8, samples.name: 8}
  truncate_logs(tmp_path, sizes, console)
  assert metrics.read_text() == "one\n"
  assert samples.read_text() == "one\ntwo\n"
  metrics.unlink()
  samples.write_text("half")
  truncate_logs(tmp_path, sizes, console)
  shown = console.file.getvalue()
  assert f"{metrics} has lost 8 bytes\n{samples} has lost 4 bytes" in shown
  assert not metrics.exists() and samples.read_text() == ""


def test_the_progress_of_another_kind_of_run_is_an_error(tmp_path):
  writer = CheckpointWriter(tmp_path)
  writer.save(3, {"w": jnp.ones(2)}, {"progress": {"members": 2}})
  writer.close()
  with pytest.raises(CheckpointError, match=r"step 3 .* another kind of run"):
    read_progress(tmp_path, 3, Progress)
