"""What docs/explore.md says that its page shows, in a browser."""

import re

import jax
import numpy as np
import pytest

from experiments.trainer.trained import load
from tests.experiments.pages import browser
from tests.experiments.pages.browser import UNNAMED, number, rgb, viewing
from tests.experiments.pages.explored import LENGTH, PageData, val_text

pytestmark = [pytest.mark.programs, browser.NEEDED]
LINE = 26  # height of a line, in pixels
SYMBOLS = {" ": "␣", "\n": "↵"}
ACCENT, INK, PURPLE = "#a1450c", "#1b1f24", "#54278f"
SHOWN = "layer", "signal", "unit"


@pytest.fixture
def data(explored_page):
  return PageData(explored_page)


@pytest.fixture
def text(explored_run):
  return val_text(explored_run)


def column(text, index):
  """Return (line, column) of a character of a text whose lines are short."""
  return text.count("\n", 0, index), index - text.rfind("\n", 0, index) - 1


def place(chromium, text, index):
  """Return where a character is on the screen; the text is not scrolled."""
  left, top, width = chromium.run(
    "const box = textCanvas.getBoundingClientRect();"
    "return [box.left, box.top, charWidth]"
  )
  line, at = column(text, index)
  return left + 4 + (at + 0.5) * width, top + 4 + line * LINE + 9


def levels_of(data, layer, signal):
  """Return the levels of a signal, [H, N], as the page has them."""
  signals = data.header["layers"][layer]["signals"]
  blob = next(s["blob"] for s in signals if s["name"] == signal)
  return data.array(blob).reshape(12, -1)


def test_clicks_and_keys_show_what_the_library_computes(
  explorer, data, text, explored_run
):
  def check_value(layer, signal):
    pattern = r"Unit (\d+) of \w+ is ([−\d.]+)\.(?=\s)"
    found = re.search(pattern, explorer.text("status")).groups()
    unit, value = map(number, found)
    assert [explorer.value(n) for n in SHOWN] == [layer, signal, f"{unit:.0f}"]
    values, half = data.signal(int(layer), signal)
    assert abs(value - values[int(unit), index]) < 1e-3
    return int(unit), value, half[int(unit), 0]

  index = text.index("compare", text.index("compare") + 1)
  explorer.click(*place(explorer, text, index))
  status = explorer.text("status")
  assert f"‘c’, character {index + 1} of {LENGTH}." in status
  assert "Next in the text: ‘o’" in status
  # The unit that tracks the position in the line best, and then the next one.
  scores = np.abs(data.header["layers"][1]["signals"][1]["scores"][0])
  assert check_value("1", "c")[0] == scores.argmax()
  explorer.press("n", "right", "right", "right", "left")
  index += 2
  unit, value, half = check_value("1", "c")
  assert unit == np.argsort(-scores, kind="stable")[1]
  trained = load(explored_run)
  tokens = trained.tokenizer.encode(text)
  model, state = trained.model, trained.model.initial_state(())
  state, logits = model.apply(trained.params, state, tokens[: index + 1])
  assert abs(value - state[1].c[unit]) < half + 1e-3
  explorer.press("L", "s")  # another layer and a gate
  check_value("0", "i")

  # The next character: the 10 likeliest come first; the text's own may follow.
  p = np.asarray(jax.nn.softmax(logits[-1]))
  symbols = [SYMBOLS.get(c, c) for c in trained.tokenizer.symbols]
  rows = explorer.table("#next li")
  shown = np.array([number(row[2]) / 100 for row in rows])
  expected = p[[symbols.index(row[0]) for row in rows]]
  assert np.abs(shown - expected).max() < 1e-4
  assert np.abs(shown[:10] - np.sort(p)[::-1][:10]).max() < 1e-4
  ((actual, _, percent),) = explorer.table("#next li.actual")
  assert actual == text[index + 1]
  assert f"with probability {percent}." in explorer.text("status")

  # The gradient of its log-probability.
  norms = explorer.table("#norms tr")
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
  explorer.press("ctrl+end")
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
    assert [explorer.value(n) for n in SHOWN] == [str(layer), name, str(unit)]
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
  for keys, order, rank in (("N", 1, 4), ("o", 2, 0), ("O", 1, 0)):
    explorer.press(*keys)  # Shift reverses a key
    check(0, "f", order, rank)
  explorer.push("#following")
  check(0, "f", 1, 1)
  left, top = explorer.corner("units")  # of squares that are 14 pixels apart
  explorer.click(left + 3 * 14 + 7, top + 7)
  check(0, "f", 1, 3)
  explorer.choose("order", 0)
  options = explorer.run("return [...$('unit').options].map((o) => o.text)")
  assert options == [str(unit) for unit in range(12)]


def test_keys_move_the_cursor_and_scroll_the_text(explorer, text):
  begins = [0, *(k + 1 for k, c in enumerate(text) if c == "\n")]
  explorer.emulate(1100, 400)  # eight lines of the text
  explorer.settle()
  page = explorer.run("return Math.floor(textBox.clientHeight / 26) - 2")
  assert len(begins) > page + 2 > 5
  for key, expected in (
    ("ctrl+home", 0),
    ("left", 0),
    ("pagedown", begins[page]),
    ("down", begins[page + 1]),
    ("end", begins[page + 2] - 1),
    ("up", begins[page + 1] - 1),
    ("ctrl+end", LENGTH - 1),
    ("home", begins[-1]),
    ("pageup", begins[-1 - page]),
  ):
    explorer.press(key)
    at, line, top, height = explorer.run(
      "return [cursor, lineOf[cursor], textBox.scrollTop, textBox.clientHeight]"
    )
    assert (at, line) == (expected, text.count("\n", 0, at)), key
    assert top <= line * LINE and (line + 1) * LINE <= top + height


def test_the_text_and_the_units_have_the_colors_of_their_values(
  explorer, data, text
):
  cursor = 60
  explorer.run("stepUnit(1); moveTo(args[0])", cursor)
  unit = int(explorer.value("unit"))
  signed, unsigned = (
    explorer.run("return palettes[args[0]].map(({ fill }) => fill)", kind)
    for kind in (True, False)
  )
  # Blue below 0 and red above; an open gate is purple.
  ends = [signed[k] for k in (1, 128, 255)] + [unsigned[k] for k in (0, 255)]
  assert [f"#{bytes(rgb(fill)).hex()}" for fill in ends] == (
    ["#1f5fa8", "#ffffff", "#b3261e", "#ffffff", PURPLE]
  )
  levels = levels_of(data, 1, "c")
  calls = explorer.drawn("drawText()")
  boxes = [values for name, *values in calls if name == "fillRect"]
  width = explorer.run("return charWidth")
  for t, (fill, x, y, *_) in enumerate(boxes[: len(text)]):
    assert rgb(fill) == rgb(signed[levels[unit, t]])
    line, at = column(text, t)
    assert abs(x - 4 - at * width) <= 0.5 and y == 4 + line * LINE
  # The bars under the text show four decades of the norm of the gradient with
  # respect to h and c together.
  norms = np.hypot(*(data.paths(1)[s][cursor, : cursor + 1] for s in "hc"))
  expected = np.maximum(0, 1 + np.log10(norms / norms.max()) / 4)
  heights = [values[4] for values in boxes if values[0] == ACCENT]
  np.testing.assert_allclose(heights, 6 * expected, atol=1e-6)
  assert np.ptp(expected) > 0.3
  squares = explorer.drawn("drawUnits()")
  found = [rgb(fill) for name, fill, *_ in squares if name == "fillRect"]
  ranks = explorer.run("return ranks")
  assert found == [rgb(signed[levels[u, cursor]]) for u in ranks]


def test_the_path_of_the_gradient_is_to_scale(explorer, data):
  at = 150
  explorer.run("moveTo(args[0])", at)
  calls = explorer.drawn("drawPath()")
  texts = {str(v[2]): v[3:] for v in calls if v[0] == "fillText"}
  assert {"cursor", "32", "64", "characters back", "h", "c"} < {*texts}
  decades = {number(t[2:]): y for t, (_, y) in texts.items() if t[:2] == "1e"}
  (low, bottom), (high, top) = min(decades.items()), max(decades.items())
  assert low < high
  steps = (texts["64"][0] - texts["32"][0]) / 32
  for name, color in (("h", ACCENT), ("c", PURPLE)):
    norms = data.paths(1)[name][at]
    backs = np.flatnonzero(norms)
    x, y = np.transpose(
      [v[2:] for v in calls if v[0] == "lineTo" and v[1] == color]
    )
    logs = np.log10(norms[backs])
    shown = logs > low
    expected = bottom + (top - bottom) * (logs - low) / (high - low)
    assert shown.any()
    np.testing.assert_allclose(x, texts["32"][0] + (backs - 32) * steps)
    np.testing.assert_allclose((y - expected)[shown], (y - expected)[shown][0])


def test_a_pattern_is_found_and_f_goes_to_the_next_passage(explorer, text):
  def find(pattern):
    explorer.choose("pattern", pattern)
    return explorer.run("return found.map((p) => [p.first, p.last + 1])")

  def spans(pattern):
    return [list(m.span()) for m in re.finditer(pattern, text, re.I)]

  assert find("MORE") == spans("more")
  places = [last - 1 for _, last in spans("more")]
  assert explorer.text("foundtitle") == f"{len(places)} passages"
  explorer.run("moveTo(0); textBox.focus()")
  for key, k in [*(("f", k) for k in range(len(places))), ("f", 0), ("F", -1)]:
    explorer.press(key)
    assert explorer.run("return cursor") == places[k]
  explorer.push("#found button", 1)
  assert explorer.run("return selection()") == [places[1] - 3, places[1]]
  many = find("/[aeiou]/")
  title = f"{len(many)} passages, of which the first 30 are listed"
  assert explorer.text("foundtitle") == title
  assert len(explorer.table("#found li")) == 30
  assert find(r"/th?o[u.]\P{L}/") == spans("th?o[u.][^A-Za-z]") != []
  assert find("a.c") == []  # a dot is a dot
  assert find("/(/") == []
  assert "Not a regular expression" in explorer.text("foundtitle")


def ranked(scores):
  """Return the 30 highest scores above 0 that are 12 or more apart."""
  chosen = []
  for t in np.argsort(-scores, kind="stable"):
    if scores[t] > 0 and all(abs(t - other) >= 12 for other in chosen):
      chosen.append(int(t))
  return chosen[:30]


def test_passages_are_ranked_by_strength_and_by_similarity(explorer, data):
  def shown():
    """Return what is found, the unit, and the signal's levels around 0."""
    found = explorer.run("return found.map((p) => [p.first, p.note])")
    layer, name, unit = (explorer.value(n) for n in SHOWN)
    middle = 128 if name == "c" else 127.5  # ½ is subtracted from a gate
    return found, int(unit), levels_of(data, int(layer), name) - float(middle)

  explorer.choose("finder", "strongest")
  for key, zero in (("n", 0), ("s", 127.5)):
    explorer.press(key)  # another unit, or signal, has other passages
    found, unit, levels = shown()
    assert [t for t, _ in found] == ranked(np.abs(levels[unit] + zero))
  # The mean over a selection is compared with every other state.
  explorer.run("moveTo(100); textBox.focus(); anchor = 96")
  explorer.choose("finder", "similar")
  for key in ("", "S"):
    explorer.press(*key)
    found, _, levels = shown()
    mean = levels[:, 96:101].sum(1)
    cosines = mean @ levels / np.linalg.norm(mean)
    cosines /= np.linalg.norm(levels, axis=0)
    cosines[96:101] = 0
    assert [t for t, _ in found] == ranked(cosines)
    assert found[0][1] == f"cosine {cosines.max():.3f}"
  explorer.push("#found button")
  assert explorer.run("return [anchor, cursor]") == [None, found[0][0]]


def test_a_span_is_selected_by_mouse_keys_or_a_button(explorer, text):
  index = text.index("compare")
  explorer.run("textBox.scrollTop = 0")

  def at(k):
    return place(explorer, text, index + k)

  def check(*expected):
    """Compare the anchor, the cursor, and the ends of the selection."""
    found = explorer.run("return [anchor, cursor, ...selection()]")
    assert [k if k is None else k - index for k in found] == [*expected]

  explorer.drag(at(0), at(3), at(6))
  check(0, 6, 0, 6)
  explorer.drag(at(6), at(2))  # backward
  check(6, 2, 2, 6)
  explorer.click(*at(1))
  check(None, 1, 1, 1)
  explorer.push("#select")
  explorer.click(*at(4))
  explorer.press("right")
  check(1, 5, 1, 5)
  explorer.push("#select")
  check(None, 5, 5, 5)
  explorer.press("shift+right", "shift+right")
  check(5, 7, 5, 7)
  explorer.press("left")
  check(None, 6, 6, 6)
  explorer.run(
    "textBox.dispatchEvent(new MouseEvent('click', { clientX: args[0],"
    " clientY: args[1], bubbles: true, shiftKey: true }))",
    *at(1),
  )
  check(6, 1, 1, 6)


def test_pinned_units_show_the_line_in_their_own_colors(explorer, data):
  def check():
    cursor = explorer.run("return cursor")
    found = explorer.run("""
      return [...document.querySelectorAll("#pins li")].map((item) => {
        const canvas = item.querySelector("canvas");
        const ratio = canvas.width / canvas.clientWidth;
        const at = [4 + columnOf[cursor] * charWidth + 3, 3].map(
          (v) => Math.round(v * ratio));
        const copy = new OffscreenCanvas(canvas.width, canvas.height)
          .getContext("2d", { willReadFrequently: true });
        copy.drawImage(canvas, 0, 0);
        return [item.querySelector("button").innerText,
          item.querySelector("span").innerText,
          [...copy.getImageData(...at, 1, 1).data].slice(0, 3)];
      });
    """)
    for (name, value, color), (layer, signal, unit) in zip(
      found, expected, strict=True
    ):
      assert name == f"unit {unit} of {signal}, layer {layer + 1}"
      values, _ = data.signal(layer, signal)
      assert abs(number(value) - values[unit, cursor]) < 1e-3
      level = int(levels_of(data, layer, signal)[unit, cursor])
      fill = "return palettes[args[0]][args[1]].fill"
      assert rgb(explorer.run(fill, signal == "c", level)) == color

  expected = []
  for keys, layer, signal in (("i", 1, "c"), ("nni", 1, "c"), ("Lsi", 0, "i")):
    for key in keys:
      explorer.press(key)
    expected.append((layer, signal, int(explorer.value("unit"))))
  explorer.press("right", "down", "right")
  explorer.settle()
  check()
  assert explorer.run(UNNAMED) == []
  # A click on the name of a pin shows its unit in the text, and the key that
  # pins a unit removes the pin.
  explorer.push("#pins button")
  unit = str(expected[0][2])
  assert [explorer.value(n) for n in SHOWN] == ["1", "c", unit]
  explorer.run("textBox.focus()")
  explorer.press("i")
  del expected[0]
  check()
  explorer.push("#pins button", 1)  # ×
  del expected[0]
  check()
  explorer.run("textBox.focus()")
  for _ in range(9):
    explorer.press("n", "i")
  assert len(explorer.table("#pins li")) == 8
  assert explorer.run("return $('pin').disabled")


def test_a_word_is_one_token_as_wide_as_its_characters(chromium, words_page):
  layout = "return pieces.map((p, t) => [p, lineOf[t], columnOf[t]])"
  with viewing(chromium, words_page):
    assert chromium.run(layout)[3:10] == [
      [" lovely", 0, 13],
      [",", 0, 20],
      [" more", 0, 21],
      ["\n  ", 0, 26],
      ["<unk>", 1, 2],
      [" Thou", 1, 7],
      [" art", 1, 12],
    ]
    chromium.click(*place(chromium, "x" * 99, 16))  # in lovely
    # Three times the 12 tokens of LINES, and the 2 line breaks between them.
    assert "‘lovely’, word 4 of 38. Unit" in chromium.text("status")
    chromium.press("down")
    assert "‘art’, word 10 of 38." in chromium.text("status")
    assert "next word of the text" in chromium.text("reach")
