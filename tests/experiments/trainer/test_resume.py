"""Runs that are stopped and resumed end as if they had not been stopped."""

import shutil
import signal
from pathlib import Path

import jax
import pytest

from experiments import train
from experiments.trainer import logger, setup
from experiments.trainer.records import replace
from experiments.trainer.setup import make_setup
from experiments.trainer.trained import load
from lstm_jax.training import init_state, list_checkpoints, read_checkpoint
from tests.experiments.conftest import VERSE
from tests.experiments.trainer.resuming import (
  inject_nans,
  last_checksums,
  outcome,
  read_rows,
  stop_at,
)

# What draws random numbers, and other batches, splits and an average.
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
# At so high a learning rate the loss soon rises, which starts NT-ASGD.
AVERAGES = {
  "learning_rate": 1.0,
  "schedule": "constant",
  "asgd_patience": 1,
  "eval_every": 6,
}


def check_stops(steps, changes, config, console):
  """Check that a run stopped at these steps ends as one that was not.

  Without short_seq_prob, the last batch of an epoch is shorter than the others.
  """
  Path(config.data.corpus).write_text(VERSE * 20)
  # With fewer epochs, the late_batch_size of NOISE would have no effect.
  config = replace(config, **changes, num_epochs=3)
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
  "changes", [{}, NOISE, AVERAGES], ids=["plain", "noise", "average"]
)
def test_a_run_stopped_anywhere_ends_as_one_that_was_not(
  changes, config, console
):
  """Before the first evaluation, at one, between two, in the last epoch.

  Step 10 is always evaluated (EARLY_STEPS). With AVERAGES, so is step 6. With
  NOISE, the last epoch has another batch size. After each stop but that at step
  10, there are training steps that no row of metrics.jsonl holds yet.
  """
  whole = check_stops([7, 10, 33, 103], changes, config, console)
  if changes is AVERAGES:
    assert "weights are averaged" in whole["samples"]


def test_a_run_without_a_checkpoint_starts_again(config, console, undisturbed):
  directory = stop_at(4, config, console).directory
  shutil.rmtree(directory / "checkpoints")
  (directory / "metrics.jsonl").write_text("{half a r")
  train.run(config, console)
  assert outcome(directory) == undisturbed


@pytest.mark.usefixtures("interruptible")
def test_a_run_stopped_before_its_first_evaluation_can_be_loaded(
  config, console
):
  result = stop_at(4, config, console, signal.SIGINT)
  assert (result.stopped_by, result.best_step) == (signal.SIGINT, 0)
  trained = load(result.directory)
  assert (trained.step, trained.val_loss) == (4, None)


@pytest.mark.usefixtures("interruptible")
def test_an_interruption_names_the_checkpoint_that_a_stopped_run_has(
  config, console, monkeypatch
):
  stop_at(4, config, console, signal.SIGINT)

  def interrupt(*arguments):
    raise KeyboardInterrupt

  monkeypatch.setattr(logger, "restore", interrupt)
  message = "^interrupted; the checkpoint of step 4 is kept in "
  with pytest.raises(KeyboardInterrupt, match=message):
    train.run(config, console)


def test_the_best_checkpoint_of_a_stopped_run_is_loaded(stopped):
  trained = load(stopped)
  rows = read_rows(stopped)
  losses = {r["val_loss"]: r["step"] for r in rows if "val_loss" in r}
  assert (trained.val_loss, trained.step) == min(losses.items())
  newest = read_checkpoint(stopped / "checkpoints", 33)
  assert newest.description["val_loss"] is None  # between two evaluations


@pytest.mark.exhaustive
def test_evaluations_do_not_change_the_training(config, console):
  often = replace(config, **NOISE, eval_every=7)
  rarely = replace(often, eval_every=99, run=config.job.run + "2")
  runs = [train.run(each, console).directory for each in (often, rarely)]
  one, other = (last_checksums(directory) for directory in runs)
  state = {name for name in one[1] if name.startswith("state")}
  assert len(state) > 20
  assert {n: one[1][n] for n in state} == {n: other[1][n] for n in state}


@pytest.mark.exhaustive
def test_the_rate_of_a_row_is_that_of_its_last_update(config, console):
  """Skipped steps do not advance the schedule.

  Steps 3 and 4 are skipped, so step 10 makes the 8th update, by schedule(7).
  """
  config = replace(config, nonfinite="skip", schedule="cosine", warmup_steps=40)
  with pytest.MonkeyPatch.context() as monkeypatch:
    inject_nans(monkeypatch, {3, 4, 17})
    directory = train.run(config, console).directory
  schedule = make_setup(config).schedule
  rates = {r["step"]: r["lr"] for r in read_rows(directory) if "lr" in r}
  assert rates[10] == pytest.approx(float(schedule(7)), rel=1e-6)
  assert rates[20] == pytest.approx(float(schedule(16)), rel=1e-6)
