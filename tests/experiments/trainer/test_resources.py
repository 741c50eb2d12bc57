from pathlib import Path

import jax
import numpy as np

from experiments import train
from experiments.trainer.resources import process_size


def test_a_compiled_program_is_counted_once():
  program = jax.jit(lambda x: 3 * x + 1)
  before = process_size()["compilations"]
  for _ in range(2):
    program(np.ones(7, np.float32))
    assert process_size()["compilations"] == before + 1


def test_a_profile_traces_some_training_steps(config, console):
  train.run(config, console, trace_steps=2)
  (trace,) = Path(config.job.run).glob("profile/**/*.xplane.pb")
  assert trace.stat().st_size > 1000
