"""Train as `experiments.train` does; stop by SIGTERM after step STEP.

  python -m tests.experiments.trainer.stopping RECORD STEP

RECORD is the configuration as a JSON object. With STEP 0, no signal is sent.
"""

import json
import sys

import pytest

from experiments import train
from experiments.cli import make_console
from experiments.trainer import display, logger, setup
from experiments.trainer.config import TrainConfig
from experiments.trainer.records import from_record
from tests.experiments.trainer.resuming import signal_at


def main():
  config = from_record(TrainConfig(), json.loads(sys.argv[1]))
  step = int(sys.argv[2])
  maker = (
    setup,
    "make_mesh_train_step" if config.job.mesh else "make_train_step",
  )
  with pytest.MonkeyPatch.context() as monkeypatch:
    # No test looks at the picture and the events.
    monkeypatch.setattr(logger, "draw_losses", lambda *given: None)
    monkeypatch.setattr(display, "summary", None)
    if step:
      signal_at(monkeypatch, step, maker=maker)
    train.run(config, make_console())


if __name__ == "__main__":
  main()
