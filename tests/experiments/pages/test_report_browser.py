"""What docs/report.md says that its page shows, in a browser."""

import csv
import io
import json

import numpy as np
import pytest
from rich.console import Console

from experiments import report
from experiments.report import ReportConfig
from tests.experiments.pages import browser
from tests.experiments.pages.browser import number
from tests.experiments.pages.explored import HOSTILE
from tests.experiments.trainer.resuming import read_rows

pytestmark = [pytest.mark.programs, browser.NEEDED]
LOSSES = "train_loss", "val_loss"


def points_of(directory, name):
  """Return [(step, value, seconds), ...] of a run's rows that have a value.

  A row without seconds has those of the last row before it that has them.
  """
  points, seconds = [], 0
  for row in read_rows(directory):
    seconds = row.get("seconds", seconds)
    if name in row:
      points.append((row["step"], row[name], seconds))
  return points


def lines(chromium):
  """Return the points [x, y] of each line of the chart, in pixels."""
  return chromium.run(
    "return [...document.querySelectorAll('polyline')].map((line) =>"
    "[...line.points].map((p) => [p.x, p.y]))"
  )


@pytest.fixture
def runs(reported):
  """Return the directories of the runs on the page."""
  return reported[0]


@pytest.mark.parametrize("axis", ["training steps", "epochs", "seconds"])
@pytest.mark.parametrize("logarithmic", ["none", "both"])
def test_the_curves_are_the_losses_to_scale(axis, logarithmic, reporter, runs):
  """Both runs have one epoch, of equally many steps."""
  reporter.choose("axis", axis)
  reporter.choose("scale", logarithmic)
  curves = [points_of(run, name) for run in runs for name in LOSSES]
  pixels, values = [], []
  for line, curve in zip(lines(reporter), curves, strict=True):
    assert len(line) == len(curve)
    pixels += line
    values += [(p[2 if axis == "seconds" else 0], p[1]) for p in curve]
  values = np.log(values) if logarithmic == "both" else np.array(values)
  for k in (0, 1):
    order = np.argsort(values[:, k])
    found, expected = np.array(pixels)[order, k], values[order, k]
    share = (expected - expected[0]) / (expected[-1] - expected[0])
    length = found[-1] - found[0]
    assert length > 100 if k == 0 else length < -100  # the loss is upwards
    np.testing.assert_allclose(found, found[0] + share * length, atol=0.2)
  # Each number stands at its value. The last two texts are the titles.
  texts = reporter.run(
    "return [...document.querySelectorAll('#chart text:not(.name)')].map("
    "(t) => [t.textContent, +t.getAttribute('x'), +t.getAttribute('y')])"
  )
  assert [t for t, *_ in texts[-2:]] == [axis, "loss, nats per character"]
  assert len({text for text, *_ in texts}) > 4
  for text, x, y in texts[:-2]:
    at, name = (y - 4, "y") if x == 54 else (x, "x")
    place = reporter.run(f"return scale.{name}(args[0])", number(text))
    assert abs(at - place) < 0.01


def test_epochs_of_any_lengths_are_told_apart(reporter):
  steps = [0, 5, 10, 17.5, 25, 27.5, 30, 31]
  epochs = reporter.run(
    "return args[0].map((step) => epochsAt([10, 25, 30], step))", steps
  )
  assert epochs == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3]


def test_a_range_and_a_smoothing_are_chosen(reporter, runs):
  reporter.choose("smoothing", "0.5")
  found, sums, weights, smooth = lines(reporter), 0.0, 0.0, []
  for _, loss, _ in points_of(runs[0], "train_loss"):
    sums, weights = 0.5 * sums + loss, 0.5 * weights + 1
    smooth.append(sums / weights)
  own = [loss for _, loss, _ in points_of(runs[0], "val_loss")]
  for line, values in zip(found, (smooth, own), strict=False):
    at = reporter.run("return args[0].map(scale.y)", values)
    np.testing.assert_allclose([y for _, y in line], at, atol=0.1)
  reporter.choose("range", "0.5")
  end = max(s for run in runs for s, *_ in points_of(run, "train_loss"))
  assert [len(line) for line in lines(reporter)] == [
    sum(step >= end / 2 for step, *_ in points_of(run, name))
    for run in runs
    for name in LOSSES
  ]


def test_the_pointer_and_keys_read_off_the_values_of_the_files(reporter, runs):
  steps = sorted({s for f in runs for s, *_ in points_of(f, "train_loss")})

  def check(step):
    assert f"At training step {step}:" in reporter.text("status")
    for row, run in zip(reporter.table("#legend tr"), runs, strict=True):
      training, validation = (
        max(p for p in points_of(run, name) if p[0] <= step) for name in LOSSES
      )
      losses = [f"{training[1]:.4f}", f"{validation[1]:.4f}"]
      assert row == [run.name, *losses, f"{validation[0]}"]

  check(steps[-1])
  reporter.run("$('chart').focus()")
  for keys, step in (
    (["home"], 10),
    (["right", "right", "right", "left"], steps[2]),
    (["left", "left", "left"], 10),
    (["end"], steps[-1]),
  ):
    reporter.press(*keys)
    check(step)
  left, top = reporter.corner("chart")
  x = reporter.run("return scale.x(21)")  # the nearest step is 20
  for pointer in ("mouse", "touch"):
    reporter.press("home")
    reporter.click(left + x, top + 100, pointer)
    check(20)
  for quantity, name in (
    ("learning rate", "lr"),
    ("gradient norm", "grad_norm"),
  ):
    reporter.choose("quantity", quantity)
    reporter.press("end")
    curves = [points_of(run, name) for run in runs]
    assert list(map(len, lines(reporter))) == list(map(len, curves))
    rows = reporter.table("#legend tr")
    for row, curve in zip(rows, curves, strict=True):
      assert abs(number(row[1]) / curve[-1][1] - 1) < 6e-3


def test_a_run_has_one_color_and_its_name_and_can_be_hidden(reporter, runs):
  colors = reporter.run(
    "return [...document.querySelectorAll('polyline')].map("
    "(line) => line.style.stroke)"
  )
  assert colors == [f"var(--run{k})" for k in (0, 0, 1, 1)]
  names = reporter.run(
    "return [...document.querySelectorAll('text.name')].map((text) => ["
    "text.textContent.slice(0, 8), text.style.fill])"
  )
  assert dict(names) == {
    run.name[:8]: color for run, color in zip(runs, colors[::2], strict=True)
  }
  looks = "return [...Array(24).keys()].map((k) => color(k) + dash(k))"
  assert len(set(reporter.run(looks))) == 24
  for k, left in ((1, 2), (0, 0)):
    reporter.push("#legend input", k)
    assert len(lines(reporter)) == left
    assert reporter.table("#legend tr")[k][1:] == ["–", "–", "–"]
  assert reporter.text("status") == "All runs are hidden."
  reporter.push("#legend input")
  assert len(lines(reporter)) == 2


def test_the_csv_has_every_value_of_all_runs(reporter, runs):
  reporter.push("#legend input", 1)  # hides a run
  reporter.run("data.runs[0].name = 'a \"quoted\", name'")
  records = list(csv.DictReader(io.StringIO(reporter.run("return csv()"))))
  for run, name in zip(runs, ('a "quoted", name', runs[1].name), strict=True):
    rows = [row for row in records if row["run"] == name]
    steps = [int(row["step"]) for row in rows]
    assert steps == sorted(steps)
    for column in (*LOSSES, "lr", "grad_norm"):
      values = [
        (int(row["step"]), float(row[column]), float(row["seconds"]))
        for row in rows
        if row[column]
      ]
      assert values == points_of(run, column)


def test_the_samples_of_a_step_are_side_by_side(reporter, runs):
  shown = "#samples article"
  rows = reporter.table(shown)
  assert [row[0] for row in rows] == [run.name for run in runs]
  assert all(row[1].startswith("best checkpoint, step") for row in rows)
  assert reporter.text("evaluationname") == "At the end, from the best weights"
  reporter.choose("evaluation", "0")
  assert reporter.text("evaluationname") == "Before training"
  for (_, title, text), run in zip(reporter.table(shown), runs, strict=True):
    samples = (run / "samples.txt").read_text(encoding="utf-8")
    assert title == "untrained"
    assert samples.startswith(f"=== untrained ===\n{text}\n\n=== step 10")
  # Only the first run has a sample of step 20: the other shows its last one.
  reporter.choose("evaluation", "2")
  assert reporter.text("evaluationname") == "After training step 20"
  titles = [title.partition(",")[0] for _, title, _ in reporter.table(shown)]
  assert titles == ["step 20", "step 10"]


def test_the_differences_are_shown_and_markup_in_them_is_text(reporter):
  assert HOSTILE in reporter.text("differences")
  assert reporter.run("return document.querySelectorAll('main b').length") == 0


def test_what_a_run_that_has_begun_lacks_is_said(chromium, reported, tmp_path):
  directory = tmp_path / "begun"
  directory.mkdir()
  record = json.loads((reported[0][0] / "config.json").read_text())
  record["corpus"] = "nowhere.txt"
  (directory / "config.json").write_text(json.dumps(record))
  console = Console(file=io.StringIO())
  page = report.run([str(directory)], ReportConfig(), console).path
  with browser.viewing(chromium, page):
    assert chromium.text("status") == "The runs shown have no losses yet."
    missing = chromium.text("missing")
    assert "Not shown over epochs" in missing and "begun" in missing
    assert "No sample yet." in chromium.text("samples")
    assert chromium.text("nodifferences") == "There is one run."
    assert chromium.table("#legend tr") == [["begun", "–", "–", "–"]]
    chromium.choose("axis", "epochs")
    assert "is not known" in chromium.text("status")
