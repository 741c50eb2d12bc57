"""A run is loaded: while it trains, for an ensemble, or to start another."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from experiments import train
from experiments.trainer import trained
from experiments.trainer.distillation import weights_sha256
from experiments.trainer.history import read_run_history
from experiments.trainer.logger import initial_state
from experiments.trainer.records import replace
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
  Checkpoint,
  CheckpointError,
  list_checkpoints,
)
from tests.draws import worst
from tests.experiments.conftest import VERSE, edit_config
from tests.experiments.trainer.resuming import read_rows, stop_at
from tests.patterns import exact


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


@pytest.mark.parametrize("read", [load, read_run_history])
def test_a_config_that_cannot_be_used_is_named(read, finished):
  """Several runs may be read: the error must say whose cell is missing."""
  edit_config(finished, cell="nowhere")
  message = rf"^{exact(finished)}/config.json: cell .* no module nowhere"
  with pytest.raises(ValueError, match=message):
    read(finished)


def test_a_checkpoint_of_another_model_than_the_configuration_is_refused(
  finished, config, monkeypatch
):
  edit_config(finished, hidden_size=13)
  message = "hidden_size is 12 in the checkpoint and 13 in config.json$"
  with pytest.raises(ValueError, match=message):
    load(finished)
  monkeypatch.setattr(
    trained, "read_checkpoint", lambda *_: Checkpoint(47, {"val_loss": 1.0})
  )
  with pytest.raises(CheckpointError, match=r"describes no model: 'model'$"):
    load(finished)
  path = finished / "config.json"
  record = json.loads(path.read_text())
  del record["tied"]
  path.write_text(json.dumps(record))
  reason = "config.json lacks tied, as that of another version"
  with pytest.raises(ValueError, match=reason):
    load(finished)
  with (
    pytest.raises(ValueError, match=reason),
    open_run_dir(recorded_flags(config), {"corpus_sha256": ""}),
  ):
    pass


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
  moves = [(checkpoints / "47/params", checkpoints.parent / "hidden")]
  moves += [moves[0][::-1]]
  before(monkeypatch, "read_params", lambda: moves and os.rename(*moves.pop(0)))
  assert load(checkpoints.parent).step == 47
  assert moves == []
  # A checkpoint that stays damaged is an error, and so is a missing one.
  shutil.rmtree(checkpoints / "47/params")
  with pytest.raises(CheckpointError, match="47 cannot be read"):
    load(checkpoints.parent)
  shutil.rmtree(checkpoints)
  with pytest.raises(CheckpointError, match="holds no checkpoint"):
    load(checkpoints.parent)


@pytest.mark.parametrize(
  ("what", "change"),
  [
    ("the corpus", {"corpus_sha256": "another"}),
    ("the vocabulary", {"tokenizer": CharTokenizer("ab")}),
    *((f"--{split}_fraction", 0.3) for split in ("val", "test", "dev")),
  ],
)
def test_the_members_of_an_ensemble_share_corpus_vocabulary_and_splits(
  what, change, finished, monkeypatch
):
  one = load(finished)
  same = one._replace(config=replace(one.config, min_count=3))
  if what.startswith("--"):
    change = {"config": replace(one.config, **{what[2:]: change})}
  runs = {"one": one, "same": same, "other": one._replace(**change)}
  monkeypatch.setattr(trained, "load", lambda path, _: runs[path.name])
  assert load_members([Path("one"), Path("same")], "best") == [one, same]
  with pytest.raises(ValueError, match=f"{what} of other differs from that"):
    load_members([Path("one"), Path("same"), Path("other")], "best")


def test_a_run_may_start_from_weights_that_were_not_evaluated(
  student, finished, console
):
  pretrained = load(finished)._replace(val_loss=None, step=5)
  titles = []
  logger = SimpleNamespace(
    resume=lambda restored: None,
    sample_during_training=lambda title, params: titles.append(title),
  )
  opened, setup = OpenedRun(finished, resuming=False), make_setup(student)
  state = initial_state(setup, logger, console, opened, pretrained)
  assert worst(state.params, pretrained.params) == 0
  assert titles == [f"step 0, epoch 0.0: those of {finished}, step 5"]
  assert console.file.getvalue() == f"weights     {titles[0][19:]}\n"


@pytest.mark.parametrize(
  ("name", "here", "changes"),
  [
    ("hidden_size", "13", {"hidden_size": 13}),
    ("embedding_size", "5", {"embedding_size": 5}),
    ("num_layers", "2", {"num_layers": 2}),
    ("cell", "'gru'", {"cell": gru}),
    ("tied", "True", {"tied": True, "embedding_size": 12}),
    ("tokenizer", "'word'", {"tokenizer": "word"}),
    ("val_fraction", "0.3", {"val_fraction": 0.3}),
    ("there is no run in nowhere: no", "", {"init_from": "nowhere"}),
  ],
)
def test_the_weights_of_another_model_are_refused(
  name, here, changes, student, console
):
  must = f"{name} must be {here}, as in this run, got " if here else name
  with pytest.raises(ValueError, match=f"^--init_from.*: {must}") as error:
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
  path = Path(student.data.corpus)
  another = path.read_text()[::-1]
  path.write_text(text * 20, encoding="utf-8")
  message = f"^--init_from={student.init_from} has another voc.* {message}"
  with pytest.raises(ValueError, match=message):
    train.run(student, console)
  assert not Path(student.job.run).exists()
  # Another text of the same vocabulary may have other splits.
  path.write_text(another)
  found = read_pretrained(make_setup(replace(student, val_fraction=0.3)))
  expected = load(Path(student.init_from)).params
  assert worst(found.params, expected) == 0
