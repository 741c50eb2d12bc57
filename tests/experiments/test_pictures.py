"""The pictures of docs/, taken of the runs that the pages speak of.

  LSTM_JAX_PICTURES=docs uv run pytest -m "" tests/experiments/test_pictures.py

writes them there; otherwise they are taken and thrown away.
"""

import os
import re
from pathlib import Path

import numpy as np
import pytest

from tests.experiments.pages import browser
from tests.experiments.pages.browser import text_of
from tests.experiments.pages.explored import Read
from tests.processes import ROOT, finish, start

pytestmark = [
  pytest.mark.programs,
  pytest.mark.exhaustive,
  pytest.mark.skipif(
    bool(browser.missing()), reason=f"{browser.missing()} is not installed"
  ),
]


@pytest.fixture
def pictures(tmp_path, monkeypatch):
  """The folder that the pictures are written to, of runs as users have them."""
  monkeypatch.setenv("XLA_FLAGS", "")
  return Path(os.environ.get("LSTM_JAX_PICTURES", tmp_path))


def flags(page):
  """Return the flags of the run that a page's picture is of."""
  text = (ROOT / "docs" / page).read_text("utf-8")
  return re.search(r"^The picture is of .*?\(`(.*?)`\)", text, re.M | re.S)[1]


def succeed(program, *arguments):
  (status, _, errors), *_ = finish(
    start(f"experiments.{program}", *arguments), timeout=300
  )
  assert status == 0, errors


def test_a_unit_that_follows_the_line_and_a_gradient_that_ends_with_it(
  chromium, tmp_path, pictures
):
  run = tmp_path / "run"
  succeed("train", f"--run={run}", "--quiet", *flags("explore.md").split())
  succeed("explore", f"--run={run}")
  found = Read(run / "explore.html")
  signals = found.header["layers"][0]["signals"]
  scores = next(s for s in signals if s["name"] == "c")["scores"][0]
  best = np.abs(scores).argmax()
  assert abs(scores[best]) > 0.7

  # The cursor in the seventh line, so that two line breaks are in its reach.
  breaks = [t for t, c in enumerate(found.text) if c == "\n"]
  place = breaks[5] + 5
  norms = found.paths(0)["c"][place]
  line, before = (
    norms[place - breaks[k] : place - breaks[k - 1]] for k in (5, 4)
  )
  assert np.median(line) > 10 * np.median(before)

  chromium.emulate(1100, 900)
  chromium.open(run / "explore.html")
  chromium.run("moveTo(args[0])", place)
  chromium.settle()
  assert f"Unit {best} of c" in text_of(chromium, "status")
  assert f"character {place + 1} of" in text_of(chromium, "status")
  chromium.screenshot(pictures / "explore.png")


def test_two_runs_side_by_side(chromium, tmp_path, pictures):
  runs = [tmp_path / cell for cell in ("lstm", "rnn")]
  given = flags("report.md").split()
  for run in runs:
    succeed("train", f"--run={run}", f"--cell={run.name}", "--quiet", *given)
  page = tmp_path / "report.html"
  succeed("report", *runs, f"--output={page}")
  chromium.emulate(820, 1150)
  chromium.open(page)
  for text, name in (("lstm", "legend"), ("rnn", "written")):
    assert text in text_of(chromium, name)
  assert text_of(chromium, "differences").split() == (
    ["flag", "lstm", "rnn", "cell", "lstm", "rnn"]
  )
  chromium.screenshot(pictures / "report.png")
