"""Train as `experiments.train` does, and stop or measure it.

  python -m tests.experiments.trainer.stopping RECORD STEP

RECORD is the configuration as a JSON object. SIGTERM stops the run after step
STEP; with STEP 0, no signal is sent. With STEP -1, what the arrays on each
device take is printed among the lines of the training, as JSON objects:

  "when": "drawn", with initial weights that are not yet placed on the mesh;
          "created", with the train state; "saving" or "saved", a checkpoint
  "on": for each device, the bytes of all arrays that it holds
  "state": the bytes of the whole train state; if "drawn", of the weights alone

All devices are simulated on a CPU. The device that stands for the host is then
the last one; in the program itself, it is the first.
"""

import gc
import json
import sys

import jax
import pytest

from experiments import train
from experiments.cli import make_console
from experiments.trainer import display, logger, setup
from experiments.trainer.config import TrainConfig
from experiments.trainer.records import from_record
from lstm_jax.training import CheckpointWriter
from tests.experiments.trainer.resuming import signal_at


def report(when, state):
  """Print the bytes of a state, and of all live arrays by device."""
  gc.collect()
  buffers = {device: {} for device in jax.local_devices()}
  for array in jax.live_arrays():
    for shard in array.addressable_shards:
      # `shard.data` is a live array, too: its buffer is counted once.
      pointer = shard.data.unsafe_buffer_pointer()
      buffers[shard.device][pointer] = shard.data.nbytes
  on = [sum(sizes.values()) for sizes in buffers.values()]
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
  print(json.dumps({"when": when, "on": on, "state": size}), flush=True)


def measure(monkeypatch):
  """Have the training report its arrays."""
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

  monkeypatch.setattr(setup, "host_device", lambda: jax.devices()[-1])
  monkeypatch.setattr(setup, "place", reported_place)
  monkeypatch.setattr(train, "initial_state", reported_state)
  monkeypatch.setattr(CheckpointWriter, "save", reported_save)


def main():
  config = from_record(TrainConfig(), json.loads(sys.argv[1]))
  step, kind = int(sys.argv[2]), "mesh_" if config.job.mesh else ""
  with pytest.MonkeyPatch.context() as monkeypatch:
    # No test looks at the picture and the events.
    monkeypatch.setattr(logger, "draw_losses", lambda *given: None)
    monkeypatch.setattr(display, "summary", None)
    if step < 0:
      measure(monkeypatch)
    elif step:
      maker = setup, f"make_{kind}train_step"
      signal_at(monkeypatch, step, maker=maker)
    train.run(config, make_console())


if __name__ == "__main__":
  main()
