import json

import jax
import numpy as np
import pytest

from lstm_jax.language import ModelConfig, language_model
from lstm_jax.training import CheckpointError, read_params
from lstm_jax.training.checksum import array_checksums, find_damaged
from tests.processes import finish, free_port, start
from tests.training.sharded_checkpoints import B, H, V

SCRIPT = "tests.training.sharded_checkpoints"


def test_shards_have_the_checksums_of_their_bytes():
  w, b = np.arange(24.0).reshape(4, 6), np.arange(5.0)
  halves = {
    "w[0:2,0:6]": array_checksums({"w": w[:2]})["w"],
    "w[2:4,0:6]": array_checksums({"w": w[2:]})["w"],
    "b": array_checksums({"b": b})["b"],
  }
  assert find_damaged({"w": w, "b": b}, halves) is None
  assert find_damaged({"b": b}, halves) is None  # w is of another tree
  flipped = w.copy()
  flipped[3, 5] += 1
  assert find_damaged({"w": flipped, "b": b}, halves) == "w"
  swapped = {"w": np.concatenate([w[2:], w[:2]]), "b": b}
  assert find_damaged(swapped, halves) == "w"
  for entry in halves:
    others = {name: c for name, c in halves.items() if name != entry}
    assert find_damaged({"w": w, "b": b}, others) == entry[0]


def saved_and_read(directory, processes, devices):
  """Train, save and read in other processes, and check what they find."""
  port = free_port()
  results = finish(
    *(
      start(SCRIPT, directory, port, processes, index, devices=devices)
      for index in range(processes)
    )
  )
  for status, _, errors in results:
    assert status == 0, errors
  found = json.loads(results[0][1].splitlines()[-1])
  assert found["difference"] == found["placed"] == 0
  assert found["trained on"]
  assert found["kinds"] == ["ndarray"]
  # The rows of w_h, of the upper w_x and of the readout are split.
  matrices = 3 * 4 * H * H + H * V
  states = 2 * 2 * B * H  # h and c of two layers
  split = 8 * (4 * matrices + states)  # weights, their average, two moments
  expected = found["bytes"] - split + split // (processes * devices)
  assert found["bytes of a device"] == expected


@pytest.mark.programs
def test_a_state_in_shards_is_saved_and_read(tmp_path):
  saved_and_read(tmp_path, processes=1, devices=8)
  checksums = tmp_path / "3" / "checksums" / "metadata"
  stored = json.loads(checksums.read_text())
  shards = [name for name in stored if name.startswith("params.layers.1.w_h[")]
  assert len(shards) == 8
  # One device reads what eight have written; a shard without its checksum, or
  # with that of another, is damage.
  stored[shards[0]], stored[shards[1]] = stored[shards[1]], stored[shards[0]]
  checksums.write_text(json.dumps(stored))
  config = ModelConfig(hidden_size=H, num_layers=2, dtype=np.float64)
  like = jax.eval_shape(language_model(config, V).init, jax.random.key(0))
  message = r"damaged: params.layers.1.w_h is not what was written"
  with pytest.raises(CheckpointError, match=message):
    read_params(tmp_path, 3, like)


@pytest.mark.exhaustive
@pytest.mark.programs
def test_two_processes_write_a_state_together(tmp_path):
  saved_and_read(tmp_path, processes=2, devices=2)
