"""Runs that end before their last step: by --patience, or by Ctrl-C."""

import json
import signal
from pathlib import Path

import pytest

from experiments import train
from experiments.cli import collect_stop_requests
from experiments.pages.report import make_header
from experiments.trainer.history import read_run_history
from experiments.trainer.logger import RunLogger
from experiments.trainer.records import replace
from experiments.trainer.trained import load
from lstm_jax.training import list_checkpoints
from tests.experiments.trainer.resuming import outcome, read_rows

LOSSES = 3.0, 2.0, 2.5, 2.0, 1.0  # at steps 10, 20, 30, 40, 47


@pytest.fixture
def config(config):
  return replace(config, patience=2, eval_every=10)


@pytest.fixture
def stopped_early(config, console, monkeypatch):
  """The directory of a run of 47 steps that stops after step 40."""
  losses = iter(LOSSES)
  monkeypatch.setattr(train, "stateful_loss", lambda *_: next(losses))
  result = train.run(config, console)
  assert (result.best_step, result.val_loss) == (20, 2.0)
  assert result.stopped_by is None
  return result.directory


def test_a_run_stops_after_evaluations_without_a_lower_loss(
  stopped_early, config, console
):
  assert (
    "\nstopped early after step 40 of 47: 2 evaluations in a row without a "
    "lower validation loss\n" in console.file.getvalue()
  )
  assert read_rows(stopped_early)[-1]["step"] == 40
  result = json.loads((stopped_early / "result.json").read_text())
  assert (result["step"], result["last_step"]) == (20, 40)
  assert result["stopped_early"] is True
  assert load(stopped_early).step == 20
  history = read_run_history(stopped_early)
  assert history.finished and history.stopped_early
  # Without its corpus, the ends of the run's epochs are not known.
  Path(config.data.corpus).unlink()
  header = make_header([history])
  assert header["results"]["rows"][0][-1] == "yes, early"
  assert header["runs"][0]["epoch_ends"] is None


def test_a_run_that_stopped_early_does_not_go_on_when_it_is_resumed(
  stopped_early, config, console
):
  with pytest.raises(ValueError, match="already holds a finished run"):
    train.run(config, console)
  whole = outcome(stopped_early)
  (stopped_early / "result.json").unlink()  # killed before it was written
  result = train.run(config, console)  # a further loss would be 1.0
  assert (result.best_step, result.val_loss) == (20, 2.0)
  assert outcome(stopped_early) == whole


def test_a_run_that_stopped_early_is_extended_by_patience_0(
  stopped_early, config, console
):
  with pytest.raises(ValueError, match="a larger --patience, or 0, extends it"):
    train.run(replace(config, num_epochs=2), console)
  result = train.run(replace(config, patience=0), console)
  assert (result.best_step, result.val_loss) == (47, 1.0)
  assert "extended    by --patience=0; " in console.file.getvalue()
  assert read_rows(stopped_early)[-1]["step"] == 47
  record = json.loads((stopped_early / "result.json").read_text())
  assert (record["last_step"], record["stopped_early"]) == (47, False)
  assert not read_run_history(stopped_early).stopped_early


def signalling(function, count=1):
  """Return a function that first sends its process `count` SIGINTs."""

  def signalled(*arguments, **options):
    for _ in range(count):
      signal.raise_signal(signal.SIGINT)
    return function(*arguments, **options)

  return signalled


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("name", ["initial_state", "make_epochs"])
def test_ctrl_c_before_the_first_step_stops_after_it(
  name, config, console, monkeypatch
):
  monkeypatch.setattr(train, name, signalling(getattr(train, name)))
  result = train.run(config, console)
  assert result.stopped_by is signal.SIGINT
  assert list_checkpoints(result.directory / "checkpoints") == [1]
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("interruptible")
def test_a_second_ctrl_c_before_the_first_step_interrupts_at_once(
  config, console, monkeypatch
):
  monkeypatch.setattr(train, "fit", None)  # a call would fail
  monkeypatch.setattr(train, "make_epochs", signalling(train.make_epochs, 2))
  message = "^interrupted; no checkpoint is kept in "
  with pytest.raises(KeyboardInterrupt, match=message):
    train.run(config, console)
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("interruptible")
def test_an_ignored_signal_stays_ignored():
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  with collect_stop_requests() as requests:
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGTERM)
  assert requests == [signal.SIGTERM]
  assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@pytest.mark.exhaustive
@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_after_the_last_step_lets_the_run_finish(
  config, console, monkeypatch
):
  monkeypatch.setattr(RunLogger, "conclude", signalling(RunLogger.conclude))
  result = train.run(config, console)
  assert (result.stopped_by, result.signalled) == (None, signal.SIGINT)
  assert (result.directory / "result.json").exists()
