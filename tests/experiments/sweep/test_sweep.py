"""A recipe, and a sweep of four members of it."""

import pytest

from experiments.trainer.records import replace
from tests.experiments.sweep.sweeps import as_sweep


@pytest.fixture
def recipe(config):
  return replace(
    config, seed=4, ema_decay=0.9, output_dropout=0.2, eval_every=15
  )


@pytest.fixture
def many(recipe):
  """A sweep of four members: a rate that is given twice counts once."""
  return as_sweep(recipe, num_seeds=2, rate=(0.005, 0.03, 0.005))
