"""Runs that are stopped go on as if nothing had happened."""

import dataclasses
import json
import pickle
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import train
from experiments.trainer import claim, run_dir
from experiments.trainer.checkpoint import restore, saved
from experiments.trainer.lock import locked
from experiments.trainer.setup import make
from lstm_jax.training import list_checkpoints
from lstm_jax.training.checkpoint import STATE
from tests.experiments.trainer.lives import (
  essence,
  last_arrays,
  poison,
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
  "development": 0.2,
}
WANDERS = {
  "learning_rate": 1.0,
  "schedule": "constant",
  "asgd_patience": 1,
  "eval_every": 6,
}


@pytest.fixture
def undisturbed(config, console):
  return essence(train.run(config, console).directory)


def stop_at(step, config, console, signum=signal.SIGTERM):
  with pytest.MonkeyPatch.context() as monkeypatch:
    signal_at(monkeypatch, step, signum)
    return train.run(config, console)


@pytest.mark.parametrize("changes", [{}, NOISE, WANDERS])
def test_a_run_stopped_anywhere_ends_as_one_that_was_not(
  changes, config, console
):
  config = dataclasses.replace(config, **changes, num_epochs=2)
  whole = essence(train.run(config, console).directory)
  if changes is WANDERS:
    assert "weights are averaged" in whole["samples"]
  again = dataclasses.replace(config, run=config.run + "2")
  # Before the first look, at one, between two, with rows yet to be written.
  for step in (7, 10, 33, 76):
    result = stop_at(step, again, console)
    assert result.stopped_by is signal.SIGTERM
    directory = result.directory
    assert list_checkpoints(directory / "checkpoints")[-1] == step
    assert not (directory / "result.json").exists()
    assert f"SIGTERM: stopped after update {step}" in console.file.getvalue()
  assert train.run(again, console).stopped_by is None
  assert "goes on     after update 76" in console.file.getvalue()
  assert essence(directory) == whole


def test_a_run_without_a_checkpoint_begins_again(config, console, undisturbed):
  again = dataclasses.replace(config, run=config.run + "2")
  directory = stop_at(4, again, console).directory
  shutil.rmtree(directory / "checkpoints")
  (directory / "metrics.jsonl").write_text("{half a r")
  train.run(again, console)
  assert essence(directory) == undisturbed


def test_a_run_stopped_before_a_look_can_be_sampled_all_the_same(
  config, console
):
  result = stop_at(4, config, console, signal.SIGINT)
  assert (result.stopped_by, result.best_update) == (signal.SIGINT, 0)
  trained = run_dir.load(result.directory)
  assert (trained.step, trained.held_out) == (4, None)


def test_of_a_stopped_run_the_best_is_read(config, console):
  stop_at(33, config, console)
  trained = run_dir.load(Path(config.run))
  text = (Path(config.run) / "metrics.jsonl").read_text()
  rows = [json.loads(line) for line in text.splitlines()]
  looks = {r["held_out"]: r["step"] for r in rows if "held_out" in r}
  assert (trained.held_out, trained.step) == min(looks.items())


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (
      {"learning_rate": 0.5, "num_epochs": 3},
      "num_epochs is 1 there and 3 here; learning_rate is 0.005 there and 0.5",
    ),
    ({"resume": False}, "already holds a run; --overwrite replaces it"),
  ],
)
def test_a_run_of_another_configuration_does_not_go_on(
  changes, message, config, console
):
  directory = stop_at(12, config, console).directory
  before = {p: p.read_bytes() for p in directory.rglob("*") if p.is_file()}
  with pytest.raises(ValueError, match=message):
    train.run(dataclasses.replace(config, **changes), console)
  assert before == {
    p: p.read_bytes() for p in directory.rglob("*") if p.is_file()
  }


def test_a_corpus_that_has_changed_is_an_error(config, console):
  stop_at(12, config, console)
  path = Path(config.corpus)
  path.write_text(path.read_text().replace("lovely", "lively"))
  with pytest.raises(ValueError, match=r"corpus .* has changed since the run"):
    train.run(config, console)


def test_a_folder_in_use_is_refused_until_its_process_ends(config, console):
  directory = stop_at(12, config, console).directory
  with (
    locked(directory),
    pytest.raises(ValueError, match=r"run is in use by process \d+"),
  ):
    train.run(config, console)
  (directory / "lock").write_text("12345")  # as a crash leaves it
  assert train.run(config, console).stopped_by is None
  assert not (directory / "lock").exists()


def test_overwrite_begins_again_and_keeps_what_it_replaces(
  config, console, undisturbed
):
  directory = Path(config.run)
  old = run_dir.load(directory)
  again = dataclasses.replace(config, overwrite=True, seed=1)
  stop_at(4, again, console)
  assert run_dir.load(directory / "previous").held_out == old.held_out
  # A move that was cut off is finished first.
  (directory / "previous" / "config.json").rename(directory / "config.json")
  train.run(dataclasses.replace(config, overwrite=True), console)
  assert essence(directory) == undisturbed
  assert not (directory / "previous").exists()


@pytest.fixture
def stopped(config, console):
  """A run stopped at 33: its parts and its folder."""
  stop_at(33, config, console)
  return make(config), Path(config.run)


def leaves(restored):
  return jax.tree.leaves(saved(restored.state, restored.average))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_bit_that_turned_in_any_file_is_found_or_harms_nothing(
  stopped, config, console, collected
):
  parts, directory = stopped
  good = restore(directory, parts.state, console)
  assert int(good.state.step) == 33
  newest = directory / "checkpoints" / "33"
  files = [p for p in newest.rglob("*") if p.is_file() and p.stat().st_size]
  earlier = []
  for path in files:
    data = path.read_bytes()
    for at in {0, len(data) // 2, len(data) - 1}:
      turned = bytearray(data)
      turned[at] ^= 4
      path.write_bytes(bytes(turned))
      found = restore(directory, parts.state, console)
      step = int(found.state.step)
      if step == 33:
        pairs = zip(leaves(good), leaves(found), strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs), path
        assert found.progress == good.progress
      else:
        assert step == 30
        earlier.append(path.relative_to(newest).parts[0])
    path.write_bytes(data)
  assert {STATE, "description", "seal"} <= set(earlier)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", ["truncated", "state", "description"])
def test_after_damage_the_checkpoint_before_is_taken_and_said_so(
  damage, stopped, config, console, tmp_path, collected, capsys
):
  _, directory = stopped
  for path in (directory / "checkpoints" / "33" / STATE).rglob("*"):
    if path.is_file() and damage == "truncated":
      path.write_bytes(path.read_bytes()[:-20])
  if damage != "truncated":
    shutil.rmtree(directory / "checkpoints" / "33" / damage)
  if damage == "description":  # those who only read the weights are told, too
    assert run_dir.load(directory).step <= 30
    assert "checkpoints/33" in capsys.readouterr().err
  train.run(config, console)
  shown = console.file.getvalue()
  assert "checkpoints/33" in shown and ": not used" in shown
  assert "goes on     after update 30" in shown
  whole = dataclasses.replace(config, run=str(tmp_path / "whole"))
  assert essence(directory) == essence(train.run(whole, console).directory)


def test_when_all_are_damaged_there_is_an_error_of_one_line(
  stopped, config, console
):
  _, directory = stopped
  for path in directory.glob("checkpoints/*/seal/metadata"):
    path.write_text(path.read_text().replace("a", "b"))
  with pytest.raises(ValueError, match=r"none of the checkpoints in .* can be"):
    train.run(config, console)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_hostile_checkpoint_runs_no_code(
  stopped, config, console, tmp_path, collected
):
  """Whatever is in its files, none of them is unpickled."""

  class Bomb:
    def __reduce__(self):
      return Path(tmp_path / "exploded").touch, ()

  parts, directory = stopped
  for path in (directory / "checkpoints").rglob("*"):
    if path.is_file():
      path.write_bytes(pickle.dumps(Bomb()))
  with pytest.raises(ValueError, match="none of the checkpoints"):
    restore(directory, parts.state, console)
  assert not (tmp_path / "exploded").exists()


def test_a_count_of_what_was_skipped_goes_on_too(config, console):
  config = dataclasses.replace(config, nonfinite="skip", num_epochs=2)
  with pytest.MonkeyPatch.context() as monkeypatch:
    poison(monkeypatch, {27, 28, 41})
    whole = train.run(config, console).directory
    again = dataclasses.replace(config, run=config.run + "2")
    for step in (28, 33):
      stop_at(step, again, console)
    train.run(again, console)
  assert essence(Path(again.run)) == essence(whole)
  assert essence(whole)["rows"][-2]["skipped"] == 3


def test_logs_that_have_lost_their_ends_keep_whole_lines(config, console):
  """As where the power failed after a checkpoint was on the disk."""
  directory = stop_at(33, config, console).directory
  metrics, samples = directory / "metrics.jsonl", directory / "samples.txt"
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
  assert (directory / "result.json").exists()


def test_every_flag_but_those_that_say_where_must_be_the_same(
  config, console, tmp_path
):
  where = {"run", "overwrite", "resume", "mesh", "quiet"}
  assert set(claim.OWN) == where
  stop_at(4, config, console)
  changes = {"corpus": str(tmp_path / "other.txt"), "cell": "gru"}
  changes |= {"optimizer": "sgd", "schedule": "constant", "ema_decay": 0.5}
  (tmp_path / "other.txt").write_bytes(Path(config.corpus).read_bytes())
  with pytest.raises(ValueError, match="of another configuration") as error:
    train.run(dataclasses.replace(config, **changes), console)
  for name in changes:
    assert f"{name} is " in str(error.value)


def test_looks_leave_the_training_as_it_is(config, console):
  often = dataclasses.replace(config, **NOISE, eval_every=7)
  rarely = dataclasses.replace(often, eval_every=99, run=config.run + "2")
  runs = [train.run(each, console).directory for each in (often, rarely)]
  one, other = (last_arrays(directory) for directory in runs)
  state = {name for name in one[1] if name.startswith("state")}
  assert len(state) > 20
  assert {n: one[1][n] for n in state} == {n: other[1][n] for n in state}
