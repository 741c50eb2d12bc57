"""The numbers, names and colors of the chart of `experiments.report`."""

import csv
import io

import numpy as np
import pytest

from tests.experiments.pages import browser
from tests.experiments.pages.browser import text_of
from tests.experiments.pages.report.reading import choose, lines, points_of

pytestmark = [pytest.mark.programs, browser.NEEDED]


def numbers(chromium):
  """Check that the numbers of both axes stand at their values.

  Returns those of the vertical axis, and those of the horizontal one.
  """
  texts = chromium.run(
    "return [...document.querySelectorAll('#chart text:not(.name)')].map("
    "(t) => [t.textContent, t.getAttribute('x'), t.getAttribute('y')])"
  )
  *texts, _, _ = texts  # the titles
  values = [
    float(text.replace(",", "").replace("−", "-")) for text, *_ in texts
  ]
  xs, ys = chromium.run(
    "return [args[0].map(scale.x), args[0].map(scale.y)]", values
  )
  # Beside the vertical axis. A text's baseline is 4 pixels below its place.
  vertical = [float(x) == 54 for _, x, _ in texts]
  for text, x, y, is_y in zip(texts, xs, ys, vertical, strict=True):
    found, expected = (text[2], y + 4) if is_y else (text[1], x)
    assert abs(float(found) - expected) < 0.01, text
  return (
    [v for v, is_y in zip(values, vertical, strict=True) if is_y],
    [v for v, is_y in zip(values, vertical, strict=True) if not is_y],
  )


@pytest.mark.everyday(1)
@pytest.mark.parametrize("scale", ["none", "both"])
def test_each_number_of_an_axis_stands_at_its_value(opened, scale):
  choose(opened, "scale", scale)
  titles = "return [...document.querySelectorAll('#chart text:not(.name)')]"
  titles += ".slice(-2).map((text) => text.textContent)"
  for axis in ("training steps", "epochs", "seconds"):
    choose(opened, "axis", axis)
    assert opened.run(titles) == [axis, "loss, nats per character"]
    for each in numbers(opened):
      assert len(set(each)) == len(each) > 1


@pytest.mark.everyday(1)
@pytest.mark.parametrize("rate", [0.002, 0.03, 0.00035])
def test_the_numbers_beside_a_constant_learning_rate_differ(opened, rate):
  opened.run("for (const r of data.runs) r.curves.lr.value.fill(args[0])", rate)
  choose(opened, "quantity", "learning rate")
  ys, _ = numbers(opened)
  assert len(set(ys)) == len(ys) > 1
  left = "return Math.min(...[...document.querySelectorAll('#chart text')].map("
  assert opened.run(f"{left}(text) => text.getBBox().x))") >= 0  # not cut off


@pytest.mark.parametrize(
  ("scale", "value"),
  [
    ("none", "10 ** (8 * k - 5)"),  # of a run that diverges
    ("vertical", "10 ** (8 * k - 5)"),
    ("none", "2.5 + 1e-6 * k"),
  ],
)
def test_numbers_of_any_size_are_apart_and_not_cut_off(opened, scale, value):
  opened.run(
    "for (const run of data.runs)"
    " run.curves.grad_norm.value.forEach((_, k, values) => {"
    f" values[k] = {value}; }})"
  )
  choose(opened, "scale", scale)
  choose(opened, "quantity", "gradient norm")
  ys, _ = numbers(opened)
  assert len(set(ys)) == len(ys) > 1
  places = opened.run(
    "return [...document.querySelectorAll('#chart text[x=\"54\"]')].map("
    "(text) => [text.getBBox().x, text.getBBox().y, text.getBBox().height])"
  )
  assert min(x for x, *_ in places) >= 0
  tops = sorted(y for _, y, _ in places)
  assert min(np.diff(tops)) >= places[0][2]


def test_epochs_are_counted_between_their_ends(opened):
  found = opened.run(
    "return args[0].map((step) => epochsAt([10, 25, 30], step))",
    [0, 5, 10, 17.5, 25, 27.5, 30, 31],
  )
  assert found == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3]


def test_a_run_has_one_color_and_its_name_at_its_end(opened, directories):
  names = opened.run(
    "return [...document.querySelectorAll('text.name')].map((text) =>"
    "[text.textContent.slice(0, 8), text.style.fill, +text.getAttribute('y')])"
  )
  colors = opened.run(
    "return [...document.querySelectorAll('polyline')].map("
    "(line) => line.style.stroke)"
  )
  swatches = opened.run(
    "return [...document.querySelectorAll('.swatch line')].map("
    "(line) => line.style.stroke)"
  )
  assert colors == [f"var(--run{k})" for k in (0, 0, 1, 1)]
  assert swatches == colors[::2]
  ends = [lines(opened)[k][-1][1] for k in (1, 3)]
  order = np.argsort(ends)
  assert [name for name, *_ in names] == [
    directories[k].name[:8] for k in order
  ]
  assert [fill for _, fill, _ in names] == [swatches[k] for k in order]
  assert abs(names[0][2] - 4 - min(ends)) < 0.1
  dots = opened.run(
    "return [...document.querySelectorAll('circle')].map("
    "(dot) => [dot.cx.baseVal.value, dot.cy.baseVal.value, dot.style.fill])"
  )
  points = [[*point, colors[k]] for k in (1, 3) for point in lines(opened)[k]]
  assert [dot[2] for dot in dots] == [point[2] for point in points]
  places = [dot[:2] for dot in dots], [point[:2] for point in points]
  np.testing.assert_allclose(*places, atol=0.1)
  # Names that would overlap are moved 15 pixels apart, none of them below the
  # lower edge of the chart, at 300.
  places = opened.run(
    "const ends = [0, 1, 2].map((k) => ({ k, name: '', x: 0, y: 299 - k }));"
    "return drawLabels(ends).map((text) =>"
    "[text.getAttribute('y') - 4, text.style.fill])"
  )
  assert places == [
    [270, "var(--run2)"],
    [285, "var(--run1)"],
    [300, "var(--run0)"],
  ]
  # The horizontal axis ends with the longest run.
  high = "return makeScale(args[0].map((x) => ({ xs: [0, x], ys: [1, 2] })), 0,"
  assert opened.run(f"{high} {{}}, 600, 12).high", [5, 9, 7]) == 9


def test_of_24_runs_each_has_a_color_and_dashes_of_its_own(opened):
  found = opened.run(
    "return [...Array(25).keys()].map((k) => [color(k), dash(k)])"
  )
  colors = [f"var(--run{k})" for k in range(8)]
  assert found[:24] == [[c, d] for d in ("", "7 4", "2 3") for c in colors]
  assert found[24] == found[0]
  drawn = opened.run(
    "const curve = { k: 9, kind: 'training', xs: [1, 2], ys: [1, 2] };"
    "data.runs.length = 0, data.runs.push(...Array(10).fill({ name: 'a' }));"
    "const entry = legendEntry(data.runs[9], 9);"
    "const [line] = drawCurve(curve, scale);"
    "return [line, entry.querySelector('line')].map("
    "(line) => [line.style.stroke, line.getAttribute('stroke-dasharray')])"
  )
  assert drawn == [found[9]] * 2


@pytest.mark.exhaustive
def test_page_keys_move_by_ten_points_and_the_pointer_to_the_nearest(opened):
  steps = opened.run("return positions")
  opened.run("document.getElementById('chart').focus()")
  opened.run("positions = Array.from({ length: 25 }, (_, k) => k + 1)")
  press = (
    "$('chart').dispatchEvent(new KeyboardEvent('keydown', { key: args[0],"
    " ctrlKey: args[1] })); return cursor;"
  )
  pressed = ["Home", "PageDown", "PageDown", "PageDown", "PageUp"]
  found = [opened.run(press, key, False) for key in pressed]
  assert found == [0, 10, 20, 24, 14]
  assert opened.run(press, "Home", True) == 14  # Ctrl-Home is the browser's
  choose(opened, "range", "0")  # draws the chart, with its own positions again
  left, top = opened.run(
    "const box = document.getElementById('chart').getBoundingClientRect();"
    "return [box.left, box.top]"
  )
  for share, step in ((0.4, steps[1]), (0.6, steps[2])):
    at = steps[1] + share * (steps[2] - steps[1])
    opened.click(left + opened.run("return scale.x(args[0])", at), top + 100)
    assert f"At training step {step}:" in text_of(opened, "status")
    place = opened.run(
      "const { x1, x2 } = document.querySelector('.cursor');"
      "return [x1.baseVal.value, x2.baseVal.value, scale.x(args[0])]",
      step,
    )
    np.testing.assert_allclose(place, place[2], atol=0.01)


def test_the_csv_is_in_the_order_of_the_steps(opened, directories):
  opened.run("data.runs[0].name = 'a \"quoted\", name'")
  opened.run("data.runs[0].curves.lr.value[0] = 0")
  table = list(csv.reader(io.StringIO(opened.run("return csv()"))))
  names = ["train_loss", "val_loss", "lr", "grad_norm"]
  assert table[0] == ["run", "step", "seconds", *names]
  rows = [row for row in table if row[0] == 'a "quoted", name']
  seconds = {s: t for n in names for s, _, t in points_of(directories[0], n)}
  assert [int(row[1]) for row in rows] == sorted(seconds)
  assert [float(row[2]) for row in rows] == [
    seconds[s] for s in sorted(seconds)
  ]
  assert rows[0][5] == "0"  # not empty, as if it were missing


def test_the_page_says_which_sample_it_shows_and_that_no_run_is_shown(opened):
  name = "At the end, from the best weights"
  assert text_of(opened, "evaluationname") == name
  said = "return $('evaluation').getAttribute('aria-valuetext')"
  assert opened.run(said) == name[0].lower() + name[1:]
  opened.run(
    "for (const k of [0, 1]) $('legend').rows[k].querySelector('input').click()"
  )
  assert text_of(opened, "status") == "All runs are hidden."
  assert text_of(opened, "unit") == "Losses are in nats per character."
  assert not text_of(opened, "missing")


def test_a_name_is_not_cut_off_in_the_middle_of_an_emoji(opened):
  """An emoji is two code units; of a long name, 21 are shown."""
  name = "'x'.repeat(20) + '🙂🙂'"
  assert opened.run(f"return shortened({name})") == "x" * 20 + "…"
