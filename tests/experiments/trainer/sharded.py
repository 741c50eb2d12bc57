"""Train on a mesh, and print what the arrays on each device take.

  python -m tests.experiments.trainer.sharded RECORD

RECORD is the configuration as a JSON object. Among the lines of the training,
the module prints measurements, each a line with a JSON object:

  "when": "drawn", with initial weights that are not yet placed on the mesh;
          "created", with the train state; "saving" or "saved", a checkpoint
  "on": for each device, the bytes of all arrays that it holds
  "state": the bytes of the whole train state; if "drawn", of the weights alone

All devices are simulated on a CPU. The device that stands for the host is the
last one; in the program itself, it is the first.
"""

import gc
import json
import sys

import jax
import pytest

from experiments import train
from experiments.cli import make_console
from experiments.trainer import logger, setup
from experiments.trainer.config import TrainConfig
from experiments.trainer.records import from_record
from lstm_jax.training import CheckpointWriter


def bytes_on_devices():
  """Return the bytes of all live arrays, by device."""
  gc.collect()
  buffers = {device: {} for device in jax.local_devices()}
  for array in jax.live_arrays():
    for shard in array.addressable_shards:
      # `shard.data` is a live array, too: its buffer is counted once.
      pointer = shard.data.unsafe_buffer_pointer()
      buffers[shard.device][pointer] = shard.data.nbytes
  return [sum(sizes.values()) for sizes in buffers.values()]


def report(when, state):
  """Print a measurement: a line with a JSON object."""
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
  found = {"when": when, "on": bytes_on_devices(), "state": size}
  print(json.dumps(found), flush=True)


def main():
  config = from_record(TrainConfig(), json.loads(sys.argv[1]))
  initial_state, save = train.initial_state, CheckpointWriter.save
  place = setup.place

  def reported_place(tree, shardings):
    if isinstance(jax.tree.leaves(tree)[0], jax.Array):  # drawn, not restored
      report("drawn", tree)
    return place(tree, shardings)

  def reported_state(*arguments):
    state = initial_state(*arguments)
    report("created", state)
    return state

  def reported_save(self, *arguments, state, **options):
    report("saving", state)
    save(self, *arguments, state=state, **options)
    report("saved", state)

  with pytest.MonkeyPatch.context() as monkeypatch:
    # No test looks at the picture.
    monkeypatch.setattr(logger, "draw_losses", lambda *given: None)
    monkeypatch.setattr(setup, "host_device", lambda: jax.devices()[-1])
    monkeypatch.setattr(setup, "place", reported_place)
    monkeypatch.setattr(train, "initial_state", reported_state)
    monkeypatch.setattr(CheckpointWriter, "save", reported_save)
    train.run(config, make_console())


if __name__ == "__main__":
  main()
