import re
from functools import partial
from threading import Event

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from lstm_jax.training import (
  CheckpointError,
  CheckpointWriter,
  has_state,
  list_checkpoints,
  read_checkpoint,
  read_params,
  read_state,
)
from tests.draws import worst
from tests.patterns import exact
from tests.training.small import MODEL, start, steps


def test_a_checkpoint_returns_what_was_saved(key, tmp_path):
  first, second = (MODEL.init(k) for k in jax.random.split(key))
  *_, (state, _) = steps(*start(key), 3)  # no array is zero any more
  writer = CheckpointWriter(tmp_path)
  writer.save(3, first, {"note": "first"})
  writer.save(8, second, {"note": "zwei → 2\n"}, state=state)
  writer.close()
  step, description = read_checkpoint(tmp_path)
  assert (step, description) == (8, {"note": "zwei → 2\n"})
  assert read_checkpoint(tmp_path, 3).description == {"note": "first"}
  params = read_params(tmp_path, 8, jax.eval_shape(MODEL.init, key))
  assert worst(params, second) == 0
  assert type(params) is type(second)
  back = read_state(tmp_path, 8, jax.eval_shape(lambda: state))
  assert worst(back, state) == 0
  assert jax.tree.structure(back) == jax.tree.structure(state)
  assert has_state(tmp_path, 8) and not has_state(tmp_path, 3)
  with pytest.raises(CheckpointError, match="/3 holds no state to resume from"):
    read_state(tmp_path, 3, jax.eval_shape(lambda: state))
  for step in (5, np.int64(7)):
    for read in (
      read_checkpoint,
      partial(read_params, like=params),
      partial(read_state, like=state),
    ):
      message = f"^{exact(tmp_path)} holds no checkpoint of step {step}$"
      with pytest.raises(CheckpointError, match=message):
        read(tmp_path, step)


def test_a_description_that_changes_after_save_is_stored_as_it_was(
  tmp_path, monkeypatch
):
  changed, write = Event(), ocp.JsonCheckpointHandler._save_fn

  async def write_later(*args):
    assert changed.wait(60)
    await write(*args)

  monkeypatch.setattr(ocp.JsonCheckpointHandler, "_save_fn", write_later)
  writer, description = CheckpointWriter(tmp_path), {"losses": [1.0]}
  writer.save(1, {"w": np.ones(2)}, description)
  description["losses"].append(2.0)
  changed.set()
  writer.close()
  assert read_checkpoint(tmp_path).description == {"losses": [1.0]}


def test_a_state_may_have_no_arrays(tmp_path):
  state = optax.sgd(0.1).init({"w": np.ones(2)})  # a tuple of empty states
  writer = CheckpointWriter(tmp_path)
  writer.save(1, {"w": np.ones(2)}, {}, state=state)
  writer.close()
  assert read_state(tmp_path, 1, state) == state


def test_a_directory_may_be_a_relative_string(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  directory, tree = "saved", {"w": np.ones(2)}
  writer = CheckpointWriter(directory)
  writer.save(1, tree, {}, state=tree)
  writer.close()
  assert list_checkpoints(directory) == [1]
  assert read_checkpoint(directory) == (1, {})
  assert has_state(directory, 1)
  for read in (read_params, read_state):
    assert worst(read(directory, 1, tree), tree) == 0


def test_numbers_are_read_as_arrays(tmp_path):
  tree = {"rate": 0.1, "count": 3, "done": True}
  writer = CheckpointWriter(tmp_path)
  writer.save(1, tree, {})
  writer.close()
  found = read_params(tmp_path, 1, tree)
  assert found == tree
  dtypes = {name: leaf.dtype for name, leaf in found.items()}
  assert dtypes == {"rate": np.float64, "count": np.int64, "done": np.bool}
  message = r"rate must be int64 \(\), got float64 \(\)$"
  with pytest.raises(CheckpointError, match=message):
    read_params(tmp_path, 1, tree | {"rate": 1})


def test_a_description_may_have_numbers_for_keys(tmp_path):
  writer = CheckpointWriter(tmp_path)
  params = {"w": np.ones(2)}
  writer.save(1, params, {"rates": {2: 0.1, 10: 0.2}})
  writer.close()
  assert read_checkpoint(tmp_path).description == {
    "rates": {"2": 0.1, "10": 0.2}
  }


def test_the_last_two_checkpoints_and_the_best_are_kept(key, tmp_path):
  params = MODEL.init(key)
  writer = CheckpointWriter(tmp_path)
  for step in (1, 2, 4, 6, 9):
    writer.save(step, params, {}, best=min(step, 2))
  writer.close()
  assert list_checkpoints(tmp_path) == [2, 6, 9]
  writer = CheckpointWriter(tmp_path)
  writer.delete_after(6)
  writer.save(7, params, {}, best=7)
  writer.wait()
  assert list_checkpoints(tmp_path) == [6, 7]
  for step in (8, 9, 10):
    writer.save(step, params, {}, best=7)
  writer.wait()
  assert list_checkpoints(tmp_path) == [7, 9, 10]
  writer.save(11, params, {})  # no best
  writer.close()
  assert list_checkpoints(tmp_path) == [10, 11]


def test_a_writer_saves_a_state_that_the_next_step_donates(key, tmp_path):
  update, state = start(key)
  expected = jax.tree.map(np.array, state)
  writer = CheckpointWriter(tmp_path)
  writer.save(0, state.params, {}, state=state)
  next(steps(update, state, 9))  # donates it, while it is written
  writer.close()
  back = read_state(tmp_path, 0, jax.eval_shape(lambda: expected))
  assert worst(back, expected) == 0


def test_a_checkpoint_not_above_the_newest_is_refused(key, tmp_path):
  writer = CheckpointWriter(tmp_path)
  writer.save(9, MODEL.init(key), {})
  newest = f"that of the newest checkpoint in {exact(tmp_path)}"
  for step in (9, 8):
    message = f"^step must be above 9, {newest}, got {step}$"
    with pytest.raises(CheckpointError, match=message):
      writer.save(step, MODEL.init(key), {})
  writer.close()


def test_a_checkpoint_that_another_program_wrote_is_not_overwritten(tmp_path):
  ours, theirs = CheckpointWriter(tmp_path), CheckpointWriter(tmp_path)
  theirs.save(5, {"a": np.ones(2)}, {"by": "them"})
  theirs.close()
  for step in (5, 4):
    with pytest.raises(
      CheckpointError, match=f"^step must be above 5, .*{step}$"
    ):
      ours.save(step, {"a": np.zeros(2)}, {"by": "us"})
  ours.close()
  assert read_checkpoint(tmp_path) == (5, {"by": "them"})


def test_a_new_writer_removes_an_unfinished_checkpoint_and_a_reader_does_not(
  tmp_path,
):
  tree = {"a": np.ones(2)}
  writer = CheckpointWriter(tmp_path)
  writer.save(1, tree, {})
  writer.close()
  unfinished = tmp_path / f"5{ocp.utils.TMP_DIR_SUFFIX}"  # of a killed program
  (unfinished / "params").mkdir(parents=True)
  read_checkpoint(tmp_path)
  read_params(tmp_path, 1, tree)
  assert unfinished.exists()  # another program may still write it
  writer = CheckpointWriter(tmp_path)
  writer.save(3, tree, {})
  writer.close()
  assert {path.name for path in tmp_path.iterdir()} == {"1", "3"}


def test_a_closed_writer_refuses_what_it_could_not_write(tmp_path):
  writer = CheckpointWriter(tmp_path)
  writer.save(1, {"a": np.ones(2)}, {})
  writer.close()
  writer.close()
  writer.wait()
  message = f"^the writer of {exact(tmp_path)} is closed$"
  for call in (
    lambda: writer.save(2, {"a": np.ones(2)}, {}),
    lambda: writer.delete_after(0),
  ):
    with pytest.raises(CheckpointError, match=message):
      call()
  assert list_checkpoints(tmp_path) == [1]


def test_arguments_that_cannot_be_saved_are_refused(tmp_path):
  writer = CheckpointWriter(tmp_path)
  x = np.ones(2)
  for step, tree, description, message in (
    (-1, {"a": x}, {}, "step must be an integer ≥ 0, got -1"),
    (1.5, {"a": x}, {}, "step must be an integer ≥ 0, got 1.5"),
    (True, {"a": x}, {}, "step must be an integer ≥ 0, got True"),
    (1, {"a": x}, None, "description must be a dictionary, got NoneType"),
    (1, {"a": x}, {"b": {2: 3, "2": 4}}, "keys of a .* must differ, got 2, 2$"),
    (1, {"a.b": x, "a": {"b": x}}, {}, "two arrays have the name params.a.b"),
    (1, {}, {}, "^params must not be an empty tree, got {}$"),
    (1, {"a": x[:0]}, {}, r"^params\.a must have .*, got shape \(0,\)$"),
    *(
      (1, {"a": leaf}, {}, rf"^params\.a must hold numbers of .*, got {kind}$")
      for leaf, kind in (
        ("x", "str"),
        (2**70, "int"),
        (np.array([None]), "object"),
        (np.longdouble(1), "float128"),
        (jax.random.key(0), "key<fry>"),
        (jax.ShapeDtypeStruct((2,), float), "ShapeDtypeStruct"),
      )
    ),
  ):
    with pytest.raises(ValueError, match=message):
      writer.save(step, tree, description)
  for empty in ({}, ()):
    message = f"^state must not be an empty tree, got {re.escape(str(empty))}$"
    with pytest.raises(ValueError, match=message):
      writer.save(1, {"a": x}, {}, state=empty)
  for wrong in (-1, 1.0, "1", True):
    message = f"must be an integer ≥ 0, got {wrong!r}$"
    with pytest.raises(ValueError, match=f"^best {message}"):
      writer.save(1, {"a": x}, {}, best=wrong)
    with pytest.raises(ValueError, match=f"^step {message}"):
      writer.delete_after(wrong)
  writer.save(1, {"a": x}, {})
  writer.close()
  # A directory whose name is another spelling of a number is no checkpoint.
  for name in ("007", "\u0663"):  # a three, in Arabic
    (tmp_path / name).mkdir()
  assert list_checkpoints(tmp_path) == [1]
