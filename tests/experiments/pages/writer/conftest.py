"""The page that writes, opened in a browser."""

import functools

import jax
import pytest

from experiments.pages import writer
from experiments.trainer.trained import load
from tests.experiments.pages.browser import viewing
from tests.experiments.pages.explored import VERSE, untrained_runs


@pytest.fixture(scope="session")
def make_page(tmp_path_factory):
  """Return a function: name of MODELS -> (run, page) of an untrained model."""
  base = tmp_path_factory.mktemp("writer")
  make_run = untrained_runs(base)

  @functools.cache
  def make(name):
    run, page = make_run(name), base / f"{name}.html"
    with jax.numpy_dtype_promotion("standard"):  # the tests' own is "strict"
      text, _ = writer.make_page(load(run), VERSE * 4, "a test")
    page.write_text(text, encoding="utf-8")
    return run, page

  return make


@pytest.fixture
def opened(chromium, make_page):
  with viewing(chromium, make_page("lstm")[1]):
    yield chromium
