"""The page of `experiments.report` in a browser."""

import csv
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from experiments import report
from experiments.report import ReportConfig
from tests.experiments.pages import browser
from tests.experiments.pages.browser import text_of
from tests.experiments.pages.explored import HOSTILE
from tests.experiments.pages.test_explore_page import contrast
from tests.experiments.trainer.resuming import read_rows

pytestmark = [pytest.mark.programs, browser.NEEDED]


@pytest.fixture(scope="module")
def directories(trained_runs, tmp_path_factory):
  """Return run directories, with markup in a sample, a flag and a name."""
  base = tmp_path_factory.mktemp("report")
  names = {"lstm": "lstm", "rnn": f"<b>{'long' * 20}<b>"}
  for name, config in trained_runs.items():
    shutil.copytree(config.job.run, base / names[name])
  directory = base / names["rnn"]
  samples = (directory / "samples.txt").read_text(encoding="utf-8")
  head, *rest = samples.split("=== step 10,")
  (directory / "samples.txt").write_text(
    "=== step 10,".join([f"{head.rstrip()}{HOSTILE}\n\n", *rest]), "utf-8"
  )
  record = json.loads((directory / "config.json").read_text())
  record["device"] = HOSTILE
  (directory / "config.json").write_text(json.dumps(record))
  return [base / name for name in names.values()]


@pytest.fixture(scope="module")
def page(directories):
  path = directories[0].parent / "report.html"
  config, console = ReportConfig(str(path)), Console(file=io.StringIO())
  return report.run([*map(str, directories)], config, console).path


@pytest.fixture
def opened(chromium, page):
  chromium.emulate(1000, 900)
  chromium.errors(), chromium.requests()
  chromium.open(page)
  yield chromium
  assert chromium.errors() == []
  # The page requests nothing but itself.
  assert set(chromium.requests()) == {page.resolve().as_uri()}


def table(chromium, name):
  """Return the text of a table body's cells."""
  return chromium.run(
    "return [...document.querySelectorAll(args[0] + ' tr')].map((row) =>"
    "[...row.children].map((cell) => cell.textContent))",
    name,
  )


def choose(chromium, name, value):
  """Set the value of a menu or a slider."""
  chromium.run(
    "const e = document.getElementById(args[0]); e.value = args[1];"
    "e.dispatchEvent(new Event(e.type === 'range' ? 'input' : 'change'))",
    name,
    value,
  )
  chromium.settle()


def losses(directory, name):
  """Return [(step, loss, seconds), ...] of a run's rows."""
  points, seconds = [], 0
  for row in read_rows(directory):
    seconds = row.get("seconds", seconds)
    if name in row:
      points.append((row["step"], row[name], seconds))
  return points


def last(points, step):
  """Return the last of the points up to a training step."""
  return max(point for point in points if point[0] <= step)


@pytest.mark.exhaustive
def test_keys_read_off_the_losses_of_the_files(opened, directories):
  steps = sorted({s for f in directories for s, *_ in losses(f, "train_loss")})
  opened.run("document.getElementById('chart').focus()")
  assert (
    opened.run("return getComputedStyle(document.activeElement).outlineStyle")
    == "solid"
  )

  def check(step):
    assert f"At training step {step}:" in text_of(opened, "status")
    for row, directory in zip(
      table(opened, "#legend"), directories, strict=True
    ):
      training = last(losses(directory, "train_loss"), step)
      validation = last(losses(directory, "val_loss"), step)
      assert row == [
        directory.name,
        f"{training[1]:.4f}",
        f"{validation[1]:.4f}",
        f"{validation[0]}",
      ]

  check(steps[-1])
  opened.press("home")
  check(10)
  opened.press("right", "right", "right", "left")
  check(steps[2])
  opened.press("left", "left", "left")
  check(10)
  opened.press("end")
  check(steps[-1])


def test_the_pointer_reads_off_the_nearest_point(opened, directories):
  left, top, right = opened.run(
    "const box = document.getElementById('chart').getBoundingClientRect();"
    "return [box.left, box.top, scale.x(scale.high)]"
  )
  end = max(step for f in directories for step, *_ in losses(f, "train_loss"))
  opened.click(left + 52 + (right - 52) * 21 / end, top + 100)
  assert "At training step 20:" in text_of(opened, "status")


@pytest.mark.parametrize(
  ("axis", "index"), [("training steps", 0), ("epochs", 0), ("seconds", 2)]
)
def test_the_curves_are_the_losses_to_scale(axis, index, opened, directories):
  choose(opened, "axis", axis)
  lines = opened.run(
    "return [...document.querySelectorAll('polyline')].map((line) =>"
    "[...line.points].map((p) => [p.x, p.y]))"
  )
  points, values = [], []
  names = ("train_loss", "val_loss")
  curves = [
    losses(directory, name) for directory in directories for name in names
  ]
  for line, curve in zip(lines, curves, strict=True):
    assert len(line) == len(curve)
    points += line
    values += [(point[index], point[1]) for point in curve]
  # Both axes are linear, with the loss upwards.
  for k in (0, 1):
    pairs = sorted(
      (value[k], point[k]) for value, point in zip(values, points, strict=True)
    )
    (low, start), (high, end) = pairs[0], pairs[-1]
    assert (end - start > 100) if k == 0 else (start - end > 100)
    for value, pixel in pairs:
      fraction = (value - low) / (high - low)
      assert abs(start + fraction * (end - start) - pixel) < 0.1


def test_the_range_leaves_out_the_beginning(opened, directories):
  choose(opened, "range", "0.5")
  end = max(step for f in directories for step, *_ in losses(f, "train_loss"))
  counts = opened.run(
    "return [...document.querySelectorAll('polyline')].map((line) =>"
    "line.points.length)"
  )
  assert counts == [
    sum(step >= end / 2 for step, *_ in losses(directory, name))
    for directory in directories
    for name in ("train_loss", "val_loss")
  ]


def lines(chromium):
  """Return [x, y] of the points of each line of the chart, in pixels."""
  return chromium.run(
    "return [...document.querySelectorAll('polyline')].map((line) =>"
    "[...line.points].map((p) => [p.x, p.y]))"
  )


def test_a_logarithmic_axis_has_equal_lengths_for_equal_ratios(
  opened, directories
):
  choose(opened, "scale", "horizontal")
  (xs, *_) = [[x for x, _ in line] for line in lines(opened)]
  steps = [step for step, *_ in losses(directories[0], "train_loss")]
  low, high = np.log(steps[0]), np.log(max(steps))
  shares = (np.log(steps) - low) / (high - low)
  np.testing.assert_allclose(xs, xs[0] + shares * (xs[-1] - xs[0]), atol=0.1)


def test_a_vertical_logarithmic_axis_leaves_out_what_is_not_positive(opened):
  before = [[x for x, _ in line] for line in lines(opened)]
  choose(opened, "scale", "both")
  choose(opened, "scale", "vertical")
  assert [[x for x, _ in line] for line in lines(opened)] == before
  values = opened.run("return curves().map((curve) => curve.ys)")
  for line, ys in zip(lines(opened), values, strict=True):
    heights = np.array([y for _, y in line])
    logs = np.log(ys)
    expected = (logs - logs[0]) / (logs[1] - logs[0])
    found = (heights - heights[0]) / (heights[1] - heights[0])
    np.testing.assert_allclose(found, expected, atol=1e-2, rtol=1e-2)

  # The grid has powers of ten in equal steps.
  opened.run("data.runs[0].curves.grad_norm.value[0] = 1e-3;")
  choose(opened, "quantity", "gradient norm")
  opened.run("data.runs[0].curves.grad_norm.value[1] = 0; draw();")
  shown = lines(opened)
  assert len(shown[0]) == len(values[0]) - 1  # without the 0
  places = opened.run("return [1e-3, 1e-2, 1e-1].map(scale.y)")
  assert np.ptp(np.diff(places)) < 1e-6 and places[0] > places[1]
  assert opened.run("return scale.yTicks.includes(0.001)")


def test_smoothing_averages_the_training_loss_alone(opened, directories):
  before = lines(opened)
  choose(opened, "smoothing", "0.5")
  after = lines(opened)
  values = [loss for _, loss, _ in losses(directories[0], "train_loss")]
  sums = weights = 0.0
  for k, (value, (_, y)) in enumerate(zip(values, after[0], strict=True)):
    sums, weights = 0.5 * sums + value, 0.5 * weights + 1
    expected = opened.run("return scale.y(args[0])", sums / weights)
    assert abs(y - expected) < 0.1
    assert k == 0 or abs(sums / weights - value) > 1e-6
  assert "over 2 points" in text_of(opened, "smoothingname")
  # A validation loss keeps its value; the vertical axis may have changed.
  (_, loss, _), *_ = losses(directories[0], "val_loss")
  at = opened.run("return scale.y(args[0])", loss)
  assert abs(after[1][0][1] - at) < 0.1 and len(before) == len(after)


def test_a_run_is_hidden_and_shown_again(opened):
  box = "document.querySelector('#legend tr:nth-child(2) input')"
  assert len(lines(opened)) == 4
  opened.run(f"{box}.click()")
  assert len(lines(opened)) == 2
  assert table(opened, "#legend")[1][1:] == ["–", "–", "–"]
  assert opened.run(f"return document.activeElement === {box}")
  opened.run(f"{box}.click()")
  assert len(lines(opened)) == 4


def test_the_lines_are_named_at_their_ends_without_overlap(opened, directories):
  names = opened.run(
    "return [...document.querySelectorAll('text.name')].map((text) =>"
    "[text.textContent, text.getBBox().y, text.getBBox().height,"
    "text.getBBox().x + text.getBBox().width])"
  )
  assert {name[:8] for name, *_ in names} == {d.name[:8] for d in directories}
  (_, y0, height, _), (_, y1, *_) = sorted(names, key=lambda name: name[1])
  assert y1 - y0 >= 0.9 * height
  assert max(end for *_, end in names) <= opened.run(
    "return document.getElementById('chart').clientWidth"
  )


def test_the_learning_rate_and_the_gradient_norm_are_curves(
  opened, directories
):
  rows = [read_rows(directory) for directory in directories]
  for quantity, name in (
    ("learning rate", "lr"),
    ("gradient norm", "grad_norm"),
  ):
    choose(opened, "quantity", quantity)
    points = [len(line) for line in lines(opened)]
    assert points == [sum(name in row for row in run) for run in rows]
    assert quantity in text_of(opened, "losshead")
    # Dots are evaluations.
    dots = "return document.querySelectorAll('#chart circle').length"
    assert opened.run(dots) == 0


def test_a_logarithmic_axis_has_numbers_wherever_it_lies(opened):
  def log_ticks(low, high):
    return opened.run("return logTicks(args[0], args[1])", low, high)

  assert log_ticks(0.9, 60) == [1, 2, 5, 10, 20, 50]
  assert log_ticks(1e-5, 10) == [1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1, 10]
  assert log_ticks(1.25, 1.9) == [1.4, 1.6, 1.8]  # none of 1, 2 and 5
  scale = "return makeScale([{ xs: [0, 0], ys: [1, 2] }], 0, { x: true }, 9, 9)"
  assert opened.run(scale) is None  # 0 is on no logarithmic axis


def test_the_cursor_stays_where_it_is_as_the_chart_changes(opened):
  opened.run("document.getElementById('chart').focus()")
  opened.press("home", "right")
  before = text_of(opened, "status")
  choose(opened, "smoothing", "0.5")
  assert text_of(opened, "status") == before
  choose(opened, "quantity", "gradient norm")
  assert text_of(opened, "status") == before
  choose(opened, "smoothing", "0")
  opened.run("data.runs[0].curves.grad_norm.value[1] = 0")
  opened.run("data.runs[1].curves.grad_norm.value[1] = 0")
  choose(opened, "scale", "vertical")
  assert text_of(opened, "status") != before  # nothing is drawn there
  choose(opened, "axis", "epochs")
  assert opened.run("return cursor === positions.length - 1")


def test_a_number_on_an_axis_is_short(opened):
  numbers = [0, 1500, 0.25, 0.004, 1e-4, 10 / 26007]
  found = opened.run("return args[0].map(tickText)", numbers)
  assert found == ["0", "1,500", "0.25", "0.004", "1e−4", "3.85e−4"]


def test_an_empty_chart_says_why(opened):
  opened.run("for (const r of data.runs) r.curves.grad_norm.value.fill(0)")
  choose(opened, "quantity", "gradient norm")
  choose(opened, "scale", "vertical")
  assert text_of(opened, "status").startswith("No value is positive")
  choose(opened, "scale", "none")
  opened.run("for (const run of data.runs) run.curves.lr.step = []")
  opened.run("for (const run of data.runs) run.curves.lr.value = []")
  choose(opened, "quantity", "learning rate")
  choose(opened, "axis", "epochs")
  message = "The runs have no learning rate in their records."
  assert text_of(opened, "status") == message
  opened.run("for (const run of data.runs) run.epoch_ends = null")
  choose(opened, "quantity", "loss")
  assert "per epoch is not known" in text_of(opened, "status")


def test_the_csv_has_every_value_of_the_files(opened, directories):
  text = opened.run("return csv()")
  table = list(csv.DictReader(io.StringIO(text)))
  for directory in directories:
    rows = [row for row in table if row["run"] == directory.name]
    for name in ("train_loss", "val_loss", "lr", "grad_norm"):
      values = [
        (int(row["step"]), float(row[name])) for row in rows if row[name]
      ]
      assert values == [
        (step, loss) for step, loss, _ in losses(directory, name)
      ]


def test_the_samples_of_a_step_are_side_by_side(opened, directories):
  def shown():
    return opened.run(
      "return [...document.querySelectorAll('#samples article')].map((box) =>"
      "[...box.children].map((e) => e.textContent))"
    )

  assert [row[0] for row in shown()] == [
    directory.name for directory in directories
  ]
  assert all(row[1].startswith("best checkpoint, step") for row in shown())
  choose(opened, "evaluation", "0")
  assert text_of(opened, "evaluationname") == "Untrained"
  for (_, title, text), directory in zip(shown(), directories, strict=True):
    samples = (directory / "samples.txt").read_text(encoding="utf-8")
    assert title == "untrained"
    assert samples.startswith(f"=== untrained ===\n{text}\n\n=== step 10")
  # Only the first run has a sample of step 20: the other shows its last one.
  choose(opened, "evaluation", "2")
  assert text_of(opened, "evaluationname") == "After training step 20"
  titles = [title for _, title, _ in shown()]
  assert titles[0].startswith("step 20,")
  assert titles[1].startswith("step 10,")


def test_a_script_in_a_file_is_shown_and_never_runs(opened, page):
  assert HOSTILE not in page.read_text(encoding="utf-8")
  choose(opened, "evaluation", "0")
  assert HOSTILE in text_of(opened, "samples")
  assert HOSTILE in text_of(opened, "differences")
  assert opened.run("return document.title") == "Training runs"
  running = "return document.querySelectorAll('script:not([type])').length"
  assert opened.run(running) == 3  # the page's two, and the shared head's
  assert opened.run("return document.querySelectorAll('main b').length") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_scrolls_in_one_direction_and_every_line_is_visible(
  opened, page, scheme
):
  opened.emulate(360, 740, scheme)
  opened.open(page)
  assert opened.run("return document.documentElement.scrollWidth") == 360
  assert opened.run("return document.querySelector('svg').clientWidth") <= 336
  cut = "return [...document.querySelectorAll('.scroll')].map((box) =>"
  assert opened.run(f"{cut} box.scrollWidth - box.clientWidth)") == [0, 0, 0]
  colors = opened.run("""
    const style = getComputedStyle(document.documentElement);
    return ["page", "ink", "soft", ...[0, 1, 2, 3, 4, 5, 6, 7].map(
      (k) => `run${k}`)].map((name) => style.getPropertyValue(`--${name}`));
  """)
  page_color, *inks = (
    str([int(color.strip()[k : k + 2], 16) for k in (1, 3, 5)])
    for color in colors
  )
  assert len(set(inks)) == 10
  assert min(contrast_of(page_color, ink) for ink in inks) >= 4.5


def test_long_differences_are_wrapped(chromium, directories, tmp_path):
  runs = {"one": "x" * 400, "two": "several words " * 40}
  for name, long in runs.items():
    shutil.copytree(directories[0], tmp_path / name)
    path = tmp_path / name / "config.json"
    record = json.loads(path.read_text()) | {"device": long}
    path.write_text(json.dumps(record))
  config = ReportConfig(str(tmp_path / "page.html"))
  names = [str(tmp_path / name) for name in runs]
  page = report.run(names, config, Console(file=io.StringIO())).path
  chromium.emulate(1000, 900)
  chromium.open(page)
  hidden = chromium.run(
    "const box = document.getElementById('differences').parentElement;"
    "return box.scrollWidth - box.clientWidth"
  )
  assert hidden == 0


def contrast_of(*colors):
  """Return the contrast of two colors, from that of each with black."""
  low, high = sorted(contrast(color, "#000") for color in colors)
  return high / low


def test_everything_can_be_reached_by_keys_and_has_a_name(opened):
  unnamed = opened.run(
    """
    const all = "select, input, svg[role], [tabindex]";
    return [...document.querySelectorAll(all)].filter(
      (e) => !e.ariaLabel && !e.closest("label")
        && !e.hasAttribute("aria-labelledby")).map((e) => e.outerHTML);
    """
  )
  assert unnamed == []
  opened.run("document.getElementById('quantity').focus()")
  order = []
  for _ in range(6):
    opened.press("tab")
    order.append(opened.run("return document.activeElement.id"))
  assert order == ["axis", "scale", "range", "smoothing", "csv", "chart"]


def test_a_run_without_results_yet_is_shown_as_such(
  chromium, directories, tmp_path
):
  directory = tmp_path / "begun"
  directory.mkdir()
  record = json.loads((directories[0] / "config.json").read_text())
  record["corpus"] = "nowhere.txt"
  (directory / "config.json").write_text(json.dumps(record))
  console = Console(file=io.StringIO())
  path = report.run([str(directory)], ReportConfig(), console).path
  chromium.errors()
  chromium.open(path)
  assert text_of(chromium, "status") == "There are no losses yet."
  assert re.search("Not shown over epochs.*begun", text_of(chromium, "missing"))
  assert "No sample yet." in text_of(chromium, "samples")
  assert text_of(chromium, "nodifferences") == "There is one run."
  assert table(chromium, "#legend") == [["begun", "–", "–", "–"]]
  choose(chromium, "axis", "epochs")
  assert "is not known" in text_of(chromium, "status")
  assert chromium.errors() == []
  assert Path(path).parent == directory
