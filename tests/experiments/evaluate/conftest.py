"""A finished run and the options of its evaluation."""

import io
import shutil

import pytest
from rich.console import Console

from experiments import train
from experiments.evaluate import EvaluateConfig
from experiments.trainer.records import replace
from experiments.trainer.trained import load
from tests.experiments.conftest import as_in_a_test, edit_config, make_config
from tests.experiments.pages import explored


@pytest.fixture
def options(run):
  return EvaluateConfig((str(run),), window=16, segment=4)


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory):
  """Return the directory of a finished run and its corpus; only to be read."""
  config = make_config(tmp_path_factory.mktemp("evaluate"))
  config = replace(config, num_epochs=3, learning_rate=0.03, quiet=True)
  with as_in_a_test():
    train.run(config, Console(file=io.StringIO()))
  return config.job.run, config.data.corpus


@pytest.fixture
def run(trained_run, tmp_path):
  """Return a copy of the finished run, with a corpus of its own."""
  directory, corpus = trained_run
  shutil.copytree(directory, tmp_path / "run")
  shutil.copy(corpus, tmp_path / "verse.txt")
  edit_config(tmp_path / "run", corpus=str(tmp_path / "verse.txt"))
  return tmp_path / "run"


@pytest.fixture
def other(run):
  """Another run on the corpus of `run`, untrained and of another size."""
  config = load(run).config
  directory = str(run.parent / "other")
  return explored.write_run(replace(config, run=directory, hidden_size=5))
