"""A run is loaded: while it trains, for an ensemble, or to start another."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from experiments import train
from experiments.trainer import trained
from experiments.trainer.config import TrainConfig
from experiments.trainer.distillation import weights_sha256
from experiments.trainer.history import read_run_history
from experiments.trainer.logger import initial_state
from experiments.trainer.records import replace, to_record
from experiments.trainer.run_dir import (
  OpenedRun,
  open_run_dir,
  recorded_flags,
)
from experiments.trainer.setup import make_setup
from experiments.trainer.trained import (
  cost,
  load,
  load_members,
  read_pretrained,
)
from lstm_jax import gru
from lstm_jax.language import CharTokenizer
from lstm_jax.training import (
  CheckpointError,
  list_checkpoints,
  read_checkpoint,
)
from tests.draws import worst
from tests.experiments.conftest import VERSE, edit_config
from tests.experiments.trainer.resuming import read_rows, stop_at
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


@pytest.mark.parametrize("name", ["model", "tokenizer", "val_loss"])
def test_a_checkpoint_that_describes_no_model_is_an_error_that_says_so(
  name, finished, monkeypatch
):
  def read(*args):
    found = read_checkpoint(*args)
    del found.description[name]
    return found

  monkeypatch.setattr(trained, "read_checkpoint", read)
  message = f"^the checkpoint in .*/checkpoints describes no model: '{name}'$"
  with pytest.raises(CheckpointError, match=message):
    load(finished)


def test_a_checkpoint_of_another_configuration_is_refused(finished):
  edit_config(finished, hidden_size=13)
  message = "hidden_size is 12 in the checkpoint and 13 in config.json$"
  with pytest.raises(ValueError, match=message):
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

  def replace_it():
    steps_seen.append(list_checkpoints(checkpoints))
    if len(steps_seen) == 1:
      (tmp_path / "47").rename(checkpoints / "47")
      shutil.rmtree(checkpoints / "40")

  before(monkeypatch, name, replace_it)
  found = load(checkpoints.parent)
  assert steps_seen[0] == [40] and steps_seen[1] == [47]
  assert found.step == 47
  assert worst(found.params, expected.params) == 0
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

  def replace_it():
    newest = list_checkpoints(checkpoints)[-1]
    (checkpoints / f"{newest}").rename(checkpoints / f"{newest + 1}")

  before(monkeypatch, "read_checkpoint", replace_it)
  with pytest.raises(CheckpointError, match="holds no checkpoint of step"):
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


@pytest.mark.parametrize(
  ("what", "changes"),
  [
    ("the corpus", {"corpus_sha256": "another"}),
    ("the vocabulary", {"tokenizer": CharTokenizer("ab")}),
    ("--val_fraction", {"val_fraction": 0.3}),
    ("--test_fraction", {"test_fraction": 0.3}),
    ("--dev_fraction", {"dev_fraction": 0.3}),
  ],
)
def test_the_members_of_an_ensemble_share_corpus_vocabulary_and_splits(
  what, changes, finished, monkeypatch
):
  one = load(finished)
  same = one._replace(config=replace(one.config, min_count=3))
  if what.startswith("--"):
    changes = {"config": replace(one.config, **changes)}
  runs = {"one": one, "same": same, "other": one._replace(**changes)}
  monkeypatch.setattr(trained, "load", lambda path, _: runs[path.name])
  assert load_members([Path("one"), Path("same")], "best") == [one, same]
  message = f"{what} of other differs from that of one$"
  with pytest.raises(ValueError, match=message):
    load_members([Path("one"), Path("same"), Path("other")], "best")


def test_the_seconds_of_an_ensemble_are_known_if_those_of_all_members_are(
  finished, finished_config
):
  result = json.loads((finished / "result.json").read_text())
  one, runs = load(finished), [finished, Path(finished_config.job.run)]
  size = sum(leaf.size for leaf in jax.tree.leaves(one.params))
  assert cost(runs, [one, one]) == {
    "members": 2,
    "parameters": 2 * size,
    "training_seconds": round(2 * result["seconds"], 3),
  }
  # result.json of a sweep has the seconds of all its members together.
  edit_config(finished, num_seeds=2)
  assert cost(runs, [one, one])["training_seconds"] is None
  (finished / "result.json").unlink()
  assert cost([finished], [one])["training_seconds"] is None


@pytest.fixture
def student(config, finished):
  """A run from the weights of `finished`, in another directory."""
  return replace(
    config, init_from=str(finished), run=f"{config.job.run}-next", seed=1
  )


def test_a_run_starts_from_the_weights_with_a_new_optimizer(student, finished):
  setup = make_setup(student)
  trained = load(finished)
  state = setup.make_state(read_pretrained(setup).params)
  assert worst(state.params, trained.params) == 0
  random = setup.make_state()
  assert worst(state.params, random.params) > 0.1
  assert int(state.step) == 0
  same = jax.tree.map(np.array_equal, state.opt_state, random.opt_state)
  assert all(jax.tree.leaves(same))
  # A run that is resumed, here the source itself, has weights of its own.
  again = replace(student, run=str(finished))
  assert read_pretrained(make_setup(again)) is None
  replaced = read_pretrained(make_setup(replace(again, overwrite=True)))
  assert worst(replaced.params, trained.params) == 0


@pytest.mark.parametrize(
  ("loss", "shown"),
  [(None, ""), (2.5, ", validation loss 2.5000 nats per character")],
)
def test_a_run_may_start_from_weights_that_were_not_evaluated(
  loss, shown, student, finished, console
):
  pretrained = load(finished)._replace(val_loss=loss, step=5)
  titles = []
  logger = SimpleNamespace(
    resume=lambda restored: None,
    sample_during_training=lambda title, params: titles.append(title),
  )
  opened, setup = OpenedRun(finished, resuming=False), make_setup(student)
  state = initial_state(setup, logger, console, opened, pretrained)
  assert worst(state.params, pretrained.params) == 0
  line = f"those of {finished}, step 5{shown}"
  assert titles == [f"step 0, epoch 0.0: {line}"]
  assert console.file.getvalue() == f"weights     {line}\n"


@pytest.mark.exhaustive
def test_a_run_records_where_its_weights_come_from_and_needs_them_once(
  student, finished, console
):
  step = load(finished).step
  directory = stop_at(33, student, console).directory
  record = json.loads((directory / "config.json").read_text())
  assert record["init_from"] == str(finished)
  assert record["init_from_step"] == step
  assert record["init_from_sha256"] == weights_sha256(load(finished))
  title = f"those of {finished}, step {step}, validation loss "
  assert f"weights     {title}" in console.file.getvalue()
  sample = read_run_history(directory).samples[0]
  assert (sample.step, "untrained" in sample.title) == (0, False)
  assert sample.title.startswith(f"step 0, epoch 0.0: {title}")
  # It has learnt already what the other run learnt first.
  first, of_the_other = read_rows(directory)[0], read_rows(finished)[0]
  assert first["train_loss"] < of_the_other["train_loss"] - 0.2
  shutil.rmtree(finished)
  assert train.run(student, console).stopped_by is None


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"hidden_size": 13}, "hidden_size must be 13, as in this run, got 12"),
    ({"embedding_size": 5}, "embedding_size must be 5, as in this run, got 4"),
    ({"num_layers": 2}, "num_layers must be 2, as in this run, got 1"),
    ({"cell": gru}, "cell must be 'gru', as in this run, got 'lstm'"),
    (
      {"tied": True, "embedding_size": 12},
      "tied must be True, as in this run, got False",
    ),
    ({"tokenizer": "word"}, "tokenizer must be 'word', as in this run, got 'c"),
    (
      {"val_fraction": 0.3},
      "val_fraction must be 0.3, as in this run, got 0.1",
    ),
    ({"init_from": "nowhere"}, "^--init_from: there is no run in nowhere: no "),
  ],
)
def test_the_weights_of_another_model_are_refused(
  changes, message, student, console
):
  with pytest.raises(ValueError, match=message) as error:
    train.run(replace(student, **changes), console)
  assert "\n" not in str(error.value)
  assert not Path(student.job.run).exists()


@pytest.mark.parametrize(
  ("text", "message"),
  [
    (VERSE.replace("S", "Z"), r"23 characters .*, got 23; .* \['S', 'Z'\]$"),
    (VERSE + "{|}~<>", r"29 .* \['<', '>', '\{', '\|', '\}'\]$"),
  ],
)
def test_the_weights_of_another_vocabulary_are_refused(
  text, message, student, console
):
  Path(student.data.corpus).write_text(text * 20, encoding="utf-8")
  with pytest.raises(ValueError, match=message) as error:
    train.run(student, console)
  assert str(error.value).startswith(f"--init_from={student.init_from} has ano")
  assert not Path(student.job.run).exists()


def test_with_another_text_the_splits_may_differ(student, finished):
  path = Path(student.data.corpus)
  path.write_text(path.read_text()[::-1])
  setup = make_setup(replace(student, val_fraction=0.3))
  found, trained = read_pretrained(setup), load(finished)
  assert worst(found.params, trained.params) == 0
