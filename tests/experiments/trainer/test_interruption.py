"""Ctrl-C before the first step and after the last."""

import signal

import pytest

from experiments import train
from experiments.cli import collect_stop_requests
from experiments.trainer.logger import RunLogger
from lstm_jax.training import list_checkpoints


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
