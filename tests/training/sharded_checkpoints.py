"""What tests/training/test_sharded_checkpoints.py starts in other processes.

  python -m tests.training.sharded_checkpoints TEST DIRECTORY MESH \
    PORT PROCESSES ID

In the test `saved_and_read`, the processes train together, on the mesh of all
their devices. They save the state while the training continues, and read it
again. In the test `full_disk`, the disk of the first process is full. Each
process prints a JSON object of what it finds.
"""

import errno
import json
import sys
import time
from itertools import islice, repeat
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax.language import ModelConfig, language_model, make_batches
from lstm_jax.training import (
  CheckpointError,
  CheckpointWriter,
  OptimizerConfig,
  checkpoint,
  gather,
  init_state,
  make_mesh,
  make_mesh_train_step,
  make_optimizer,
  parse_mesh,
  place,
  read_state,
  state_shardings,
  train,
)
from tests.draws import worst

V, H, B, T = 11, 16, 16, 4
TOKENS = np.arange(B * T * 3 + 1, dtype=np.int32) ** 2 % V


def device_bytes(tree):
  """Return the bytes of a tree's arrays on the first device here."""
  first = jax.local_devices()[0]
  return sum(
    shard.data.nbytes
    for leaf in jax.tree.leaves(tree)
    for shard in leaf.addressable_shards
    if shard.device == first
  )


def start(mesh):
  """Return (state before the first step, its shardings, train step)."""
  config = ModelConfig(hidden_size=H, num_layers=2, dtype=jnp.float64)
  model = language_model(config, V, groups=mesh.size)
  optimizer = make_optimizer(OptimizerConfig(), 100)
  params = model.init(jax.random.key(0))
  state = init_state(model, optimizer, params, B, averaged=True)
  shardings = state_shardings(mesh, state)
  step = make_mesh_train_step(
    mesh, model, optimizer, shardings=shardings, ema_decay=0.9
  )
  return place(state, shardings), shardings, step


def saved_and_read(directory, mesh):
  """Save a state while the training continues; compare it with what is read."""
  state, shardings, step = start(mesh)
  training = train(step, state, repeat(make_batches(TOKENS, B, T)))
  *_, (state, _) = islice(training, 5)
  expected = jax.tree.map(np.array, gather(state))
  # The checkpoints are named 3 and 4, whatever the number of training steps.
  writer = CheckpointWriter(directory)
  writer.save(3, state.params, {"note": "three"}, state=state)
  *_, (after, _) = islice(training, 5)  # donates the state while it is written
  writer.save(4, after.params, {"note": "four"}, state=after, best=3)
  writer.close()
  like = jax.eval_shape(lambda: expected)
  back = read_state(directory, 3, like)
  again = place(back, shardings)
  return {
    "difference": worst(back, expected),
    "trained on": worst(read_state(directory, 4, like), expected) > 0,
    "placed": worst(jax.tree.map(np.array, gather(again)), expected),
    "kinds": sorted({type(leaf).__name__ for leaf in jax.tree.leaves(back)}),
    "bytes of a device": device_bytes(again),
    "bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(expected)),
  }


def full_disk(directory, mesh):
  """Return the error of a save, and the seconds until it comes."""
  state, _, _ = start(mesh)
  full = OSError(errno.ENOSPC, "No space left on device")
  with mock.patch.object(checkpoint, "TIMEOUT", 5):
    writer = CheckpointWriter(directory)
  if jax.process_index() == 0:
    mock.patch.object(checkpoint, "sync_tree", side_effect=full).start()
  begin = time.monotonic()
  writer.save(1, state.params, {})
  try:
    writer.wait()
    message = "none"
  except CheckpointError as error:
    message = str(error)
  return {"error": message, "seconds": time.monotonic() - begin}


def main():
  name, directory, axes, port, processes, index = sys.argv[1:]
  jax.config.update("jax_enable_x64", True)
  if int(processes) > 1:
    jax.distributed.initialize(f"127.0.0.1:{port}", int(processes), int(index))
  test = {"saved_and_read": saved_and_read, "full_disk": full_disk}[name]
  found = test(Path(directory), make_mesh(parse_mesh(axes)))
  print(json.dumps(found), flush=True)


if __name__ == "__main__":
  main()
