"""The page of `experiments.explore` in a browser."""

import itertools
import re

import jax
import numpy as np
import pytest

from experiments.trainer.trained import load
from tests.experiments.pages import browser
from tests.experiments.pages.browser import UNNAMED, contrast, number, viewing
from tests.experiments.pages.explored import (
  HOSTILE,
  LENGTH,
  PageData,
  val_text,
)

pytestmark = [pytest.mark.programs, browser.NEEDED]
CELL, LINE = 18, 26  # heights of a character's box and of a line, in pixels
SYMBOLS = {" ": "␣", "\n": "↵"}
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


@pytest.fixture
def data(explored_page):
  return PageData(explored_page)


@pytest.fixture
def text(explored_run):
  return val_text(explored_run)


@pytest.fixture
def calls(explorer):
  """Return a function of (drawing function, method of the canvas, color).

  It calls the drawing function and returns the arguments of each call of the
  method. If a color is given, calls in other colors are left out.
  """

  def drawn(function, name, color=None):
    found = [call for call in explorer.run(CALLS, function) if call[0] == name]
    return [values for _, c, *values in found if color in (None, c)]

  return drawn


def place(chromium, text, index, shift=0.5):
  """Return where a character is on the screen, `shift` from its left edge.

  No line of the text may be wrapped, nor may the text be scrolled. In pixels,
  the canvas has a margin of 4, a line is 26 high, and a character is drawn in
  the upper 18 of them.
  """
  left, top, width = chromium.run(
    "const box = textCanvas.getBoundingClientRect();"
    "return [box.left, box.top, charWidth]"
  )
  line = text.count("\n", 0, index)
  column = index - (text.rfind("\n", 0, index) + 1)
  return left + 4 + (column + shift) * width, top + 4 + line * LINE + 9


def value_shown(chromium):
  """Return the unit and its value, as the status line names them."""
  pattern = r"Unit (\d+) of \w+ is ([−\d.]+)\.(?=\s)"
  return map(number, re.search(pattern, chromium.text("status")).groups())


def test_clicks_and_keys_show_what_the_library_computes(
  explorer, data, text, explored_run
):
  assert explorer.value("layer") == "1"  # the top one, counted from 0
  assert explorer.value("signal") == "c"
  # Of c, the second signal; the first feature is the position in the line.
  scores = np.abs(data.header["layers"][1]["signals"][1]["scores"][0])
  assert explorer.value("unit") == str(scores.argmax())
  index = text.index("compare", text.index("compare") + 1)
  explorer.click(*place(explorer, text, index))
  status = explorer.text("status")
  assert f"‘c’, character {index + 1} of {LENGTH}." in status
  assert "Next in the text: ‘o’" in status

  # The state, after keys that move to the next unit and two characters on.
  explorer.press("n", "right", "right", "right", "left")
  index += 2
  unit, value = value_shown(explorer)
  assert unit == np.argsort(-scores, kind="stable")[1]
  trained = load(explored_run)
  tokens = trained.tokenizer.encode(text)
  model, state = trained.model, trained.model.initial_state(())
  state, logits = model.apply(trained.params, state, tokens[: index + 1])
  _, rounding = data.signal(1, "c")
  assert abs(value - state[1].c[int(unit)]) < rounding[int(unit), 0] + 1e-3

  # Another layer and a gate.
  explorer.press("L", "s")
  assert (explorer.value("layer"), explorer.value("signal")) == ("0", "i")
  unit, value = value_shown(explorer)
  gate, _ = data.signal(0, "i")
  assert abs(value - gate[int(unit), index]) < 1e-3

  # The next character: the 10 likeliest come first; the text's own may follow.
  p = np.asarray(jax.nn.softmax(logits[-1]))
  rows = explorer.run(
    "return [...document.querySelectorAll('#next li')].map((row) =>"
    "[row.className, row.children[0].innerText, row.children[2].innerText])"
  )
  ids = {SYMBOLS.get(c, c): n for n, c in enumerate(trained.tokenizer.symbols)}
  shown = np.array([number(percent) / 100 for *_, percent in rows])
  assert np.abs(shown - p[[ids[symbol] for _, symbol, _ in rows]]).max() < 1e-4
  assert np.abs(shown[:10] - np.sort(p)[::-1][:10]).max() < 1e-4
  actual = [row for row in rows if row[0] == "actual"]
  assert [row[1] for row in actual] == [text[index + 1]]
  assert f"with probability {actual[0][2]}." in explorer.text("status")

  # The gradient of its log-probability.
  norms = explorer.run(
    "return [...document.querySelectorAll('#norms tr')].map((row) =>"
    "[...row.children].map((cell) => cell.textContent))"
  )
  assert [int(row[0]) for row in norms] == [0, 1, 2, 4, 8, 16, 32, 64]
  for back, symbol, *figures in norms:
    at = index - int(back)
    assert symbol == SYMBOLS.get(text[at], text[at])
    for figure, name in zip(figures, "hc", strict=True):
      norm = data.paths(0)[name][index, int(back)]
      if norm == 0:  # of c at the cursor: the prediction reads h alone
        assert (figure, name, back) == ("–", "c", "0")
      else:  # shown with two digits
        assert abs(number(figure) / norm - 1) < 0.051
  reach = explorer.text("reach")
  assert reach.endswith(": of h with c held fixed, and of c with h held fixed.")
  explorer.run("moveTo(args[0])", LENGTH - 1)
  assert explorer.text("status").endswith(" The text ends here.")


def test_menus_and_keys_choose_units_by_their_scores(explorer, data):
  features = data.header["features"]

  def check(layer, name, order, rank):
    signals = data.header["layers"][layer]["signals"]
    (signal,) = (s for s in signals if s["name"] == name)
    scores = np.array(signal["scores"][order - 1])
    measure = features[order - 1]["measure"]
    strength = np.abs(scores - 0.5 * (measure == "AUC"))
    units = np.argsort(-strength, kind="stable")
    said = [f"{measure} {v:.2f}".replace("-", "−") for v in scores + 0.0]
    options = explorer.run("return [...$('unit').options].map((o) => o.text)")
    assert options == [f"{u} ({said[u]})" for u in units]
    unit = units[rank]
    assert explorer.value("unit") == str(unit)
    title, low, _, high = explorer.run(
      "return [...$('legend').children].map((e) => e.innerText).slice(0, 4)"
    )
    assert title == (
      f"Unit {unit} of {name}, {signal['meaning']}, layer {layer + 1}; "
      f"{features[order - 1]['name']}: {said[unit]}"
    )
    largest = f"{signal['scale'][unit]:.3f}"
    ends = f"−{largest}", largest
    assert (low, high) == (ends if name == "c" else ("0 (closed)", "1 (open)"))

  assert {feature["measure"] for feature in features} == {"AUC", "r"}
  for order in range(len(features), 0, -1):
    explorer.choose("order", order)
    check(1, "c", order, 0)
  explorer.choose("layer", 0)
  explorer.choose("signal", "f")  # the unit stays
  explorer.choose("unit", explorer.run("return ranks[5]"))
  check(0, "f", 1, 5)
  for keys, order, rank in (
    ("N", 1, 4),
    ("Pn", 1, 6),
    ("o", 2, 0),
    ("O", 1, 0),
  ):
    explorer.press(*keys)  # Shift reverses a key
    check(0, "f", order, rank)
  explorer.run("$('following').click(); $('following').click()")
  explorer.run("$('previous').click()")
  check(0, "f", 1, 1)
  # The squares of units are 14 pixels apart.
  explorer.run("$('units').scrollIntoView({ block: 'center' })")
  left, top = explorer.run(
    "const box = $('units').getBoundingClientRect();return [box.left, box.top];"
  )
  explorer.click(left + 3 * 14 + 7, top + 7)
  check(0, "f", 1, 3)
  explorer.choose("order", 0)
  options = explorer.run("return [...$('unit').options].map((o) => o.text)")
  assert options == [str(unit) for unit in range(12)]


def test_keys_move_the_cursor_and_scroll_the_text(explorer, text):
  begins = [0, *(k + 1 for k, c in enumerate(text) if c == "\n")]
  assert explorer.run("return document.activeElement.id") == "text"
  assert explorer.run("return cursor") == 192  # its gradient path is complete
  explorer.emulate(1100, 400)  # eight lines of the text
  explorer.settle()
  page = explorer.run("return Math.floor(textBox.clientHeight / 26) - 2")
  assert len(begins) > page + 2 > 5
  for key, modifier, expected in (
    ("Home", "ctrl", 0),
    ("ArrowLeft", "", 0),
    ("PageDown", "", begins[page]),
    ("ArrowDown", "", begins[page + 1]),
    ("End", "", begins[page + 2] - 1),
    ("ArrowUp", "", begins[page + 1] - 1),
    ("End", "ctrl", LENGTH - 1),
    ("Home", "", begins[-1]),
    ("PageUp", "", begins[-1 - page]),
  ):
    explorer.run(
      "textBox.dispatchEvent(new KeyboardEvent('keydown',"
      " { key: args[0], ctrlKey: args[1] }))",
      key,
      bool(modifier),
    )
    at, line, top, height = explorer.run(
      "return [cursor, lineOf[cursor], textBox.scrollTop, textBox.clientHeight]"
    )
    assert (at, line) == (expected, text.count("\n", 0, at)), key
    assert top <= line * LINE and (line + 1) * LINE <= top + height


def test_the_text_has_colors_bars_passages_and_a_selection(
  explorer, calls, data, text
):
  anchor, cursor = 57, 60
  explorer.run("stepUnit(1); [anchor] = args; moveTo(args[1]);", anchor, cursor)
  explorer.choose("pattern", "more")
  explorer.run("textBox.scrollTop = 0")
  width, unit = explorer.run("return [charWidth, unit]")

  def at(t):
    line = text.count("\n", 0, t)
    return 4 + (t - text.rfind("\n", 0, t) - 1) * width, 4 + line * LINE

  # Each character is on the color of its level; bars are drawn after them.
  header = data.header["layers"][1]["signals"][1]  # of c
  levels = data.array(header["blob"]).reshape(12, -1)[unit]
  fills = explorer.run("return palettes.true.map(({ fill }) => fill)")
  found = [c for c in explorer.run(CALLS, "drawText") if c[0] == "fillRect"]
  for t, (_, fill, x, y, _, height) in enumerate(found[: len(text)]):
    rgb = re.findall(r"\d+", fills[levels[t]])
    assert fill == "#" + "".join(f"{int(v):02x}" for v in rgb)
    assert [x, y, height] == [np.floor(at(t)[0] + 0.5), at(t)[1], CELL]
  ends = explorer.run(
    "return [palettes.true[1], palettes.true[128], palettes.true[255],"
    " palettes.false[0], palettes.false[255]].map(({ fill }) => fill)"
  )
  assert ends == [
    "rgb(31,95,168)",  # blue below 0, red above, purple for an open gate
    "rgb(255,255,255)",
    "rgb(179,38,30)",
    "rgb(255,255,255)",
    "rgb(84,39,143)",
  ]
  # The bars, 6 pixels at most, show four decades of the norm of the gradient
  # with respect to h and c together.
  h, c = (data.paths(1)[name][cursor, : cursor + 1] for name in ("h", "c"))
  norms = np.hypot(h, c)
  heights = np.maximum(0, 1 + np.log10(norms / norms.max()) / 4)
  bars = calls("drawText", "fillRect", ACCENT)
  assert len(bars) == cursor + 1 and np.ptp(heights) > 0.3
  for back, bar in enumerate(bars):
    x, y = at(cursor - back)
    top = y + CELL + 6 - 6 * heights[back]
    expected = [x + 1, top, width - 2, 6 * heights[back]]
    np.testing.assert_allclose(bar, expected, atol=1e-6)
  marked = [
    t for m in re.finditer("more", text, re.I) for t in range(*m.span())
  ]
  boxes = [[*at(t), width, CELL] for t in marked]
  np.testing.assert_allclose(calls("drawText", "strokeRect", ACCENT), boxes)
  x, y = at(cursor)
  box = [[x - 1, y - 1, width + 2, CELL + 2]]
  np.testing.assert_allclose(calls("drawText", "strokeRect", INK), box)
  starts = [[at(t)[0], at(t)[1] + CELL + 1] for t in range(anchor, cursor + 1)]
  np.testing.assert_allclose(calls("drawText", "moveTo", INK), starts)
  # All units at the cursor, in squares that are 14 pixels apart.
  squares = [c for c in explorer.run(CALLS, "drawUnits") if c[0] == "fillRect"]
  column = data.array(header["blob"]).reshape(12, -1)[:, cursor]
  for k, u in enumerate(explorer.run("return ranks")):
    rgb = re.findall(r"\d+", fills[column[u]])
    color = "#" + "".join(f"{int(v):02x}" for v in rgb)
    assert squares[k] == ["fillRect", color, 14 * k + 1, 1, 12, 12]
  assert calls("drawUnits", "strokeRect", INK) == [[15, 1, 12, 12]]


def test_the_path_is_to_scale(explorer, calls, data):
  at = 150
  explorer.run("moveTo(args[0])", at)
  paths = data.header["layers"][1]["paths"]
  low = np.floor(min(path["low"] for path in paths))
  high = np.ceil(max(path["high"] for path in paths))
  right = explorer.run("return $('path').parentElement.clientWidth") - 24
  texts = {str(s): (x, y) for s, x, y in calls("drawPath", "fillText")}
  assert {"cursor", "32", "64", "characters back", "h", "c"} < {*texts}

  # In `drawPath`, the axes begin at x = 44 and y = 140; the vertical one is 132
  # pixels long, and the horizontal one spans 96 states, 0 to 95 steps back.
  def x_of(back):
    return right - (right - 44) * back / 95

  def y_of(log):
    return 140 - 132 * (log - low) / (high - low)

  assert abs(texts["32"][0] - x_of(32)) < 1e-6
  decades = [text for text in texts if text.startswith("1e")]
  assert len(decades) > 1
  for text in decades:
    assert abs(texts[text][1] - y_of(number(text[2:]))) < 1e-6
  for name, color in (("h", ACCENT), ("c", PURPLE)):
    norms = data.paths(1)[name][at]
    backs = np.flatnonzero(norms)
    points = np.array(calls("drawPath", "lineTo", color))
    logs = np.maximum(np.log10(norms[backs]), low)
    np.testing.assert_allclose(points[:, 0], x_of(backs))
    np.testing.assert_allclose(points[:, 1], y_of(logs))


def test_a_pattern_is_found_and_f_goes_to_the_next_passage(explorer, text):
  def find(pattern):
    explorer.choose("pattern", pattern)
    return explorer.run("return found.map((p) => [p.first, p.last + 1])")

  places = [m.start() for m in re.finditer("more", text, re.I)]
  assert find("MORE") == [[t, t + 4] for t in places]
  assert explorer.text("foundtitle") == f"{len(places)} passages"
  explorer.run("moveTo(0); textBox.focus()")
  for key, k in [*(("f", k) for k in range(len(places))), ("f", 0), ("F", -1)]:
    explorer.press(key)
    assert explorer.run("return cursor") == places[k] + 3
  # The list has each passage with 24 characters before and after it, and a
  # click selects the passage.
  item = explorer.run("return $('found').children[1].firstChild.textContent")
  first = places[1]
  assert item == text[first - 24 : first + 28].replace("\n", "↵")
  explorer.run("$('found').children[1].firstChild.click()")
  assert explorer.run("return selection()") == [first, first + 3]
  explorer.run("moveTo(0); $('pattern').focus()")
  for shift, k in ((False, 0), (False, 1), (True, 0), (True, -1)):
    explorer.run(
      "$('pattern').dispatchEvent(new KeyboardEvent('keydown',"
      " { key: 'Enter', shiftKey: args[0] }))",
      shift,
    )
    assert explorer.run("return cursor") == places[k] + 3
  many = find("/[aeiou]/")
  title = f"{len(many)} passages, of which the first 30 are listed"
  assert explorer.text("foundtitle") == title
  words = [list(m.span()) for m in re.finditer("th?o[u.][^A-Za-z]", text, re.I)]
  assert find(r"/th?o[u.]\P{L}/") == words != []
  assert find("a.c") == []  # a dot is a dot
  assert find("/(/") == []
  assert "Not a regular expression" in explorer.text("foundtitle")
  # An emoji is one token, and two of the code units of a JavaScript string.
  found = "pieces = [...args[0]]; return matches('t t');"
  assert explorer.run(found, "❤🙂t tat") == [{"first": 2, "last": 4}]


def ranked(scores):
  """Return the 30 highest scores above 0 that are 12 or more apart."""
  chosen = []
  for t in np.argsort(-scores, kind="stable"):
    if scores[t] > 0 and all(abs(t - other) >= 12 for other in chosen):
      chosen.append(int(t))
  return chosen[:30]


def test_passages_are_ranked_by_strength_and_by_similarity(explorer):
  def shown():
    """Return what is found, and the levels of all units, 0 in the middle."""
    found, name, unit, levels = explorer.run(
      "return [found.map((p) => [p.first, p.note]), signalName, unit,"
      " [...levels]]"
    )
    middle = 128 if name == "c" else 127.5  # ½ is subtracted from a gate
    return found, name, unit, np.reshape(levels, (12, -1)) - middle

  explorer.choose("finder", "strongest")
  assert explorer.run("return $('pattern').parentElement.hidden")
  for key in ("n", "s", "S"):  # another unit, or signal, has other passages
    explorer.press(key)
    found, name, unit, levels = shown()
    strength = np.abs(levels[unit] + (0 if name == "c" else 127.5))
    assert [t for t, _ in found] == ranked(strength)
    title = f"Where unit {unit} of {name} is strongest"
    assert explorer.text("foundtitle") == title
  # The mean over a selection is compared with every other state.
  explorer.run("moveTo(100); textBox.focus(); anchor = 96")
  explorer.choose("finder", "similar")
  assert explorer.text("foundtitle") == (
    "Where c of layer 2 is most similar to its value at the 5 selected "
    "characters"
  )
  for key in ("", "s"):
    explorer.press(*key)
    found, _, _, levels = shown()
    mean = levels[:, 96:101].sum(1)
    cosines = mean @ levels / np.linalg.norm(mean)
    cosines /= np.linalg.norm(levels, axis=0)
    cosines[96:101] = 0
    assert [t for t, _ in found] == ranked(cosines)
    assert found[0][1] == f"cosine {cosines.max():.3f}"
  explorer.run("document.querySelector('#found button').click()")
  assert explorer.run("return [anchor, cursor]") == [None, found[0][0]]
  # A unit that is always 0 is strongest nowhere.
  explorer.press("S")
  explorer.run("levels = levels.slice().fill(128)")
  for finder in ("strongest", "similar"):
    explorer.choose("finder", finder)
    assert shown()[0] == []


def test_a_span_is_selected_by_mouse_keys_or_a_button(explorer, text):
  index = text.index("compare")
  explorer.run("textBox.scrollTop = 0")

  def at(k):
    return place(explorer, text, index + k)

  def selected():
    """Return the anchor, the cursor, and the first and last token selected."""
    found = explorer.run("return [anchor, cursor, ...selection()]")
    return [k if k is None else k - index for k in found]

  explorer.drag(at(0), at(3), at(6))
  assert selected() == [0, 6, 0, 6]
  explorer.drag(at(6), at(2))  # backward
  assert selected() == [6, 2, 2, 6]
  explorer.click(*at(1))
  assert selected() == [None, 1, 1, 1]
  explorer.run("textBox.focus(); $('select').click()")
  explorer.click(*at(4))
  explorer.press("right")
  assert selected() == [1, 5, 1, 5]
  explorer.run("$('select').click()")
  assert selected() == [None, 5, 5, 5]
  # With Shift, keys and clicks select from where the cursor was.
  shift = "bubbles: true, shiftKey: true"
  right = f"new KeyboardEvent('keydown', {{ key: 'ArrowRight', {shift} }})"
  explorer.run(f"for (const _ of [1, 2]) textBox.dispatchEvent({right})")
  assert selected() == [5, 7, 5, 7]
  explorer.press("left")
  assert selected() == [None, 6, 6, 6]
  explorer.run(
    "textBox.dispatchEvent(new MouseEvent('click',"
    f" {{ clientX: args[0], clientY: args[1], {shift} }}))",
    *at(1),
  )
  assert selected() == [6, 1, 1, 6]
  # A drag that begins outside of the text selects nothing in it.
  x, y = at(0)
  explorer.drag((x, y - 90), (x + 20, y + 20), (x + 40, y + 60))
  assert selected() == [6, 1, 1, 6]


def test_pinned_units_show_the_line_in_their_own_colors(explorer, data):
  def pins():
    """Return (name, value, color at the cursor) of each pinned unit."""
    explorer.settle()
    return explorer.run("""
      return [...document.querySelectorAll("#pins li")].map((item) => {
        const canvas = item.querySelector("canvas");
        const ratio = canvas.width / canvas.clientWidth;
        const at = [4 + columnOf[cursor] * charWidth + 3, 3].map(
          (v) => Math.round(v * ratio));
        const copy = new OffscreenCanvas(canvas.width, canvas.height)
          .getContext("2d", { willReadFrequently: true });
        copy.drawImage(canvas, 0, 0);
        const { data } = copy.getImageData(...at, 1, 1);
        return [item.querySelector("button").innerText,
          item.querySelector("span").innerText, [...data].slice(0, 3)];
      });
    """)

  def check():
    cursor = explorer.run("return cursor")
    for (name, value, rgb), (layer, signal, unit) in zip(
      pins(), expected, strict=True
    ):
      assert name == f"unit {unit} of {signal}, layer {layer + 1}"
      values, _ = data.signal(layer, signal)
      assert abs(number(value) - values[int(unit), cursor]) < 1e-3
      level = values[int(unit), cursor]
      signed = signal == "c"
      if signed:
        level = 1 + level / np.abs(values[int(unit)]).max()
      level = round(127 * level + 1) if signed else round(255 * level)
      color = "return palettes[args[0]][args[1]].fill"
      fill = explorer.run(color, signed, level)
      assert fill == f"rgb({','.join(map(str, rgb))})"

  expected = [(1, "c", explorer.value("unit"))]
  explorer.press("i", "n", "n", "i")  # two units of c in the top layer
  expected.append((1, "c", explorer.value("unit")))
  explorer.press("L", "s")
  explorer.press("i")  # a gate of the lowest
  expected.append((0, "i", explorer.value("unit")))
  explorer.press("right", "down", "right")
  check()
  assert explorer.run(UNNAMED) == []
  # A click on the line moves the cursor.
  explorer.run("""
    const canvas = $("pins").lastChild.lastChild;
    const { left, top } = canvas.getBoundingClientRect();
    canvas.dispatchEvent(new MouseEvent("click",
      { clientX: left + 4 + 2.5 * charWidth, clientY: top + 9 }));
  """)
  assert explorer.run("return cursor - starts[lineOf[cursor]]") == 2
  check()
  # A click on the name of a pin shows its unit in the text, and the key that
  # pins a unit removes the pin.
  explorer.run("document.querySelector('#pins button').click()")
  explorer.settle()
  names = "layer", "signal", "unit"
  assert [explorer.value(n) for n in names] == ["1", "c", expected[0][2]]
  assert explorer.text("pin") == "Unpin"
  explorer.press("i")
  del expected[0]
  check()
  explorer.run("document.querySelectorAll('#pins button')[1].click()")  # ×
  del expected[0]
  check()
  explorer.run("textBox.focus()")
  for _ in range(9):
    explorer.press("n", "i")
  assert len(pins()) == 8
  assert explorer.run("return $('pin').disabled")


LAYOUT = "return pieces.map((p, t) => [p, lineOf[t], columnOf[t], widths[t]])"


def test_a_word_is_as_wide_as_its_characters(chromium, words_page):
  with viewing(chromium, words_page):
    assert [box[:3] for box in chromium.run(LAYOUT)[:11]] == [
      ["Thou", 0, 0],
      [" art", 0, 4],
      [" more", 0, 8],
      [" lovely", 0, 13],
      [",", 0, 20],
      [" more", 0, 21],
      ["\n  ", 0, 26],
      ["<unk>", 1, 2],
      [" Thou", 1, 7],
      [" art", 1, 12],
      ["\n", 1, 16],
    ]
    chromium.click(*place(chromium, "x" * 99, 16))  # in lovely
    # Three times the 12 tokens of LINES, and the 2 line breaks between them.
    assert "‘lovely’, word 4 of 38. Unit" in chromium.text("status")
    chromium.press("down")
    assert "‘art’, word 10 of 38." in chromium.text("status")
    assert "next word of the text" in chromium.text("reach")
    # A feature that is the same throughout has no order of the units.
    constant, disabled = chromium.run(
      "const options = [...$('order').options].filter((o) => o.disabled);"
      "return [data.constant, options.map((o) => o.text)]"
    )
    assert disabled == [f"{name} (the same throughout)" for name in constant]
    assert disabled
    # On a very narrow screen, lines are broken: no word passes the edge or
    # overlaps another.
    chromium.emulate(150, 740)
    chromium.settle()
    columns, boxes = chromium.run("return columns"), chromium.run(LAYOUT)
    assert columns < 26  # the first line has 26
    for (_, line, column, width), (
      _,
      below,
      next_column,
      _,
    ) in itertools.pairwise(boxes):
      assert column + width <= columns
      assert below > line or (below, next_column) == (line, column + width)
    # Nor after an indentation or a hyphen.
    indentation = "'\\n' + ' '.repeat(columns)"
    for words, lines in (
      (f"[{indentation}, 'temperate', ' more']", [0, 1, 2]),
      (f"[{indentation}, 'more'.repeat(columns)]", [0, 1]),
      ("['a', ' temperate', '-', 'temperate'.repeat(columns)]", [0, 1, 1, 2]),
    ):
      columns, boxes = chromium.run(
        f"pieces = {words}; layOut(); return [columns, pieces.map("
        "(_, t) => [lineOf[t], columnOf[t] + widths[t]])]"
      )
      assert [line for line, _ in boxes] == lines
      assert all(end <= columns for _, end in boxes)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_the_text_stays_over_what_explains_it(
  explorer, explored_page, scheme
):
  explorer.emulate(360, 740, scheme)
  explorer.open(explored_page)
  for name in ("next", "path"):
    text, top = explorer.run(
      "const box = (name) => $(name).getBoundingClientRect();"
      "window.scrollTo(0, scrollY - 300 + box(args[0]).top);"
      "return [[box('text').top, box('text').bottom], box(args[0]).top]",
      name,
    )
    assert text[0] == 0 and text[1] < 300 and abs(top - 300) < 1
  for _ in range(6):  # the signals h, c, i, f, g and o
    explorer.press("s")
    width = explorer.run("return document.documentElement.scrollWidth")
    assert width == 360
    shades = explorer.run("return palettes[signal.signed]")
    ratios = [contrast(shade["fill"], shade["ink"]) for shade in shades]
    assert min(ratios) >= 4.5 and len({s["fill"] for s in shades}) > 200


def test_a_script_in_the_text_is_shown_and_never_runs(explorer, text):
  assert HOSTILE in explorer.run("return pieces.join('')")
  explorer.click(*place(explorer, text, text.index(HOSTILE)))
  assert "‘<’" in explorer.text("status")
  assert explorer.run("return document.title") == "Cell explorer"
