"""What tests/training/test_sharded_checkpoints.py starts in other processes.

  python -m tests.training.sharded_checkpoints DIRECTORY PORT PROCESSES ID

Each process trains on its devices, with the weights split over all of them. It
saves the state while it trains on, and reads it again. The first process prints
a JSON object of what it finds.
"""

import json
import sys
from itertools import islice, repeat
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax.language import ModelConfig, language_model, make_batches
from lstm_jax.training import (
  CheckpointWriter,
  OptimizerConfig,
  gather,
  init_state,
  make_mesh,
  make_mesh_train_step,
  make_optimizer,
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


def saved_and_read(directory):
  """Return what is found."""
  count = len(jax.devices())
  mesh = make_mesh({"model": count})
  config = ModelConfig(hidden_size=H, num_layers=2, dtype=jnp.float64)
  model = language_model(config, V, groups=count)
  optimizer = make_optimizer(OptimizerConfig(), 100)
  params = model.init(jax.random.key(0))
  state = init_state(model, optimizer, params, B, averaged=True)
  shardings = state_shardings(mesh, optimizer, state)
  step = make_mesh_train_step(
    mesh, model, optimizer, shardings=shardings, ema_decay=0.9
  )
  epochs = repeat(make_batches(TOKENS, B, T))
  training = train(step, place(state, shardings), epochs)
  *_, (state, _) = islice(training, 5)
  expected = jax.tree.map(np.array, gather(state))
  writer = CheckpointWriter(directory)
  writer.save(3, state.params, {"note": "three"}, state=state)
  *_, (after, _) = islice(training, 5)  # donates the state while it is written
  writer.save(4, after.params, {"note": "four"}, state=after, best=3)
  writer.close()
  # A process that writes nothing may return before the first has renamed it.
  jax.experimental.multihost_utils.sync_global_devices("written")
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


def main():
  directory, port, processes, index = sys.argv[1:]
  jax.config.update("jax_enable_x64", True)
  if int(processes) > 1:
    jax.distributed.initialize(f"127.0.0.1:{port}", int(processes), int(index))
  found = saved_and_read(Path(directory))
  if jax.process_index() == 0:
    print(json.dumps(found))


if __name__ == "__main__":
  main()
