"""The page of `experiments.report`, as a reader meets it in a browser."""

import io
import json
import re
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from experiments import report
from experiments.report import ReportConfig
from tests.experiments.pages import browser
from tests.experiments.pages.browser import text_of
from tests.experiments.pages.explored import HOSTILE
from tests.experiments.pages.test_explore_page import contrast

pytestmark = [
  pytest.mark.programs,
  pytest.mark.skipif(
    bool(browser.missing()), reason=f"{browser.missing()} is not installed"
  ),
]


@pytest.fixture(scope="module")
def directories(trained_runs, tmp_path_factory):
  """The runs' folders, with markup in a sample, a flag and a name."""
  base = tmp_path_factory.mktemp("report")
  names = {"lstm": "lstm", "rnn": f"<b>{'long' * 20}<b>"}
  for name, config in trained_runs.items():
    shutil.copytree(config.run, base / names[name])
  directory = base / names["rnn"]
  samples = (directory / "samples.txt").read_text(encoding="utf-8")
  head, *rest = samples.split("=== update 10,")
  (directory / "samples.txt").write_text(
    "=== update 10,".join([f"{head.rstrip()}{HOSTILE}\n\n", *rest]), "utf-8"
  )
  record = json.loads((directory / "config.json").read_text())
  record["device"] = HOSTILE
  (directory / "config.json").write_text(json.dumps(record))
  return [base / name for name in names.values()]


@pytest.fixture(scope="module")
def page(directories):
  path = directories[0].parent / "report.html"
  config = ReportConfig(tuple(map(str, directories)), str(path))
  return report.run(config, Console(file=io.StringIO())).path


@pytest.fixture
def opened(chromium, page):
  chromium.emulate(1000, 900)
  chromium.errors(), chromium.requests()
  chromium.open(page)
  yield chromium
  assert chromium.errors() == []
  # Of all that is asked for, only the page itself.
  assert set(chromium.requests()) == {page.resolve().as_uri()}


def table(chromium, name):
  """Return the text of a table body's cells."""
  return chromium.run(
    "return [...document.querySelectorAll(args[0] + ' tr')].map((row) =>"
    "[...row.children].map((cell) => cell.textContent))",
    name,
  )


def choose(chromium, name, value):
  chromium.run(
    "const e = document.getElementById(args[0]); e.value = args[1];"
    "e.dispatchEvent(new Event(e.type === 'range' ? 'input' : 'change'))",
    name,
    value,
  )
  chromium.settle()


def losses(directory, name):
  """Return [(step, loss, seconds), ...] of a run's rows."""
  text = (directory / "metrics.jsonl").read_text(encoding="utf-8")
  found, seconds = [], 0
  for row in map(json.loads, text.splitlines()):
    seconds = row.get("seconds", seconds)
    if name in row:
      found.append((row["step"], row[name], seconds))
  return found


def last(points, at):
  """Return the last of the points that are not after an update."""
  return max(point for point in points if point[0] <= at)


def test_keys_read_out_the_losses_that_the_files_have(opened, directories):
  steps = sorted({s for f in directories for s, *_ in losses(f, "loss")})
  opened.run("document.getElementById('chart').focus()")
  assert (
    opened.run("return getComputedStyle(document.activeElement).outlineStyle")
    == "solid"
  )

  def check(at):
    assert f"At update {at}:" in text_of(opened, "status")
    for row, directory in zip(
      table(opened, "#legend"), directories, strict=True
    ):
      training = last(losses(directory, "loss"), at)
      looked = last(losses(directory, "held_out"), at)
      wanted = [f"{training[1]:.4f}", f"{looked[1]:.4f}", f"{looked[0]}"]
      assert row == [directory.name, *wanted]

  check(steps[-1])
  opened.press("home")
  check(10)
  opened.press("right", "right", "right", "left")
  check(steps[2])
  opened.press("left", "left", "left")
  check(10)
  opened.press("end")
  check(steps[-1])


def test_the_pointer_reads_out_the_nearest_moment(opened, directories):
  left, top, wide = opened.run(
    "const box = document.getElementById('chart').getBoundingClientRect();"
    "return [box.left, box.top, box.width]"
  )
  end = max(step for f in directories for step, *_ in losses(f, "loss"))
  opened.click(left + 46 + (wide - 46 - 12) * 21 / end, top + 100)
  assert "At update 20:" in text_of(opened, "status")


@pytest.mark.parametrize(
  ("axis", "place"), [("updates", 0), ("epochs", 0), ("seconds", 2)]
)
def test_the_curves_lie_where_the_losses_are(axis, place, opened, directories):
  choose(opened, "axis", axis)
  lines = opened.run(
    "return [...document.querySelectorAll('polyline')].map((line) =>"
    "[...line.points].map((p) => [p.x, p.y]))"
  )
  points, wanted = [], []
  names = ("loss", "held_out")
  found = [
    losses(directory, name) for directory in directories for name in names
  ]
  for line, curve in zip(lines, found, strict=True):
    assert len(line) == len(curve)
    points += line
    wanted += [(point[place], point[1]) for point in curve]
  # A straight map from each figure to the picture, the loss upwards.
  for k in (0, 1):
    pairs = sorted(
      (want[k], point[k]) for want, point in zip(wanted, points, strict=True)
    )
    (low, start), (high, end) = pairs[0], pairs[-1]
    assert (end - start > 100) if k == 0 else (start - end > 100)
    for value, at in pairs:
      share = (value - low) / (high - low)
      assert abs(start + share * (end - start) - at) < 0.1


def test_less_is_shown_larger(opened, directories):
  choose(opened, "part", "0.5")
  end = max(step for f in directories for step, *_ in losses(f, "loss"))
  counts = opened.run(
    "return [...document.querySelectorAll('polyline')].map((line) =>"
    "line.points.length)"
  )
  assert counts == [
    sum(step >= end / 2 for step, *_ in losses(directory, name))
    for directory in directories
    for name in ("loss", "held_out")
  ]


def test_the_samples_stand_side_by_side_by_update(opened, directories):
  def shown():
    return opened.run(
      "return [...document.querySelectorAll('#written article')].map((box) =>"
      "[...box.children].map((e) => e.textContent))"
    )

  assert [row[0] for row in shown()] == [
    directory.name for directory in directories
  ]
  assert all(row[1].startswith("the best, of update") for row in shown())
  choose(opened, "moment", "0")
  assert text_of(opened, "momentname") == "Untrained"
  for (_, title, text), directory in zip(shown(), directories, strict=True):
    samples = (directory / "samples.txt").read_text(encoding="utf-8")
    assert title == "untrained"
    assert samples.startswith(f"=== untrained ===\n{text}\n\n=== update 10")
  # After 20 updates only the first run wrote: of the other the last is shown.
  choose(opened, "moment", "2")
  assert text_of(opened, "momentname") == "After update 20"
  titles = [title for _, title, _ in shown()]
  assert titles[0].startswith("update 20,")
  assert titles[1].startswith("update 10,")


def test_a_script_in_a_file_is_shown_and_never_runs(opened, page):
  assert HOSTILE not in page.read_text(encoding="utf-8")
  choose(opened, "moment", "0")
  assert HOSTILE in text_of(opened, "written")
  assert HOSTILE in text_of(opened, "differences")
  assert opened.run("return document.title") == "Training runs"
  running = "return document.querySelectorAll('script:not([type])').length"
  assert opened.run(running) == 1  # the page's own
  assert opened.run("return document.querySelectorAll('main b').length") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_scrolls_in_one_direction_and_every_line_is_seen(
  opened, page, scheme
):
  opened.emulate(360, 740, scheme)
  opened.open(page)
  assert opened.run("return document.documentElement.scrollWidth") == 360
  assert opened.run("return document.querySelector('svg').clientWidth") <= 336
  colours = opened.run("""
    const style = getComputedStyle(document.documentElement);
    return ["page", "ink", "soft", ...[0, 1, 2, 3, 4, 5, 6, 7].map(
      (k) => `run${k}`)].map((name) => style.getPropertyValue(`--${name}`));
  """)
  paper, *inks = (
    str([int(colour.strip()[k : k + 2], 16) for k in (1, 3, 5)])
    for colour in colours
  )
  assert len(set(inks)) == 10
  assert min(against(paper, ink) for ink in inks) >= 4.5


def against(paper, ink):
  """Return the contrast of two colours, by that of each with black."""
  low, high = sorted(contrast(colour, "#000") for colour in (paper, ink))
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
  opened.run("document.getElementById('axis').focus()")
  found = []
  for _ in range(2):
    opened.press("tab")
    found.append(opened.run("return document.activeElement.id"))
  assert found == ["part", "chart"]


def test_runs_of_which_nothing_is_known_yet_say_so(
  chromium, directories, tmp_path
):
  directory = tmp_path / "begun"
  directory.mkdir()
  record = json.loads((directories[0] / "config.json").read_text())
  record["corpus"] = "nowhere.txt"
  (directory / "config.json").write_text(json.dumps(record))
  console = Console(file=io.StringIO())
  path = report.run(ReportConfig((str(directory),)), console).path
  chromium.errors()
  chromium.open(path)
  assert text_of(chromium, "status") == "There is no loss yet."
  assert re.search("Not shown over epochs.*begun", text_of(chromium, "missing"))
  assert "Nothing yet." in text_of(chromium, "written")
  assert text_of(chromium, "same") == "There is one run."
  assert table(chromium, "#legend") == [["begun", "–", "–", "–"]]
  choose(chromium, "axis", "epochs")
  assert "is not known" in text_of(chromium, "status")
  assert chromium.errors() == []
  assert Path(path).parent == directory
