"""Copies of finished runs."""

import shutil

import pytest


@pytest.fixture
def copy(trained_runs, tmp_path):
  """Return the directory of a copy, and the configuration of the original.

  A test may change the copy, and not the original, which is `config.job.run`.
  """
  directory = tmp_path / "copy"
  shutil.copytree(trained_runs["lstm"].job.run, directory)
  return directory, trained_runs["lstm"]
