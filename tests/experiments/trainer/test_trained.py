"""A run is loaded, also while it trains and deletes the checkpoint to read."""

import json
import shutil

import pytest

from experiments.trainer import trained
from experiments.trainer.config import TrainConfig
from experiments.trainer.history import read_run_history
from experiments.trainer.records import to_record
from experiments.trainer.run_dir import open_run_dir, recorded_flags
from experiments.trainer.trained import load
from lstm_jax.training import (
  Checkpoint,
  CheckpointError,
  list_checkpoints,
  read_checkpoint,
)
from tests.draws import worst
from tests.patterns import exact


@pytest.mark.parametrize("read", [load, read_run_history])
def test_a_config_that_cannot_be_read_is_named(read, tmp_path):
  """Several runs may be read: the error must say whose cell is missing."""
  record = to_record(TrainConfig()) | {"cell": "nowhere"}
  (tmp_path / "config.json").write_text(json.dumps(record))
  message = f"^{exact(tmp_path)}/config.json: cell .* no module nowhere"
  with pytest.raises(ValueError, match=message):
    read(tmp_path)


def test_a_config_that_lacks_a_flag_is_of_another_version(finished, config):
  path = finished / "config.json"
  record = json.loads(path.read_text())
  del record["tied"]
  path.write_text(json.dumps(record))
  reason = "config.json lacks tied, as that of another version"
  message = f"^there is no run in {exact(finished)}: {reason}$"
  with pytest.raises(ValueError, match=message):
    load(finished)
  message = (
    f"^{exact(finished)} is not a run of this version and not empty: {reason}"
  )
  with (
    pytest.raises(ValueError, match=message),
    open_run_dir(recorded_flags(config), {"corpus_sha256": ""}),
  ):
    pass


@pytest.mark.parametrize(
  ("name", "value", "reason"),
  [
    ("model", None, "'model'"),
    ("tokenizer", {"symbols": None}, "can only join an iterable"),
    ("model", {}, "'cell'"),
    ("val_loss", "1.5", "val_loss must be a number, got '1.5'"),
  ],
)
def test_a_checkpoint_that_describes_no_model_is_an_error_that_says_so(
  name, value, reason, finished, monkeypatch
):
  def read(checkpoints):
    found = read_checkpoint(checkpoints, 47)
    description = found.description | {name: value}
    if value is None:
      del description[name]
    return found._replace(description=description)

  monkeypatch.setattr(trained, "_best_checkpoint", read)
  message = (
    f"^the checkpoint in {exact(finished)}/checkpoints describes no model: "
  )
  with pytest.raises(CheckpointError, match=f"{message}{reason}$"):
    load(finished)


@pytest.mark.parametrize("progress", [None, {"best": 5}, {"best": [1.5, "1"]}])
def test_a_best_checkpoint_that_is_no_step_is_named_as_missing(
  progress, finished, monkeypatch
):
  def read(*_):
    return Checkpoint(47, {"progress": progress})

  monkeypatch.setattr(trained, "read_checkpoint", read)
  with pytest.raises(CheckpointError, match="checkpoints/47 names no best one"):
    load(finished)


@pytest.fixture
def checkpoints(finished):
  """The checkpoints of a finished run: step 40, and step 47, the best."""
  assert list_checkpoints(finished / "checkpoints") == [40, 47]
  return finished / "checkpoints"


def before(monkeypatch, name, action):
  """Call `action` before each call of a function of `trained`."""
  function = getattr(trained, name)

  def hooked(*args):
    action()
    return function(*args)

  monkeypatch.setattr(trained, name, hooked)


@pytest.mark.everyday(1)
@pytest.mark.parametrize("name", ["read_checkpoint", "read_params"])
def test_the_newest_is_read_where_the_listed_checkpoint_is_deleted(
  name, checkpoints, tmp_path, monkeypatch, capfd
):
  """The run saves step 47 and deletes step 40 as that is about to be read."""
  expected = load(checkpoints.parent)
  (checkpoints / "47").rename(tmp_path / "47")
  assert load(checkpoints.parent).step == 40
  steps_seen = []

  def replace():
    steps_seen.append(list_checkpoints(checkpoints))
    if len(steps_seen) == 1:
      (tmp_path / "47").rename(checkpoints / "47")
      shutil.rmtree(checkpoints / "40")

  before(monkeypatch, name, replace)
  trained = load(checkpoints.parent)
  assert steps_seen[0] == [40] and steps_seen[1] == [47]
  assert trained.step == 47
  assert worst(trained.params, expected.params) == 0
  assert capfd.readouterr().err == ""


def test_reading_is_repeated_while_a_run_replaces_its_checkpoints(
  checkpoints, monkeypatch
):
  """The newest checkpoint is still listed, but its files are gone.

  The lock says that a run is writing. Here the same files come back, where a
  run would have written another checkpoint.
  """
  monkeypatch.setattr(trained, "PAUSE", 0.0)
  (checkpoints.parent / "lock").write_text("1")
  shutil.rmtree(checkpoints / "40")
  hidden = checkpoints.parent / "hidden"
  calls = []

  def hide_and_restore():
    calls.append(None)
    if len(calls) == 1:
      (checkpoints / "47/params").rename(hidden)
    elif len(calls) == 2:
      hidden.rename(checkpoints / "47/params")

  before(monkeypatch, "read_params", hide_and_restore)
  assert load(checkpoints.parent).step == 47


def test_checkpoints_that_are_always_replaced_are_an_error_that_says_so(
  checkpoints, monkeypatch
):
  monkeypatch.setattr(trained, "PAUSE", 0.0)

  def replace():
    newest = list_checkpoints(checkpoints)[-1]
    (checkpoints / f"{newest}").rename(checkpoints / f"{newest + 1}")

  before(monkeypatch, "read_checkpoint", replace)
  with pytest.raises(CheckpointError, match="before the run that is training"):
    load(checkpoints.parent)


def test_a_damaged_or_missing_checkpoint_is_an_error_also_while_a_run_trains(
  checkpoints, monkeypatch
):
  monkeypatch.setattr(trained, "PAUSE", 0.0)
  (checkpoints.parent / "lock").write_text("1")
  shutil.rmtree(checkpoints / "47/params")
  with pytest.raises(CheckpointError, match="47 cannot be read"):
    load(checkpoints.parent)
  shutil.rmtree(checkpoints)
  with pytest.raises(CheckpointError, match="holds no checkpoint"):
    load(checkpoints.parent)
