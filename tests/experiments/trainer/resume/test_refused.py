"""Runs that are not resumed, and runs that are not replaced."""

import json
import shutil
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments import train
from experiments.trainer import opening
from experiments.trainer.locking import lock
from experiments.trainer.logger import RunLogger
from experiments.trainer.opening import open_run_dir
from experiments.trainer.records import replace, to_record
from experiments.trainer.run_dir import (
  INIT_FROM,
  JOB_FLAGS,
  SHA256,
  TEACHERS,
  read_config,
)
from experiments.trainer.same_run import changed_flags
from experiments.trainer.trained import load
from lstm_jax import gru
from lstm_jax.training import CheckpointWriter, list_checkpoints
from lstm_jax.training.checkpoint import CheckpointError
from tests.experiments.conftest import VERSE
from tests.experiments.trainer.resuming import outcome, stop_at
from tests.patterns import exact
from tests.power import tree


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
def test_a_run_is_not_resumed_with_other_flags_or_noresume(
  changes, message, stopped, config, console
):
  before = tree(stopped)
  with pytest.raises(ValueError, match=message):
    train.run(replace(config, **changes), console)
  assert tree(stopped) == before


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
  """It has a checkpoint, but no best one.

  When it is overwritten itself, it is deleted, and `previous` keeps the
  finished run.
  """
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


def test_a_single_run_does_not_resume_a_sweep(stopped, config):
  record = json.loads((stopped / "config.json").read_text())
  # The record of a sweep is known by its num_seeds.
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
  # A move that was cut off is undone, and then made again.
  (finished / "previous" / "config.json").rename(finished / "config.json")
  train.run(replace(config, overwrite=True), console)
  assert outcome(finished) == undisturbed
  assert not (finished / "previous").exists()  # deleted at the end


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
  record = read_config(stopped)
  for name in to_record(config).keys() - {*JOB_FLAGS}:
    other = record | {name: "another"}
    assert [*changed_flags(other, config, {})] == [name]


@pytest.mark.parametrize(
  ("flag", "paths", "entry"),
  [  # `entry`: what config.json has of the weights, here a short SHA-256
    ("teacher", [("a",), ("b",)], {TEACHERS: ["1a2b"]}),
    ("init_from", ["a", "b"], {INIT_FROM: "1a2b"}),
  ],
)
def test_weights_that_were_moved_are_no_other_configuration(
  flag, paths, entry, config
):
  first, moved = (replace(config, **{flag: path}) for path in paths)
  with open_run_dir(first, {SHA256: "0"} | entry):
    pass
  with open_run_dir(moved, {SHA256: "0"} | entry) as opened:
    assert opened.resuming
  with (
    pytest.raises(ValueError, match=f"{flag} is .* there and .* here"),
    open_run_dir(moved, {SHA256: "0"} | dict.fromkeys(entry, "other")),
  ):
    pass


@pytest.mark.parametrize("failure", ["checkpoint", "sample"])
def test_a_run_whose_best_is_not_saved_replaces_no_other(
  failure, finished, config, console, monkeypatch
):
  """As on a full disk, or where a second Ctrl-C comes before the checkpoint."""
  old = load(finished)

  def interrupted(logger, *arguments, **options):
    if logger.best.step:  # not at the sample of the untrained model
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


@pytest.mark.parametrize(
  "name", ["corpus.txt", "previous/corpus.txt", "samples.txt"]
)
def test_a_text_that_a_run_holds_is_not_replaced(
  name, finished, config, console
):
  corpus = Path(config.data.corpus)
  kept, record = finished / name, (finished / "config.json").read_bytes()
  kept.parent.mkdir(exist_ok=True)
  kept.write_bytes(corpus.read_bytes())
  # In `previous`, it marks the move there as complete, or else it is undone.
  (kept.parent / "config.json").write_bytes(record)
  check_not_replaced(kept, config, console)


def check_not_replaced(kept, config, console, *, overwrite=True):
  """Check that a run refuses this text, and leaves its directory as it was."""
  before = tree(Path(config.job.run))
  again = replace(config, overwrite=overwrite, corpus=str(kept))
  with pytest.raises(ValueError, match="which is a file of the run: copy it"):
    train.run(again, console)
  assert tree(Path(config.job.run)) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_text_that_a_kill_left_in_previous_is_not_replaced(
  overwrite, finished, config, console
):
  previous = finished / "previous"
  previous.mkdir()
  for entry in [entry for entry in finished.iterdir() if entry != previous]:
    entry.rename(previous / entry.name)
  kept = previous / "corpus.txt"
  kept.write_bytes(Path(config.data.corpus).read_bytes())
  check_not_replaced(kept, config, console, overwrite=overwrite)


def test_a_text_that_is_a_link_in_a_run_is_not_replaced(
  finished, config, console
):
  kept = finished / "corpus.txt"
  kept.symlink_to(Path(config.data.corpus).absolute())
  check_not_replaced(kept, config, console)


@pytest.mark.parametrize("flag", ["teacher", "init_from"])
@pytest.mark.parametrize("name", ["link", "link/previous"])
def test_a_run_is_not_replaced_by_one_that_reads_it(
  flag, name, finished, config, console, tmp_path
):
  shutil.copytree(finished, tmp_path / "previous")
  (tmp_path / "previous").rename(finished / "previous")
  (tmp_path / "link").symlink_to(finished)
  before = tree(finished)
  source = str(tmp_path / name)
  value = (source,) if flag == "teacher" else source
  again = replace(config, overwrite=True, **{flag: value})
  message = f"--overwrite would replace the run of --{flag}={source}: pass ano"
  with pytest.raises(ValueError, match=exact(message)):
    train.run(again, console)
  assert tree(finished) == before


def test_new_runs_of_one_second_have_directories_of_their_own(
  config, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  clock = SimpleNamespace(now=lambda: datetime(2026, 2, 3, 4, 5, 6))
  monkeypatch.setattr(opening, "datetime", clock)
  found = []
  for _ in range(3):
    unnamed = replace(config, run="")
    with open_run_dir(unnamed, {"corpus_sha256": "0"}) as opened:
      found.append((str(opened.directory), opened.resuming))
  name = "runs/2026-02-03-040506"
  assert found == [(f"{name}{end}", False) for end in ("", "-2", "-3")]


def test_a_log_that_is_a_link_is_refused_and_not_followed(
  stopped, config, console, tmp_path
):
  target = tmp_path / "target"
  (stopped / "metrics.jsonl").rename(target)
  (stopped / "metrics.jsonl").symlink_to(target)
  before = target.read_bytes()
  with pytest.raises(ValueError, match=r"metrics\.jsonl is a link"):
    train.run(config, console)
  assert target.read_bytes() == before
