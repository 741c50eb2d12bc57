"""Checkpoints that cannot be read are errors of one line."""

import json
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
import tensorstore

from lstm_jax.language import ModelConfig, language_model
from lstm_jax.training import (
  CheckpointError,
  CheckpointWriter,
  has_state,
  list_checkpoints,
  read_checkpoint,
  read_params,
  read_state,
)
from lstm_jax.training.checkpoint import checkpoint_errors
from tests.draws import normal_like
from tests.patterns import exact
from tests.training.small import MODEL, V


def test_a_wrong_step_or_tree_is_not_reported_as_damage(tmp_path):
  writer, x = CheckpointWriter(tmp_path), np.ones(2)
  writer.save(8, {"a": {"b": x}}, {})
  writer.close()
  for step in ("8", 8.0, -1, True):
    message = rf"^step must be an integer ≥ 0, got {step!r}$"
    for read in (
      read_checkpoint,
      partial(read_params, like={}),
      partial(read_state, like={}),
      has_state,
    ):
      with pytest.raises(ValueError, match=message):
        read(tmp_path, step)
  with pytest.raises(
    ValueError, match=r"^two arrays have the name params\.a\.b:"
  ):
    read_params(tmp_path, 8, {"a": {"b": x}, "a.b": x})
  message = f"^the checkpoint {exact(tmp_path)}/8 is of another configuration: "
  message += r"params must be float64 \(2,\), got no such array$"
  with pytest.raises(CheckpointError, match=message):
    read_params(tmp_path, 8, x)
  message = r"params.a.b must be key<fry> \(\), got float64 \(2,\)$"
  with pytest.raises(CheckpointError, match=message):
    read_params(tmp_path, 8, {"a": {"b": jax.random.key(0)}})


def test_an_error_names_a_directory_that_cannot_be_read(tmp_path, monkeypatch):
  def forbidden(path, **options):
    raise PermissionError(13, "Permission denied", str(path))

  file = tmp_path / "file"
  file.write_text("no directory")
  message = f"^{exact(file)} cannot be read: Not"
  with pytest.raises(CheckpointError, match=message):
    read_checkpoint(file)
  with pytest.raises(NotADirectoryError):
    list_checkpoints(file)
  loop = tmp_path / "loop"
  loop.symlink_to(loop)
  for absent in tmp_path / "absent", file / "below", loop:
    assert list_checkpoints(absent) == []
  with monkeypatch.context() as patched:
    patched.setattr(Path, "stat", forbidden)
    for read in read_params, read_state:
      message = f"^the checkpoint {exact(tmp_path)}/1 cannot be read: "
      message += "Perm.*denied"
      with pytest.raises(CheckpointError, match=message):
        read(tmp_path, 1, {})
    for read in list_checkpoints, partial(has_state, step=1):
      with pytest.raises(PermissionError):
        read(tmp_path)
  monkeypatch.setattr(Path, "iterdir", forbidden)
  message = f"^{exact(tmp_path)} cannot be read: PermissionError: .*denied"
  with pytest.raises(CheckpointError, match=message):
    read_checkpoint(tmp_path)


@pytest.mark.parametrize(
  ("error", "reason"),
  [
    (AssertionError(), "AssertionError"),
    (KeyError("step"), "KeyError: 'step'"),
    (OSError("a: No space left [os_error_code='28']"), "No space left"),
    (OSError("a: No space left [b='c'] [os_error_code='28']"), "No space left"),
    (
      ValueError(
        'a: No space left [tensorstore_spec=\'{"b":[4],"c":true}\'] '
        "[os_error_code='28']"
      ),
      "No space left",
    ),
  ],
)
def test_an_error_of_a_checkpoint_has_a_reason(error, reason):
  with pytest.raises(CheckpointError) as raised, checkpoint_errors("No read"):
    raise error
  assert str(raised.value) == f"No read: {reason}"


def test_a_checkpoint_of_another_configuration_is_refused(key, tmp_path):
  writer = CheckpointWriter(tmp_path)
  writer.save(1, MODEL.init(key), {})
  writer.close()
  # MODEL has an embedding_size of 3 and a hidden_size of 5.
  for sizes, message in (
    (
      {"hidden_size": 6},
      r"layers.0.w_x must be float32 \(3, 24\), got float32 \(3, 20\)",
    ),
    (
      {"hidden_size": 5, "num_layers": 2},
      r"layers.1.w_x must be .*got no such array$",
    ),
  ):
    other = language_model(ModelConfig(embedding_size=3, **sizes), V)
    with pytest.raises(CheckpointError, match=message):
      read_params(tmp_path, 1, jax.eval_shape(other.init, key))
  fewer = jax.eval_shape(MODEL.init, key)._replace(readout=None)
  message = r"readout must be absent, got float32 \(5, 9\)$"
  with pytest.raises(CheckpointError, match=message):
    read_params(tmp_path, 1, fewer)


def test_a_folder_without_a_checkpoint_is_an_error_that_names_it(tmp_path):
  (tmp_path / "3").write_text("a file")
  for directory in (tmp_path, tmp_path / "missing"):
    with pytest.raises(
      CheckpointError, match=f"{exact(directory)} holds no checkpoint"
    ):
      read_checkpoint(directory)


@pytest.mark.everyday(1)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", ["truncated", "removed"])
@pytest.mark.parametrize(
  "pattern", ["8/description/metadata", "8/params/*.oc*", "8/params/_META*"]
)
def test_a_damaged_checkpoint_is_an_error_of_one_line(
  damage, pattern, key, tmp_path, garbage_collected
):
  writer = CheckpointWriter(tmp_path)
  writer.save(8, normal_like(key, MODEL.init(key)), {"note": "text"})
  writer.close()
  (path,) = tmp_path.glob(pattern)
  if damage == "removed":
    path.unlink()
  else:
    path.write_bytes(path.read_bytes()[:9])
  with pytest.raises(CheckpointError, match="cannot be read: ") as error:
    step, _ = read_checkpoint(tmp_path)
    read_params(tmp_path, step, jax.eval_shape(MODEL.init, key))
  assert "\n" not in str(error.value)


@pytest.fixture
def checksums(tmp_path):
  """Save a checkpoint; return its checksums, and a function that writes others.

  The test changes a checksum in place of the data that was saved: either way,
  the two no longer agree.
  """
  writer, w = CheckpointWriter(tmp_path), np.ones(2)
  writer.save(8, {"w": w}, {"note": "text"}, state={"v": w + 1})
  writer.close()
  path = tmp_path / "8" / "checksums" / "metadata"
  return json.loads(path.read_text()), (
    lambda changed: path.write_text(json.dumps(changed))
  )


def test_what_differs_from_its_checksum_or_has_none_is_damaged(
  checksums, tmp_path
):
  stored, write = checksums
  assert len(set(stored.values())) == len(stored) == 3
  for entry, name, read in (
    ("description", "its description", read_checkpoint),
    ("params.w", "params.w", partial(read_params, like={"w": np.ones(2)})),
    ("state.v", "state.v", partial(read_state, like={"v": np.ones(2)})),
  ):
    others = {key: x for key, x in stored.items() if key != entry}
    message = (
      f"^the checkpoint {exact(tmp_path)}/8 is damaged: {name} is not what was"
    )
    for changed in (others, stored | {entry: next(iter(others.values()))}):
      write(changed)
      with pytest.raises(CheckpointError, match=f"{message} written$"):
        read(tmp_path, 8)
    write(stored)
    read(tmp_path, 8)


def test_an_array_in_chunks_larger_than_itself_is_not_unpacked(tmp_path):
  writer, x = CheckpointWriter(tmp_path), np.ones(2)
  writer.save(8, {"a": x}, {})
  writer.close()
  assert np.array_equal(read_params(tmp_path, 8, {"a": x})["a"], x)
  store = tensorstore.KvStore.open(
    {"driver": "ocdbt", "base": f"file://{tmp_path}/8/params/"}
  ).result()
  settings = json.loads(store.read("a/.zarray").result().value)
  settings["chunks"] = [10**6]
  store.write("a/.zarray", json.dumps(settings)).result()
  message = rf"params\.a of shape \(2,\) is stored in chunks of \({10**6},\)"
  with pytest.raises(CheckpointError, match=message):
    read_params(tmp_path, 8, {"a": x})


@pytest.mark.parametrize(
  "place", ["8/_CHECKPOINT_METADATA", "7/params/manifest.ocdbt"]
)
def test_a_device_in_a_checkpoint_is_not_read(tmp_path, place):
  writer, x = CheckpointWriter(tmp_path), np.ones(2)
  for step in (7, 8):
    writer.save(step, {"a": x}, {})
  writer.close()
  (tmp_path / place).unlink()
  (tmp_path / place).symlink_to("/dev/zero")  # it would never end
  message = f"7 cannot be read: .*{place} is not a regular file$"
  with pytest.raises(CheckpointError, match=message):
    read_checkpoint(tmp_path, 7)
  if place.startswith("8"):
    with pytest.raises(CheckpointError, match="no checkpoint can be written"):
      CheckpointWriter(tmp_path)
