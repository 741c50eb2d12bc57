"""The page of `experiments.report` in a browser."""

import csv
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
from tests.experiments.pages.browser import contrast, text_of
from tests.experiments.pages.explored import HOSTILE
from tests.experiments.pages.report.reading import choose, lines, points_of

pytestmark = [pytest.mark.programs, browser.NEEDED]


def table(chromium, name):
  """Return the texts of the cells of each row in a CSS selector's element."""
  return chromium.run(
    "return [...document.querySelectorAll(args[0] + ' tr')].map((row) =>"
    "[...row.children].map((cell) => cell.textContent))",
    name,
  )


def last(points, step):
  """Return the last of the points up to a training step."""
  return max(point for point in points if point[0] <= step)


@pytest.mark.exhaustive
def test_keys_read_off_the_losses_of_the_files(opened, directories):
  steps = sorted(
    {s for f in directories for s, *_ in points_of(f, "train_loss")}
  )
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
      training = last(points_of(directory, "train_loss"), step)
      validation = last(points_of(directory, "val_loss"), step)
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


def test_a_run_is_hidden_and_shown_again(opened):
  box = "document.querySelector('#legend tr:nth-child(2) input')"
  assert len(lines(opened)) == 4  # two losses of each run
  opened.run(f"{box}.click()")
  assert len(lines(opened)) == 2
  assert table(opened, "#legend")[1][1:] == ["–", "–", "–"]
  assert opened.run(f"return document.activeElement === {box}")
  opened.run(f"{box}.click()")
  assert len(lines(opened)) == 4


def test_the_csv_has_every_value_of_the_files(opened, directories):
  opened.run("$('legend').rows[1].querySelector('input').click()")  # hides it
  text = opened.run("return csv()")
  records = list(csv.DictReader(io.StringIO(text)))
  for directory in directories:
    rows = [row for row in records if row["run"] == directory.name]
    for name in ("train_loss", "val_loss", "lr", "grad_norm"):
      values = [
        (int(row["step"]), float(row[name])) for row in rows if row[name]
      ]
      assert values == [
        (step, loss) for step, loss, _ in points_of(directory, name)
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
  (left, top), (left2, top2) = opened.run(
    "return [...document.querySelectorAll('#samples article')].map((box) =>"
    "[box.getBoundingClientRect().left, box.getBoundingClientRect().top])"
  )
  assert left < left2 and top == top2
  choose(opened, "evaluation", "0")
  assert text_of(opened, "evaluationname") == "Before training"
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
  assert opened.run(running) == 4  # the page's three, and the shared head's
  assert opened.run("return document.querySelectorAll('main b').length") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_scrolls_in_one_direction_and_every_line_is_visible(
  opened, page, scheme
):
  opened.emulate(360, 740, scheme)
  opened.open(page)
  assert opened.run("return document.documentElement.scrollWidth") == 360
  # The body has 12 pixels of padding on each side.
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


def test_controls_have_names_and_tab_goes_through_them_to_the_chart(opened):
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
  assert text_of(chromium, "status") == "The runs shown have no losses yet."
  assert re.search("Not shown over epochs.*begun", text_of(chromium, "missing"))
  assert "No sample yet." in text_of(chromium, "samples")
  assert text_of(chromium, "nodifferences") == "There is one run."
  assert table(chromium, "#legend") == [["begun", "–", "–", "–"]]
  choose(chromium, "axis", "epochs")
  assert "is not known" in text_of(chromium, "status")
  assert chromium.errors() == []
  assert Path(path).parent == directory
