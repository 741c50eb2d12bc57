"""Copies of finished runs."""

import shutil

import pytest


@pytest.fixture
def copy(trained_runs, tmp_path):
  """Return a run that a test may change: its directory and configuration."""
  directory = tmp_path / "copy"
  shutil.copytree(trained_runs["lstm"].job.run, directory)
  return directory, trained_runs["lstm"]
