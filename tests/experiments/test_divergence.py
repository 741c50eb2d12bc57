"""Runs whose loss or gradients are not finite."""

import math
import signal
from pathlib import Path

import numpy as np
import pytest

from experiments import train
from experiments.trainer import setup
from experiments.trainer.loop import Diverged
from experiments.trainer.records import replace
from experiments.trainer.trained import load
from tests.experiments.conftest import DIVERGES
from tests.experiments.trainer.resuming import inject_nans, read_rows


def test_a_loss_that_is_not_finite_stops_a_run_and_keeps_its_best_checkpoint(
  config, console, monkeypatch
):
  def make(*arguments, **options):
    train_step = make_train_step(*arguments, **options)

    def poisoned(state, *batch):
      state, metrics = train_step(state, *batch)
      wrong = np.where(state.step == 27, np.nan, metrics.loss)
      return state, metrics._replace(loss=wrong)

    return poisoned

  make_train_step = setup.make_train_step
  monkeypatch.setattr(setup, "make_train_step", make)
  message = "the loss is nan at step 27; the checkpoint of step 20 is kept"
  with pytest.raises(Diverged, match=message):
    train.run(config, console)
  directory = Path(config.job.run)
  assert load(directory).step == 20
  losses = [r["train_loss"] for r in read_rows(directory) if "train_loss" in r]
  # The rows after steps 10 and 20; that of steps 21 to 30 is not written.
  assert len(losses) == 2 and all(map(math.isfinite, losses))


@pytest.mark.exhaustive
def test_steps_that_are_not_finite_are_skipped_and_counted(
  config, console, monkeypatch
):
  inject_nans(monkeypatch, {7, 25, 26})
  with pytest.raises(Diverged, match="the loss is nan at step 7; no checkpo"):
    train.run(config, console)
  skip = replace(config, nonfinite="skip", overwrite=True)
  result = train.run(skip, console)
  assert "3 steps with a non-finite gradient skipped" in console.file.getvalue()
  trained = [row for row in read_rows(result.directory) if "train_loss" in row]
  # Steps skipped so far: of rows after steps 10, 20, 30, 40 and 47.
  assert [row.get("skipped", 0) for row in trained] == [1, 1, 3, 3, 3]
  assert all(math.isfinite(row["train_loss"]) for row in trained)


@pytest.mark.exhaustive
def test_skipping_ends_where_too_many_in_a_row_are_not_finite(
  config, console, monkeypatch
):
  inject_nans(monkeypatch, {*range(1, 11), *range(31, 60)})
  config = replace(config, nonfinite="skip", num_epochs=2, warmup_steps=0)
  message = (
    "the loss is nan at step 41, and at most 10 in a row may be skipped; the "
    "checkpoint"
  )
  with pytest.raises(Diverged, match=message):
    train.run(config, console)
  rows = read_rows(Path(config.job.run))
  first, *_, last = (row for row in rows if "train_loss" in row)
  # These rows are of steps 1 to 10 and 31 to 40, which were all skipped.
  assert first["train_loss"] is last["train_loss"] is None
  # By step 10 no step has updated the weights: that row has the learning rate
  # of the first update, and not of one before it.
  schedule = setup.make_setup(config).schedule
  assert first["lr"] == float(schedule(0)) != float(schedule(-1))


def test_a_signal_while_a_run_diverges_is_not_lost(
  config, console, monkeypatch
):
  def diverge(*arguments, stop_requests, **options):
    stop_requests.append(signal.SIGTERM)
    raise Diverged("the loss is nan")

  monkeypatch.setattr(train, "fit", diverge)
  with pytest.raises(Diverged, match=r"^the loss is nan; no chec") as error:
    train.run(config, console)
  assert error.value.signalled == signal.SIGTERM


def test_a_run_that_diverges_at_once_keeps_no_checkpoint(config, console):
  config = replace(config, **DIVERGES)
  with pytest.raises(Diverged, match=r"at step \d+; no checkpoint is kept"):
    train.run(config, console)
  with pytest.raises(ValueError, match="holds no checkpoint"):
    load(Path(config.job.run))
