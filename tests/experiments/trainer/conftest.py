"""A run that was stopped, and one that was not."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from experiments.trainer.records import replace
from tests.experiments.conftest import as_in_a_test, copy_run
from tests.experiments.trainer.resuming import outcome, stop_at


@pytest.fixture
def undisturbed(finished_config):
  """What the run of `config` leaves if nothing stops it."""
  return outcome(Path(finished_config.job.run))


@pytest.fixture(scope="session")
def stopped_config(finished_config):
  """The run of `config`, stopped after step 33; tests copy it."""
  config = replace(finished_config, run=f"{finished_config.job.run}-stopped")
  with as_in_a_test():
    stop_at(33, config, Console(file=io.StringIO(), width=80))
  return config


@pytest.fixture
def stopped(stopped_config, config):
  """The run directory of `config`, whose run was stopped after step 33."""
  return copy_run(stopped_config, config)
