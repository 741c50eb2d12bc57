"""Runs that are stopped and resumed end as if they had not been stopped."""

import io
import json
import pickle
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console

from experiments import train
from experiments.trainer import setup, start
from experiments.trainer.checkpoint import restore
from experiments.trainer.locking import lock
from experiments.trainer.logger import RunLogger
from experiments.trainer.opening import open_run_dir
from experiments.trainer.records import replace
from experiments.trainer.run_dir import JOB_FLAGS
from experiments.trainer.setup import make_setup
from experiments.trainer.trained import load
from lstm_jax import gru
from lstm_jax.training import (
  CheckpointWriter,
  init_state,
  list_checkpoints,
  read_checkpoint,
)
from lstm_jax.training.checkpoint import STATE, CheckpointError
from tests.experiments.conftest import VERSE, copy_run
from tests.experiments.trainer.resuming import (
  inject_nans,
  last_checksums,
  outcome,
  read_rows,
  signal_at,
)

NOISE = {
  "ema_decay": 0.9,
  "output_dropout": 0.3,
  "weight_drop": 0.2,
  "zoneout_h": 0.1,
  "token_dropout": 0.1,
  "random_offsets": True,
  "short_seq_prob": 0.3,
  "late_batch_size": 4,
  "test_fraction": 0.1,
  "val_fraction": 0.2,
}
AVERAGES = {
  "learning_rate": 1.0,
  "schedule": "constant",
  "asgd_patience": 1,
  "eval_every": 6,
}


@pytest.fixture
def undisturbed(finished_config):
  """What the run of `config` leaves if nothing stops it."""
  return outcome(Path(finished_config.job.run))


def stop_at(step, config, console, signum=signal.SIGTERM):
  with pytest.MonkeyPatch.context() as monkeypatch:
    signal_at(monkeypatch, step, signum)
    return train.run(config, console)


def check_stops(steps, changes, config, console):
  """Check that a run stopped at these steps ends as one that was not."""
  config = replace(config, **changes, num_epochs=3)  # the last is a late one
  whole = outcome(train.run(config, console).directory)
  again = replace(config, run=config.job.run + "2")
  for step in steps:
    result = stop_at(step, again, console)
    assert result.stopped_by is signal.SIGTERM
    directory = result.directory
    assert list_checkpoints(directory / "checkpoints")[-1] == step
    assert not (directory / "result.json").exists()
    assert f"SIGTERM: stopped after step {step}" in console.file.getvalue()
  assert train.run(again, console).stopped_by is None
  assert f"resumed     after step {steps[-1]}" in console.file.getvalue()
  assert outcome(directory) == whole
  return whole


def test_a_stopped_run_ends_as_one_that_was_not(
  stopped, config, console, undisturbed
):
  assert train.run(config, console).stopped_by is None
  assert "resumed     after step 33" in console.file.getvalue()
  assert outcome(stopped) == undisturbed


def test_a_run_makes_weights_only_when_it_starts(
  stopped, config, console, monkeypatch
):
  def only_shapes(model, optimizer, params, *arguments, **options):
    assert isinstance(params.embedding, jax.core.Tracer), "weights were made"
    return init_state(model, optimizer, params, *arguments, **options)

  monkeypatch.setattr(setup, "init_state", only_shapes)
  assert train.run(config, console).stopped_by is None
  with pytest.raises(AssertionError, match="weights were made"):
    train.run(replace(config, overwrite=True), console)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
  "changes",
  [
    pytest.param(NOISE, id="noise"),
    pytest.param(AVERAGES, id="average", marks=pytest.mark.exhaustive),
  ],
)
def test_a_run_stopped_in_its_last_epoch_ends_as_one_that_was_not(
  changes, config, console
):
  """With the batch size of that epoch, and steps that have no row yet."""
  whole = check_stops([103], changes, config, console)
  if changes is AVERAGES:
    assert "weights are averaged" in whole["samples"]


@pytest.mark.exhaustive
@pytest.mark.parametrize(
  "changes", [{}, NOISE, AVERAGES], ids=["plain", "noise", "average"]
)
def test_a_run_stopped_anywhere_ends_as_one_that_was_not(
  changes, config, console
):
  """Before the first evaluation, at one, between two, in the last epoch."""
  check_stops([7, 10, 33, 103], changes, config, console)


def test_a_run_without_a_checkpoint_starts_again(config, console, undisturbed):
  directory = stop_at(4, config, console).directory
  shutil.rmtree(directory / "checkpoints")
  (directory / "metrics.jsonl").write_text("{half a r")
  train.run(config, console)
  assert outcome(directory) == undisturbed


def test_a_run_stopped_before_an_evaluation_can_be_sampled(config, console):
  result = stop_at(4, config, console, signal.SIGINT)
  assert (result.stopped_by, result.best_step) == (signal.SIGINT, 0)
  trained = load(result.directory)
  assert (trained.step, trained.val_loss) == (4, None)


def test_an_interruption_names_the_checkpoint_that_a_stopped_run_has(
  config, console, monkeypatch
):
  stop_at(4, config, console, signal.SIGINT)

  def interrupt(*arguments):
    raise KeyboardInterrupt

  monkeypatch.setattr(start, "restore", interrupt)
  message = "^interrupted; the checkpoint of step 4 is kept in "
  with pytest.raises(KeyboardInterrupt, match=message):
    train.run(config, console)


@pytest.fixture(scope="session")
def stopped_config(finished_config):
  """The run of `config`, stopped after step 33; tests copy it."""
  config = replace(finished_config, run=f"{finished_config.job.run}-stopped")
  with jax.numpy_dtype_promotion("standard"):
    stop_at(33, config, Console(file=io.StringIO(), width=80))
  return config


@pytest.fixture
def stopped(stopped_config, config):
  """The run directory of `config`, whose run was stopped after step 33."""
  return copy_run(stopped_config, config)


def test_of_a_stopped_run_the_best_is_loaded(stopped):
  trained = load(stopped)
  rows = read_rows(stopped)
  losses = {r["val_loss"]: r["step"] for r in rows if "val_loss" in r}
  assert (trained.val_loss, trained.step) == min(losses.items())
  newest = read_checkpoint(stopped / "checkpoints", 33)
  assert newest.description["val_loss"] is None  # between two evaluations


def test_a_run_whose_checkpoints_hold_no_state_is_not_resumed(
  stopped, config, console
):
  for state in stopped.glob(f"checkpoints/*/{STATE}"):
    shutil.rmtree(state)
  message = "already holds a run without a checkpoint to resume from; --overwr"
  with pytest.raises(ValueError, match=message):
    train.run(config, console)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (
      {"learning_rate": 0.5, "num_epochs": 3},
      "num_epochs is 1 there and 3 here; learning_rate is 0.02 there and 0.5",
    ),
    (
      {"resume": False},
      "already holds an unfinished run; --resume continues it, --over",
    ),
  ],
)
def test_a_run_of_another_configuration_is_not_resumed(
  changes, message, stopped, config, console
):
  before = {p: p.read_bytes() for p in stopped.rglob("*") if p.is_file()}
  with pytest.raises(ValueError, match=message):
    train.run(replace(config, **changes), console)
  assert before == {
    p: p.read_bytes() for p in stopped.rglob("*") if p.is_file()
  }


def test_a_corpus_that_has_changed_is_an_error(stopped, config, console):
  path = Path(config.data.corpus)
  path.write_text(path.read_text().replace("lovely", "lively"))
  with pytest.raises(ValueError, match=r"corpus .* has changed since the run"):
    train.run(config, console)


def test_a_directory_in_use_is_refused_until_its_process_ends(
  stopped, config, console
):
  with (
    lock(stopped),
    pytest.raises(ValueError, match=r"run is in use by process \d+"),
  ):
    train.run(config, console)
  (stopped / "lock").write_text("12345")  # as a crash leaves it
  assert train.run(config, console).stopped_by is None
  assert not (stopped / "lock").exists()


def test_a_run_that_was_stopped_before_an_evaluation_replaces_no_other(
  finished, config, console
):
  """Though it has a checkpoint: overwritten too, it goes, and not the first."""
  old, previous = load(finished), finished / "previous"
  for seed, step in ((1, 5), (2, 6)):
    stop_at(step, replace(config, overwrite=True, seed=seed), console)
    assert list_checkpoints(finished / "checkpoints") == [step]
    assert load(previous).val_loss == old.val_loss


def test_a_file_in_place_of_the_directory_of_all_runs_is_refused(
  config, console, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "runs").touch()
  with pytest.raises(ValueError, match="runs is not a directory: pass --run"):
    train.run(replace(config, run=""), console)


def test_a_sweep_and_a_single_run_do_not_resume_each_other(stopped, config):
  record = json.loads((stopped / "config.json").read_text())
  (stopped / "config.json").write_text(json.dumps(record | {"num_seeds": 2}))
  facts = {"corpus_sha256": record["corpus_sha256"]}
  message = "holds a sweep; --overwrite replaces"
  with pytest.raises(ValueError, match=message), open_run_dir(config, facts):
    pass


def test_overwrite_starts_again_and_keeps_what_it_replaces(
  finished, config, console, undisturbed
):
  old = load(finished)
  again = replace(config, overwrite=True, seed=1)
  stop_at(4, again, console)
  assert load(finished / "previous").val_loss == old.val_loss
  # A move that was cut off is finished first.
  (finished / "previous" / "config.json").rename(finished / "config.json")
  train.run(replace(config, overwrite=True), console)
  assert outcome(finished) == undisturbed
  assert not (finished / "previous").exists()


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
  "place",
  [
    0.5,
    pytest.param(0, marks=pytest.mark.exhaustive),
    pytest.param(1, marks=pytest.mark.exhaustive),
  ],
)
def test_a_bit_that_flipped_in_any_file_is_found_or_harms_nothing(
  place, stopped, config, console, collected
):
  """In the middle of every file, at its start, or at its end."""
  state = make_setup(config).state_like
  good = restore(stopped, state, console)
  assert int(good.state.step) == 33
  newest = stopped / "checkpoints" / "33"
  files = [p for p in newest.rglob("*") if p.is_file() and p.stat().st_size]
  earlier = []
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
      earlier.append(path.relative_to(newest).parts[0])
    path.write_bytes(data)
  assert {STATE, "description", "checksums"} <= set(earlier)


@pytest.mark.everyday(1)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", ["truncated", "state", "description"])
def test_after_damage_the_checkpoint_before_is_used_and_named(
  damage, stopped, config, console, undisturbed, collected, capsys
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


def test_a_damaged_checkpoint_makes_way_for_one_of_an_earlier_step(
  stopped, config, console
):
  shutil.rmtree(stopped / "checkpoints" / "33" / STATE)
  assert stop_at(32, config, console).stopped_by
  assert list_checkpoints(stopped / "checkpoints")[-1] == 32


def test_when_all_are_damaged_there_is_an_error_of_one_line(
  stopped, config, console
):
  for path in stopped.glob("checkpoints/*/checksums/metadata"):
    path.write_text(path.read_text().replace("a", "b"))
  with pytest.raises(
    ValueError, match=r"none of the checkpoints in .* can be"
  ) as error:
    train.run(config, console)
  assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_hostile_checkpoint_runs_no_code(
  stopped, config, console, tmp_path, collected
):
  """Whatever is in its files, none of them is unpickled."""

  class Bomb:
    def __reduce__(self):
      return Path(tmp_path / "exploded").touch, ()

  for path in (stopped / "checkpoints").rglob("*"):
    if path.is_file():
      path.write_bytes(pickle.dumps(Bomb()))
  with pytest.raises(ValueError, match="none of the checkpoints"):
    restore(stopped, make_setup(config).state_like, console)
  assert not (tmp_path / "exploded").exists()


@pytest.mark.exhaustive
def test_the_count_of_skipped_steps_is_resumed(config, console):
  config = replace(config, nonfinite="skip")
  with pytest.MonkeyPatch.context() as monkeypatch:
    inject_nans(monkeypatch, {27, 28, 41})
    whole = train.run(config, console).directory
    again = replace(config, run=config.job.run + "2")
    for step in (28, 33):
      stop_at(step, again, console)
    train.run(again, console)
  assert outcome(Path(again.job.run)) == outcome(whole)
  assert outcome(whole)["rows"][-2]["skipped"] == 3


def test_logs_that_have_lost_their_ends_keep_complete_lines(
  stopped, config, console
):
  """As where the power failed after a checkpoint was on the disk."""
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


def test_every_flag_but_those_of_the_job_must_be_the_same(
  stopped, config, console, tmp_path
):
  placing = {"mesh", "devices"}
  assert set(JOB_FLAGS) == {"run", "overwrite", "resume", "quiet"} | placing
  changes = {"corpus": str(tmp_path / "other.txt"), "cell": gru}
  changes |= {"optimizer": "sgd", "schedule": "constant", "ema_decay": 0.5}
  (tmp_path / "other.txt").write_text(VERSE * 30)
  with pytest.raises(ValueError, match="of another configuration") as error:
    train.run(replace(config, **changes), console)
  for name in changes:
    assert f"{name} is " in str(error.value)


@pytest.mark.exhaustive
def test_evaluations_do_not_change_the_training(config, console):
  often = replace(config, **NOISE, eval_every=7)
  rarely = replace(often, eval_every=99, run=config.job.run + "2")
  runs = [train.run(each, console).directory for each in (often, rarely)]
  one, other = (last_checksums(directory) for directory in runs)
  state = {name for name in one[1] if name.startswith("state")}
  assert len(state) > 20
  assert {n: one[1][n] for n in state} == {n: other[1][n] for n in state}


@pytest.mark.parametrize("failure", ["checkpoint", "sample"])
def test_a_run_whose_best_is_not_saved_replaces_no_other(
  failure, finished, config, console, monkeypatch
):
  """As on a full disk, or where a second Ctrl-C comes before the checkpoint."""
  old = load(finished)

  def interrupted(*arguments, **options):
    raise KeyboardInterrupt

  def disk_is_full(*arguments, **options):
    raise CheckpointError("the checkpoint cannot be written: File too large")

  again = replace(config, overwrite=True, seed=1)
  if failure == "sample":
    monkeypatch.setattr(RunLogger, "sample_during_training", interrupted)
    with pytest.raises(KeyboardInterrupt, match="; no checkpoint is kept in"):
      train.run(again, console)
  else:
    monkeypatch.setattr(CheckpointWriter, "save", disk_is_full)
    with pytest.raises(CheckpointError, match="File too large"):
      train.run(again, console)
  assert load(finished / "previous").val_loss == old.val_loss


def test_the_only_copy_of_a_text_is_not_replaced(finished, config, console):
  corpus = Path(config.data.corpus)
  kept = finished / "corpus.txt"
  kept.write_bytes(corpus.read_bytes())
  before = {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()}
  again = replace(config, overwrite=True, corpus=str(kept))
  with pytest.raises(ValueError, match="the only copy of a piped text: copy"):
    train.run(again, console)
  (finished / "lock").unlink(missing_ok=True)
  after = {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()}
  assert after == before


@pytest.mark.parametrize("flag", ["teacher", "init_from"])
@pytest.mark.parametrize("name", ["link", "link/previous"])
def test_a_run_that_is_read_is_not_replaced(
  flag, name, finished, config, console, tmp_path
):
  shutil.copytree(finished, tmp_path / "previous")
  (tmp_path / "previous").rename(finished / "previous")
  (tmp_path / "link").symlink_to(finished)
  before = {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()}
  source = str(tmp_path / name)
  value = (source,) if flag == "teacher" else source
  again = replace(config, overwrite=True, **{flag: value})
  message = f"--overwrite would replace the run of --{flag}={source}: pass ano"
  with pytest.raises(ValueError, match=message):
    train.run(again, console)
  after = {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()}
  assert after == before


@pytest.mark.exhaustive
def test_the_rate_of_a_row_is_that_of_its_last_update(config, console):
  """Skipped steps do not advance the schedule."""
  config = replace(config, nonfinite="skip", schedule="cosine", warmup_steps=40)
  with pytest.MonkeyPatch.context() as monkeypatch:
    inject_nans(monkeypatch, {3, 4, 17})
    directory = train.run(config, console).directory
  schedule = make_setup(config).schedule
  rates = {r["step"]: r["lr"] for r in read_rows(directory) if "lr" in r}
  assert rates[10] == pytest.approx(float(schedule(7)), rel=1e-6)
  assert rates[20] == pytest.approx(float(schedule(16)), rel=1e-6)


@pytest.mark.exhaustive
def test_a_run_at_its_end_without_its_best_weights_says_so(
  config, console, monkeypatch
):
  """Killed before result.json was written, and its best checkpoint is lost."""
  losses = iter((1.0, 2.0, 0.5, 3.0, 4.0))  # after steps 10, 20, 30, 40, 47
  monkeypatch.setattr(train, "stateful_loss", lambda *_: next(losses))
  directory = train.run(config, console).directory
  (directory / "result.json").unlink()
  shutil.rmtree(directory / "checkpoints" / "30")
  message = "has made its last step and has no best checkpoint: --overwrite"
  with pytest.raises(ValueError, match=message):
    train.run(config, console)
