"""Ctrl-C before the first step and after the last; what a kill leaves."""

import signal
from pathlib import Path

import pytest

from experiments import train
from experiments.cli import collect_stop_requests
from experiments.trainer import run_dir
from experiments.trainer.data import text_sha256
from experiments.trainer.logger import RunLogger
from experiments.trainer.opening import open_run_dir
from experiments.trainer.run_dir import SHA256, check_is_run_or_empty, set_aside
from lstm_jax.training import list_checkpoints
from tests.experiments.conftest import VERSES
from tests.power import tree


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
  monkeypatch.setattr(RunLogger, "finish", signalling(RunLogger.finish))
  result = train.run(config, console)
  assert (result.stopped_by, result.signalled) == (None, signal.SIGINT)
  assert (result.directory / "result.json").exists()


@pytest.mark.parametrize("moves", [1, 4])
def test_a_run_whose_move_aside_was_cut_off_is_whole_again(
  moves, finished, config, monkeypatch
):
  before = tree(finished)
  rename, left = Path.rename, [None] * moves  # before the kill

  def killed(path, target):
    if not left:
      raise KeyboardInterrupt
    left.pop()
    return rename(path, target)

  with monkeypatch.context() as patched:
    patched.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
      set_aside(finished)
  assert len([*(finished / "previous").iterdir()]) == moves
  message = "already holds a finished run"
  with (
    pytest.raises(ValueError, match=message),
    open_run_dir(config, {SHA256: text_sha256(VERSES)}),
  ):
    pass
  (finished / "previous").rmdir()
  assert tree(finished) == before


def test_the_config_of_a_previous_run_is_deleted_last(finished, monkeypatch):
  set_aside(finished)
  deleted = []
  monkeypatch.setattr(
    run_dir, "_delete", lambda path: deleted.append(path.name)
  )
  run_dir.delete_previous(finished)
  assert deleted[-1] == "config.json" and "metrics.jsonl" in deleted


def test_half_written_files_of_a_killed_run_do_not_prevent_a_new_one(tmp_path):
  (tmp_path / "result.json.0a1b2c3d.part").touch()
  (tmp_path / "config.json.0a1b2c3d.part").touch()
  check_is_run_or_empty(tmp_path)
  for name in ("config.json.counterpart", "notes.0a1b2c3d.part", "part"):
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=f"it holds {name}; choose"):
      check_is_run_or_empty(tmp_path)
    (tmp_path / name).unlink()


def test_a_run_that_goes_on_deletes_what_a_kill_left_half_written(
  finished, config
):
  (finished / "result.json").unlink()  # the kill came before it was there
  (finished / "result.json.0a1b2c3d.part").touch()
  theirs = finished / "evaluation.json.0a1b2c3d.part"
  theirs.touch()  # another program may be about to rename it
  with open_run_dir(config, {SHA256: text_sha256(VERSES)}) as opened:
    assert opened.resuming
    assert [*finished.glob("*.part")] == [theirs]
