"""Checkpoints of arrays that are split over devices and processes."""

import json

import jax
import numpy as np
import pytest

from lstm_jax.language import ModelConfig, language_model
from lstm_jax.training import CheckpointError, read_params
from lstm_jax.training.checksum import (
  array_checksums,
  find_damaged,
  json_checksum,
)
from tests.processes import finish, free_port, start
from tests.training.sharded_checkpoints import B, H, V

SCRIPT = "tests.training.sharded_checkpoints"


def test_the_name_of_an_array_may_have_brackets():
  arrays = {"a[0]": np.arange(3.0), "b]": np.ones(2)}
  assert find_damaged(arrays, array_checksums(arrays)) is None
  assert find_damaged(arrays, {}) == "a[0]"


def test_the_checksum_of_json_does_not_depend_on_the_order_of_keys():
  first = json_checksum({"losses": [1.5, 2], 10: {"b": 1, "a": None}})
  assert json_checksum({"10": {"a": None, "b": 1}, "losses": [1.5, 2]}) == first
  assert json_checksum({"10": {"a": None, "b": 1}, "losses": [2, 1.5]}) != first


def test_shards_have_the_checksums_of_their_bytes():
  w, b = np.arange(24.0).reshape(4, 6), np.arange(5.0)
  halves = {
    "w[0:2,0:6]": array_checksums({"w": w[:2]})["w"],
    "w[2:4,0:6]": array_checksums({"w": w[2:]})["w"],
    "b": array_checksums({"b": b})["b"],
  }
  assert find_damaged({"w": w, "b": b}, halves) is None
  assert find_damaged({"b": b}, halves) is None  # w's checksums are ignored
  flipped = w.copy()
  flipped[3, 5] += 1
  assert find_damaged({"w": flipped, "b": b}, halves) == "w"
  swapped = {"w": np.concatenate([w[2:], w[:2]]), "b": b}
  assert find_damaged(swapped, halves) == "w"
  for entry in halves:
    others = {name: c for name, c in halves.items() if name != entry}
    assert find_damaged({"w": w, "b": b}, others) == entry.partition("[")[0]


def run(test, directory, mesh, processes, devices):
  """Run a test of SCRIPT; return what each process finds."""
  port = free_port()
  results = finish(
    *(
      start(SCRIPT, test, directory, mesh, port, processes, n, devices=devices)
      for n in range(processes)
    )
  )
  for status, _, errors in results:
    assert status == 0, errors
  return [json.loads(output.splitlines()[-1]) for _, output, _ in results]


def save_and_read(directory, mesh, processes, devices, split_over):
  """Train, save and read in other processes, and check what they find."""
  itemsize, copies = 8, 4  # the weights, their average, and Adam's two moments
  # The rows of w_h, of the upper w_x and of the readout are split.
  matrices = copies * itemsize * (3 * H * 4 * H + H * V)
  # h and c of two layers are split over all devices.
  states = itemsize * 2 * 2 * B * H
  for found in run("saved_and_read", directory, mesh, processes, devices):
    # As read, and as placed on the mesh again, the state is the one saved.
    assert found["difference"] == found["placed"] == 0
    assert found["trained on"]  # a state that was saved later differs
    assert found["kinds"] == ["ndarray"]
    expected = found["bytes"] - matrices - states
    expected += matrices // split_over + states // (processes * devices)
    assert found["bytes of a device"] == expected


@pytest.mark.exhaustive
@pytest.mark.programs
def test_a_state_in_shards_is_saved_and_read(tmp_path):
  save_and_read(tmp_path, "model:8", processes=1, devices=8, split_over=8)
  checksums = tmp_path / "3" / "checksums" / "metadata"
  stored = json.loads(checksums.read_text())
  shards = [name for name in stored if name.startswith("params.layers.1.w_h[")]
  assert len(shards) == 8
  config = ModelConfig(hidden_size=H, num_layers=2, dtype=np.float64)
  like = jax.eval_shape(language_model(config, V).init, jax.random.key(0))
  # One device reads what eight have written; a shard without its checksum, or
  # with that of another, is damage.
  first, second = shards[:2]
  swapped = stored | {first: stored[second], second: stored[first]}
  without = {name: stored[name] for name in stored if name != first}
  message = r"damaged: params.layers.1.w_h is not what was written"
  for changed in (swapped, without):
    checksums.write_text(json.dumps(changed))
    with pytest.raises(CheckpointError, match=message):
      read_params(tmp_path, 3, like)


@pytest.mark.exhaustive
@pytest.mark.programs
@pytest.mark.parametrize(
  ("mesh", "split_over"), [("model:4", 4), ("data:2,model:2", 2)]
)
def test_two_processes_write_a_state_together(mesh, split_over, tmp_path):
  save_and_read(tmp_path, mesh, processes=2, devices=2, split_over=split_over)


@pytest.mark.exhaustive
@pytest.mark.programs
def test_a_disk_that_is_full_for_one_process_is_an_error_of_both(tmp_path):
  first, second = run("full_disk", tmp_path, "model:2", processes=2, devices=1)
  assert first["error"].endswith("No space left on device")
  assert "cannot be written: " in second["error"]
  # They wait 5 s for each other in this test, and 300 s by default.
  assert max(first["seconds"], second["seconds"]) < 30
