"""Train as `experiments.train` does, and stop by SIGTERM after an update.

  python -m tests.experiments.stopping CONFIGURATION STEP

The configuration is a JSON object of its fields; 0 never stops.
"""

import json
import sys

import pytest

from experiments import parts, train
from experiments.config import TrainConfig
from experiments.program import plain_console
from tests.experiments.lives import signal_at


def main():
  config, step = TrainConfig(**json.loads(sys.argv[1])), int(sys.argv[2])
  maker = parts, "make_mesh_update" if config.mesh else "make_update"
  with pytest.MonkeyPatch.context() as monkeypatch:
    if step:
      signal_at(monkeypatch, step, maker=maker)
    train.run(config, plain_console())


if __name__ == "__main__":
  main()
