"""Untrained runs of several cells, and the three pages in a browser."""

import functools
import io
import json
import shutil

import jax
import pytest
from rich.console import Console

from experiments import explore, report
from experiments.pages import writer
from experiments.trainer.trained import load
from tests.experiments.pages import explored
from tests.experiments.pages.browser import viewing


@pytest.fixture(scope="session")
def make_run(tmp_path_factory):
  """Return a function: name of MODELS -> the run of an untrained model."""
  return explored.untrained_runs(tmp_path_factory.mktemp("untrained"))


@pytest.fixture(scope="session")
def typed_page(make_run):
  """Return a function: name of MODELS -> (run, page of `explore`)."""

  @functools.cache
  def make(name):
    config = explore.ExploreConfig(str(make_run(name)), length=300)
    page = explore.run(config, Console(file=io.StringIO())).path
    return make_run(name), page

  return make


@pytest.fixture(scope="session")
def writer_page(make_run, tmp_path_factory):
  """Return a function: name of MODELS -> (run, page that writes)."""
  base = tmp_path_factory.mktemp("writer")

  @functools.cache
  def make(name):
    run, page = make_run(name), base / f"{name}.html"
    with jax.numpy_dtype_promotion("standard"):  # the tests' own is "strict"
      text, _ = writer.make_page(load(run), explored.VERSE * 4, "a test")
    page.write_text(text, encoding="utf-8")
    return run, page

  return make


@pytest.fixture(scope="session")
def reported(trained_runs, tmp_path_factory):
  """Return (run directories, their report): markup in files and a name."""
  base = tmp_path_factory.mktemp("report")
  names = {"lstm": "lstm", "rnn": f"<b>{'long' * 20}<b>"}
  for name, config in trained_runs.items():
    shutil.copytree(config.job.run, base / names[name])
  directory = base / names["rnn"]
  samples = (directory / "samples.txt").read_text(encoding="utf-8")
  # The sample before the first training step is followed by markup.
  head, *rest = samples.split("=== step 10,")
  (directory / "samples.txt").write_text(
    "=== step 10,".join([f"{head.rstrip()}{explored.HOSTILE}\n\n", *rest]),
    "utf-8",
  )
  record = json.loads((directory / "config.json").read_text())
  record["device"] = explored.HOSTILE
  (directory / "config.json").write_text(json.dumps(record))
  directories = [base / name for name in names.values()]
  config = report.ReportConfig(str(base / "report.html"))
  console = Console(file=io.StringIO())
  return directories, report.run([*map(str, directories)], config, console).path


@pytest.fixture
def explorer(chromium, explored_page):
  """Return the browser with the page of `explored_run`."""
  with viewing(chromium, explored_page):
    yield chromium


@pytest.fixture
def reporter(chromium, reported):
  """Return the browser with the report of two runs."""
  with viewing(chromium, reported[1], width=1000):
    yield chromium


@pytest.fixture
def opened_writer(chromium, writer_page):
  """Return the browser with a page that writes, which has been paused."""
  with viewing(chromium, writer_page("lstm")[1]):
    chromium.run("writing.pause()")
    yield chromium
