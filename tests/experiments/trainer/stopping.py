"""Train as `experiments.train` does, and stop by SIGTERM after an update.

  python -m tests.experiments.trainer.stopping CONFIGURATION STEP

The configuration is a JSON object of its fields; 0 never stops.
"""

import json
import sys

import pytest

from experiments import train
from experiments.cli import plain_console
from experiments.trainer import setup
from experiments.trainer.config import TrainConfig
from tests.experiments.trainer.lives import signal_at


def main():
  config, step = TrainConfig(**json.loads(sys.argv[1])), int(sys.argv[2])
  maker = setup, "make_mesh_train_step" if config.mesh else "make_train_step"
  with pytest.MonkeyPatch.context() as monkeypatch:
    if step:
      signal_at(monkeypatch, step, maker=maker)
    train.run(config, plain_console())


if __name__ == "__main__":
  main()
