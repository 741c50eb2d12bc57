"""The chart of `experiments.report` in a browser."""

import numpy as np
import pytest

from tests.experiments.pages import browser
from tests.experiments.pages.browser import text_of
from tests.experiments.pages.report.reading import choose, lines, points_of
from tests.experiments.trainer.resuming import read_rows

pytestmark = [pytest.mark.programs, browser.NEEDED]


@pytest.mark.parametrize("pointer", ["mouse", "touch"])
def test_the_pointer_reads_off_the_nearest_point(pointer, opened, directories):
  left, top, right = opened.run(
    "const box = document.getElementById('chart').getBoundingClientRect();"
    "return [box.left, box.top, scale.x(scale.high)]"
  )
  end = max(
    step for f in directories for step, *_ in points_of(f, "train_loss")
  )
  # The axis begins at pixel 60, and step 20 is the point nearest to 21.
  opened.click(left + 60 + (right - 60) * 21 / end, top + 100, pointer)
  assert "At training step 20:" in text_of(opened, "status")


@pytest.mark.parametrize(
  ("axis", "index"), [("training steps", 0), ("epochs", 0), ("seconds", 2)]
)
def test_the_curves_are_the_losses_to_scale(axis, index, opened, directories):
  """`index` is the entry of a point (step, value, seconds) along the axis.

  Both runs have one epoch, of equally many steps: epochs are proportional to
  steps.
  """
  choose(opened, "axis", axis)
  points, values = [], []
  names = ("train_loss", "val_loss")
  curves = [
    points_of(directory, name) for directory in directories for name in names
  ]
  for line, curve in zip(lines(opened), curves, strict=True):
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
  end = max(
    step for f in directories for step, *_ in points_of(f, "train_loss")
  )
  assert [len(line) for line in lines(opened)] == [
    sum(step >= end / 2 for step, *_ in points_of(directory, name))
    for directory in directories
    for name in ("train_loss", "val_loss")
  ]


def test_a_logarithmic_axis_has_equal_lengths_for_equal_ratios(
  opened, directories
):
  choose(opened, "scale", "horizontal")
  (xs, *_) = [[x for x, _ in line] for line in lines(opened)]
  steps = [step for step, *_ in points_of(directories[0], "train_loss")]
  low, high = np.log(steps[0]), np.log(max(steps))
  shares = (np.log(steps) - low) / (high - low)
  np.testing.assert_allclose(xs, xs[0] + shares * (xs[-1] - xs[0]), atol=0.1)


def test_a_vertical_logarithmic_axis_leaves_out_what_is_not_positive(opened):
  before = [[x for x, _ in line] for line in lines(opened)]
  choose(opened, "scale", "both")
  for axis in "xy":
    places = opened.run(f"return [2, 4, 8].map(scale.{axis})")
    assert np.ptp(np.diff(places)) < 1e-6
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


def test_smoothing_averages_no_loss_but_that_of_training(opened, directories):
  before = lines(opened)
  choose(opened, "smoothing", "0.5")
  after = lines(opened)
  values = [loss for _, loss, _ in points_of(directories[0], "train_loss")]
  sums = weights = 0.0
  for k, (value, (_, y)) in enumerate(zip(values, after[0], strict=True)):
    sums, weights = 0.5 * sums + value, 0.5 * weights + 1
    expected = opened.run("return scale.y(args[0])", sums / weights)
    assert abs(y - expected) < 0.1
    assert k == 0 or abs(sums / weights - value) > 1e-6
  assert "over 2 points" in text_of(opened, "smoothingname")
  # A validation loss keeps its values; the vertical axis may have changed.
  values = [loss for _, loss, _ in points_of(directories[0], "val_loss")]
  at = opened.run("return args[0].map(scale.y)", values)
  assert len(values) > 1 and len(before) == len(after)
  np.testing.assert_allclose([y for _, y in after[1]], at, atol=0.1)
  choose(opened, "quantity", "learning rate")
  rates = [rate for _, rate, _ in points_of(directories[0], "lr")]
  at = opened.run("return args[0].map(scale.y)", rates)
  np.testing.assert_allclose([y for _, y in lines(opened)[0]], at, atol=0.1)


def test_the_lines_are_named_at_their_ends_without_overlap(opened, directories):
  names = opened.run(
    "return [...document.querySelectorAll('text.name')].map((text) =>"
    "[text.textContent, text.getBBox().y, text.getBBox().height,"
    "text.getBBox().x + text.getBBox().width])"
  )
  assert {name[:8] for name, *_ in names} == {d.name[:8] for d in directories}
  (_, y0, height, _), (_, y1, *_) = sorted(names, key=lambda name: name[1])
  assert y1 - y0 >= 0.9 * height
  starts = opened.run(
    "return [...document.querySelectorAll('text.name')].map((text) =>"
    "text.getBBox().x)"
  )
  ends = [line[-1][0] for line in lines(opened)[1::2]]  # both at the last step
  assert max(ends) < min(starts) and max(starts) < min(ends) + 12
  assert max(end for *_, end in names) <= opened.run(
    "return document.getElementById('chart').clientWidth"
  )


def written(value):
  """Return a value as the table writes it: JavaScript's 1.00e-3 or 0.0100."""
  if value >= 0.01:
    return f"{value:.4f}"
  digits, _, power = f"{value:.2e}".partition("e")
  return f"{digits}e{int(power)}"


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
    shown = "return [...$('legend').rows].map((row) => row.cells[1].innerText)"
    assert opened.run(shown) == [
      written(next(row[name] for row in reversed(run) if name in row))
      for run in rows
    ]
    # Dots mark evaluations: these curves have none.
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


def test_the_cursor_stays_while_a_point_is_drawn_at_it(opened):
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
  choose(opened, "axis", "epochs")  # other units: it goes to the end
  assert opened.run("return cursor === positions.length - 1")


def test_a_run_of_very_many_evaluations_is_drawn(opened):
  many = 130_000  # more than the arguments that a call can have
  number = opened.run(
    "const steps = Array.from({ length: args[0] }, (_, k) => k + 1);"
    "data.runs[1].hidden = true;"
    "const curve = { step: steps, value: steps, seconds: steps };"
    "data.runs[0].curves.val_loss = curve;"
    "draw(); const number = $('chart').querySelectorAll('circle').length;"
    "$('chart').replaceChildren(); return number;",
    many,
  )
  assert number == many


def test_a_number_on_an_axis_is_short(opened):
  numbers = [0, 1500, 0.25, 0.004, 1e-4, 10 / 26007]
  found = opened.run("return args[0].map((v) => tickText(v))", numbers)
  assert found == ["0", "1,500", "0.25", "0.004", "1e−4", "3.85e−4"]


def test_the_numbers_of_ticks_differ_where_the_ticks_do(opened):
  ticks = [
    [1.48124, 1.48126, 1.48128],
    [0.01508000, 0.01508001],
    [3.8501e-4, 3.8502e-4],
    [1000.5, 1001],
    [3e-4, 3e-4],
  ]
  found = opened.run(
    "return args[0].map((all) => all.map((v) => tickText(v, leastStep(all))))",
    ticks,
  )
  assert found == [
    ["1.48124", "1.48126", "1.48128"],
    ["0.01508", "0.01508001"],
    ["3.8501e−4", "3.8502e−4"],
    ["1,000.5", "1,001"],
    ["3e−4", "3e−4"],
  ]


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
  message = "The runs shown have no learning rate in their records."
  assert text_of(opened, "status") == message
  opened.run("for (const run of data.runs) run.epoch_ends = null")
  choose(opened, "quantity", "loss")
  assert "per epoch is not known" in text_of(opened, "status")
