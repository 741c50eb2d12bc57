"""A dry run on a mesh whose devices have too little memory.

  python -m tests.experiments.trainer.fitting RECORD

RECORD is a configuration as JSON, and XLA_FLAGS sets the number of devices.
Each device has the memory that a training step needs with one sequence on every
device.
"""

import json
import sys

from experiments.cli import make_console
from experiments.trainer import memory
from experiments.trainer.config import TrainConfig
from experiments.trainer.records import from_record
from experiments.trainer.setup import make_setup

if __name__ == "__main__":
  config = from_record(TrainConfig(), json.loads(sys.argv[1]))
  setup = make_setup(config)
  devices, seq_len = setup.mesh.size, config.batching.seq_len
  # Bytes that one device needs in a training step of `devices` sequences. The
  # devices of a CPU share its memory: there is this much for each of them.
  limit = memory.footprint(setup, devices, seq_len).bytes
  memory.available_memory = lambda: limit * devices
  memory.dry_run(config, make_console())
