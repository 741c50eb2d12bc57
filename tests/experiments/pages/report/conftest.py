"""The page of `experiments.report`, opened in a browser."""

import io
import json
import shutil

import pytest
from rich.console import Console

from experiments import report
from experiments.report import ReportConfig
from tests.experiments.pages.browser import viewing
from tests.experiments.pages.explored import HOSTILE


@pytest.fixture(scope="session")
def directories(trained_runs, tmp_path_factory):
  """Return run directories, with markup in a sample, config.json, a name."""
  base = tmp_path_factory.mktemp("report")
  names = {"lstm": "lstm", "rnn": f"<b>{'long' * 20}<b>"}
  for name, config in trained_runs.items():
    shutil.copytree(config.job.run, base / names[name])
  directory = base / names["rnn"]
  samples = (directory / "samples.txt").read_text(encoding="utf-8")
  # The sample before the first training step is followed by markup.
  head, *rest = samples.split("=== step 10,")
  (directory / "samples.txt").write_text(
    "=== step 10,".join([f"{head.rstrip()}{HOSTILE}\n\n", *rest]), "utf-8"
  )
  record = json.loads((directory / "config.json").read_text())
  record["device"] = HOSTILE
  (directory / "config.json").write_text(json.dumps(record))
  return [base / name for name in names.values()]


@pytest.fixture(scope="session")
def page(directories):
  path = directories[0].parent / "report.html"
  config, console = ReportConfig(str(path)), Console(file=io.StringIO())
  return report.run([*map(str, directories)], config, console).path


@pytest.fixture
def opened(chromium, page):
  with viewing(chromium, page, width=1000):
    yield chromium
