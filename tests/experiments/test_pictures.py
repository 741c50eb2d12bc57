"""Takes the pictures of docs/, from the runs that the documents describe.

  LSTM_JAX_PICTURES=docs uv run pytest -m "" tests/experiments/test_pictures.py

writes them there. Without the variable they go to a temporary directory. The
picture of write.md needs a trained run of the recipe tinyshakespeare-small,
whose directory LSTM_JAX_PICTURED_RUN names.
"""

import os
import re
from pathlib import Path

import numpy as np
import pytest

from tests.experiments.pages import browser
from tests.experiments.pages.explored import PageData
from tests.processes import ROOT, finish, start

pytestmark = [
  pytest.mark.programs,
  pytest.mark.exhaustive,
  browser.NEEDED,
]


@pytest.fixture
def pictures(tmp_path, monkeypatch):
  """Return the directory of the pictures.

  The runs are compiled as those of users, without the XLA_FLAGS of the tests.
  """
  monkeypatch.setenv("XLA_FLAGS", "")
  return Path(os.environ.get("LSTM_JAX_PICTURES", tmp_path))


def flags(page):
  """Return the flags of the run in the picture of a document."""
  text = (ROOT / "docs" / page).read_text("utf-8")
  pattern = r"^The picture (?:shows|is of) .*?\(`(.*?)`\)"
  return re.search(pattern, text, re.M | re.S)[1].split()


def succeed(program, *arguments):
  process = start(f"experiments.{program}", *arguments)
  ((status, _, errors),) = finish(process, timeout=300)
  assert status == 0, errors


def test_a_unit_tracks_the_line_and_the_gradient_fades_at_its_end(
  chromium, tmp_path, pictures
):
  run = tmp_path / "run"
  succeed("train", f"--run={run}", "--quiet", *flags("explore.md"))
  succeed("explore", f"--run={run}")
  data = PageData(run / "explore.html")
  features = [feature["name"] for feature in data.header["features"]]
  signals = data.header["layers"][0]["signals"]
  c = next(signal for signal in signals if signal["name"] == "c")
  scores = c["scores"][features.index("line position")]
  best = np.abs(scores).argmax()
  assert abs(scores[best]) > 0.7

  # The cursor is in the seventh line, so that the gradient path crosses two
  # line breaks.
  breaks = [t for t, letter in enumerate(data.text) if letter == "\n"]
  cursor = breaks[5] + 5
  norms = data.paths(0)["c"][cursor]  # norms[k]: k characters back
  nearer, farther = (  # the two lines before that of the cursor
    norms[cursor - breaks[k] : cursor - breaks[k - 1]] for k in (5, 4)
  )
  assert np.median(nearer) > 10 * np.median(farther)

  chromium.emulate(1100, 900)
  chromium.open(run / "explore.html")
  chromium.run("moveTo(args[0])", cursor)
  chromium.settle()
  assert f"Unit {best} of c" in chromium.text("status")
  assert f"character {cursor + 1} of" in chromium.text("status")
  chromium.screenshot(pictures / "explore.png")


def test_two_runs_side_by_side(chromium, tmp_path, pictures):
  runs = [tmp_path / cell for cell in ("lstm", "rnn")]
  shared = flags("report.md")
  for run in runs:
    succeed("train", f"--run={run}", f"--cell={run.name}", "--quiet", *shared)
  page = tmp_path / "report.html"
  succeed("report", *runs, f"--out={page}")
  chromium.emulate(820, 1300)
  chromium.open(page)
  for text, name in (("lstm", "legend"), ("rnn", "samples")):
    assert text in chromium.text(name)
  assert chromium.text("differences").split() == (
    ["flag", "lstm", "rnn", "cell", "lstm", "rnn"]
  )
  chromium.screenshot(pictures / "report.png")


@pytest.mark.skipif(
  "LSTM_JAX_PICTURED_RUN" not in os.environ,
  reason="LSTM_JAX_PICTURED_RUN names no run of tinyshakespeare-small",
)
def test_a_page_writes_a_scene(chromium, tmp_path, pictures):
  page = tmp_path / "page.html"
  run = f"--run={os.environ['LSTM_JAX_PICTURED_RUN']}"
  succeed("export", run, "--format=html", f"--out={page}")
  chromium.emulate(1200, 1600)
  chromium.open(page)
  chromium.run("""
    writing.pause();
    $("prompt").value = "ROMEO:";
    writing.restart();
    writing.pause();
    while (writing.track.length < 620) writing.advance();
    writing.show();
    writing.moveTo(250);
    writing.box.scrollTop = 0;
  """)
  chromium.settle()
  assert chromium.text("text").startswith("ROMEO:")
  assert "character 251 of 620" in chromium.text("status")
  chromium.screenshot(pictures / "write.png")
