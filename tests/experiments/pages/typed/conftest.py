"""A browser, and runs of untrained models."""

import pytest

from tests.experiments.pages.explored import untrained_runs


@pytest.fixture(scope="session")
def make_run(tmp_path_factory):
  """Return a function: name -> the run of an untrained model."""
  return untrained_runs(tmp_path_factory.mktemp("typed"))


@pytest.fixture
def chromium(chromium):
  """The browser with a wide window, in which a page must log no message."""
  chromium.emulate(1100, 900)
  chromium.errors()
  yield chromium
  assert chromium.errors() == []
