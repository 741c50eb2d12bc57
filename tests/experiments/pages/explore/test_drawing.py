"""What the page of `experiments.explore` draws on its canvases."""

import re

import numpy as np
import pytest

from tests.experiments.pages import browser
from tests.experiments.pages.explored import PageData, val_text

pytestmark = [pytest.mark.programs, browser.NEEDED]

# Returns the calls of canvas methods that a drawing function of the page makes:
# [method, color, *arguments].
CALLS = """
  const { prototype } = CanvasRenderingContext2D, calls = [], own = {};
  for (const name of ["fillRect", "strokeRect", "moveTo", "lineTo",
    "fillText"]) {
    own[name] = prototype[name];
    prototype[name] = function (...values) {
      calls.push([name, name.startsWith("fill") ? this.fillStyle
        : this.strokeStyle, ...values]);
      return own[name].apply(this, values);
    };
  }
  const draw = { drawText, drawUnits, drawPath }[args[0]];
  draw();
  Object.assign(prototype, own);
  return calls;
"""
ACCENT, INK, PURPLE = "#a1450c", "#1b1f24", "#54278f"
CELL, LINE = 18, 26  # heights of a character's box and of a line, in pixels


@pytest.fixture
def calls(opened):
  """Return a function of (drawing function, method of the canvas, color).

  It calls the drawing function and returns the arguments of each call of the
  method. If a color is given, calls in other colors are left out.
  """

  def drawn(function, name, color=None):
    found = [call for call in opened.run(CALLS, function) if call[0] == name]
    return [values for _, c, *values in found if color in (None, c)]

  return drawn


def as_hex(fill):
  return "#" + "".join(f"{int(v):02x}" for v in re.findall(r"\d+", fill))


@pytest.mark.exhaustive
def test_the_text_has_bars_passages_and_a_selection(
  opened, calls, explored_page, explored_run
):
  text, anchor, cursor = val_text(explored_run), 57, 60
  opened.run("stepUnit(1); [anchor] = args; moveTo(args[1]);", anchor, cursor)
  opened.run("$('pattern').value = 'more'; find(); textBox.scrollTop = 0;")
  width, unit = opened.run("return [charWidth, unit]")

  def place(t):
    line = text.count("\n", 0, t)
    return 4 + (t - text.rfind("\n", 0, t) - 1) * width, 4 + line * LINE

  # Each character is on the color of its level; bars are drawn after them.
  data = PageData(explored_page)
  header = data.header["layers"][1]["signals"][1]  # of c
  levels = data.array(header["blob"]).reshape(12, -1)[unit]
  fills, inks = opened.run(
    "return ['fill', 'ink'].map((key) => palettes.true.map((c) => c[key]))"
  )
  found = [
    call for call in opened.run(CALLS, "drawText") if call[0] == "fillRect"
  ][: len(text)]
  for t, (_, fill, x, y, _, height) in enumerate(found):
    assert fill == as_hex(fills[levels[t]])
    assert [x, y, height] == [np.floor(place(t)[0] + 0.5), place(t)[1], CELL]
  letters = [
    (color, symbol)
    for name, color, symbol, *_ in opened.run(CALLS, "drawText")
    if name == "fillText"
  ]
  assert letters == [
    ({"#000": "#000000", "#fff": "#ffffff"}[inks[level]], c)
    for level, c in zip(levels, text.replace("\n", "↵"), strict=True)
    if c != " "
  ]
  # The bars, 6 pixels at most, show four decades of the norm of the gradient
  # with respect to h and c together.
  h, c = (data.paths(1)[name][cursor, : cursor + 1] for name in ("h", "c"))
  norms = np.hypot(h, c)
  heights = np.maximum(0, 1 + np.log10(norms / norms.max()) / 4)
  bars = calls("drawText", "fillRect", ACCENT)
  assert len(bars) == cursor + 1 and np.ptp(heights) > 0.3
  for back, bar in enumerate(bars):
    x, y = place(cursor - back)
    top = y + CELL + 6 - 6 * heights[back]
    expected = [x + 1, top, width - 2, 6 * heights[back]]
    np.testing.assert_allclose(bar, expected, atol=1e-6)
  marked = [
    t for m in re.finditer("more", text, re.I) for t in range(*m.span())
  ]
  boxes = [[*place(t), width, CELL] for t in marked]
  np.testing.assert_allclose(calls("drawText", "strokeRect", ACCENT), boxes)
  x, y = place(cursor)
  box = [[x - 1, y - 1, width + 2, CELL + 2]]
  np.testing.assert_allclose(calls("drawText", "strokeRect", INK), box)
  starts = [
    [x, y + CELL + 1] for x, y in (place(t) for t in range(anchor, cursor + 1))
  ]
  np.testing.assert_allclose(calls("drawText", "moveTo", INK), starts)


def test_the_ends_of_both_scales_have_their_colors(opened):
  signed, gates = opened.run(
    "return [[1, 128, 255].map((q) => palettes.true[q].fill),"
    " [0, 255].map((q) => palettes.false[q].fill)]"
  )
  assert [as_hex(fill) for fill in signed] == ["#1f5fa8", "#ffffff", "#b3261e"]
  assert [as_hex(fill) for fill in gates] == ["#ffffff", PURPLE]


def test_all_units_have_the_colors_of_their_levels(
  opened, calls, explored_page
):
  data = PageData(explored_page)
  header = data.header["layers"][1]["signals"][1]
  cursor, unit, ranks, fills = opened.run(
    "stepUnit(2);"
    "return [cursor, unit, ranks, palettes.true.map(({ fill }) => fill)]"
  )
  levels = data.array(header["blob"]).reshape(12, -1)[ranks, cursor]
  # 12 units, whose squares of 12 pixels are 14 apart.
  squares = calls("drawUnits", "fillRect")
  assert squares == [[14 * k + 1, 1, 12, 12] for k in range(12)]
  # Each square is filled and then outlined: every second call fills.
  drawn = [call[1] for call in opened.run(CALLS, "drawUnits")[::2]]
  assert drawn == [as_hex(fills[level]) for level in levels]
  k = ranks.index(unit)
  assert k == 2
  assert calls("drawUnits", "strokeRect", INK) == [[14 * k + 1, 1, 12, 12]]


def test_paths_of_many_arrays_are_told_apart(opened):
  """Those of an sLSTM: h, c, n and m."""
  opened.run(
    "moveTo(150);"
    "for (const name of 'nm') paths.push({ __proto__: paths[0], name });"
  )
  drawn = opened.run(CALLS, "drawPath")
  names = [call for call in drawn if str(call[2]) in "hcnm"]
  opened.run("paths.splice(2)")
  _, colors, _, _, ys = zip(*names, strict=True)
  assert len(names) == len(set(colors)) == 4
  assert min(np.diff(ys)) >= 12


def test_the_path_is_to_scale(opened, calls, explored_page):
  data, at = PageData(explored_page), 150
  opened.run("moveTo(args[0])", at)
  paths = data.header["layers"][1]["paths"]
  low = np.floor(min(path["low"] for path in paths))
  high = np.ceil(max(path["high"] for path in paths))
  right = opened.run("return $('path').parentElement.clientWidth") - 24
  texts = {text: (x, y) for text, x, y in calls("drawPath", "fillText")}
  assert {"cursor", "32", "64", "characters back", "h", "c"} < {
    *map(str, texts)
  }

  # In `drawPath`, the axes begin at x = 44 and y = 140; the vertical one is 132
  # pixels long, and the horizontal one spans 96 states, 0 to 95 steps back.
  def x_of(back):
    return right - (right - 44) * back / 95

  def y_of(log):
    return 140 - 132 * (log - low) / (high - low)

  assert abs(texts[32][0] - x_of(32)) < 1e-6
  decades = {
    int(str(text).replace("−", "-")[2:]): y
    for text, (_, y) in texts.items()
    if str(text).startswith("1e")
  }
  assert len(decades) > 1 and high in decades
  for decade, y in decades.items():
    assert abs(y - y_of(decade)) < 1e-6
  for name, color in (("h", ACCENT), ("c", PURPLE)):
    norms = data.paths(1)[name][at]
    backs = np.flatnonzero(norms)
    points = np.array(calls("drawPath", "lineTo", color))
    logs = np.maximum(np.log10(norms[backs]), low)
    np.testing.assert_allclose(points[:, 0], x_of(backs))
    np.testing.assert_allclose(points[:, 1], y_of(logs))


def test_the_text_keeps_its_size_where_zoom_changes_only_the_ratio(opened):
  """The box, as wide and high as it may be, does not change with the zoom."""
  drawn = opened.run("""
    Object.defineProperty(window, "devicePixelRatio", { value: 1.5 });
    drawText();
    const { a } = textCanvas.getContext("2d").getTransform();
    return [a, textCanvas.width / textBox.clientWidth];
  """)
  assert drawn == [1.5, 1.5]
