"""The page of `experiments.explore` in a browser."""

import itertools
import re

import jax
import numpy as np
import pytest

from experiments import explore
from experiments.pages.explore import TEMPLATE, pack_path, pack_signal
from experiments.pages.packing import Blobs
from experiments.trainer.trained import load
from tests.experiments.pages import browser
from tests.experiments.pages.browser import text_of
from tests.experiments.pages.explored import HOSTILE, VERSE, PageData, val_text

pytestmark = [pytest.mark.programs, browser.NEEDED]


@pytest.fixture
def opened(chromium, explored_page):
  chromium.emulate(1100, 900)
  chromium.errors(), chromium.requests()
  chromium.open(explored_page)
  yield chromium
  assert chromium.errors() == []
  # The page requests nothing but itself.
  assert set(chromium.requests()) == {explored_page.resolve().as_uri()}


def chosen(chromium, name):
  """Return the value of a menu."""
  return chromium.run("return document.getElementById(args[0]).value", name)


def click_on(chromium, text, index):
  """Click on a character of a text whose lines fit the window."""
  left, top, width = chromium.run(
    "const box = textCanvas.getBoundingClientRect();"
    "return [box.left, box.top, charWidth]"
  )
  line = text.count("\n", 0, index)
  column = index - (text.rfind("\n", 0, index) + 1)
  chromium.click(left + 4 + (column + 0.5) * width, top + 4 + line * 26 + 9)


def value_shown(chromium):
  """Return the (unit, value) of the status line."""
  match = re.search(
    r"Unit (\d+) of \w+ is ([−\d.]+)\.(?=\s)", text_of(chromium, "status")
  )
  return int(match[1]), float(match[2].replace("−", "-"))


def test_clicks_and_keys_show_what_the_library_computes(
  opened, explored_page, explored_run
):
  data, text = PageData(explored_page), val_text(explored_run)
  assert chosen(opened, "layer") == "1"  # the top one, counted from 0
  assert chosen(opened, "signal") == "c"
  scores = np.abs(data.header["layers"][1]["signals"][1]["scores"][0])
  assert int(chosen(opened, "unit")) == scores.argmax()  # of line position
  index = text.index("compare", text.index("compare") + 1)
  click_on(opened, text, index)
  assert f"‘c’, character {index + 1} of 400." in text_of(opened, "status")
  assert "Next in the text: ‘o’" in text_of(opened, "status")

  # The state, after keys that move to the next unit and two characters on.
  opened.press("n", "right", "right", "right", "left")
  index += 2
  unit, value = value_shown(opened)
  assert unit == np.argsort(-scores, kind="stable")[1]
  trained = load(explored_run)
  tokens = trained.tokenizer.encode(text)
  model, state = trained.model, trained.model.initial_state(())
  state, logits = model.apply(trained.params, state, tokens[: index + 1])
  _, half = data.signal(1, "c")
  assert abs(value - state[1].c[unit]) < half[unit, 0] + 1e-3

  # Another layer and a gate: the color of a character is the gate's level.
  opened.press("L", "s")
  assert (chosen(opened, "layer"), chosen(opened, "signal")) == ("0", "i")
  unit, value = value_shown(opened)
  gate, half = data.signal(0, "i")
  assert abs(value - gate[unit, index]) < 1e-3
  pixel, fill = opened.run(
    """
    const [t, level] = args, x = 4 + (t - starts[lineOf[t]]) * charWidth;
    const context = textCanvas.getContext("2d");
    const at = [x + 2, 4 + lineOf[t] * LINE + 2].map(Math.round);
    return [[...context.getImageData(...at, 1, 1).data],
      palettes[signal.signed][level].fill];
    """,
    index,
    round(255 * gate[unit, index]),
  )
  assert fill == f"rgb({','.join(map(str, pixel[:3]))})"

  # The next character, and the gradient of its log-probability.
  p = np.asarray(jax.nn.softmax(logits[-1]))
  rows = opened.run(
    "return [...document.querySelectorAll('#next li')].map((row) =>"
    "[row.className, row.children[0].innerText, row.children[2].innerText])"
  )
  symbols = {" ": "␣", "\n": "↵"}
  ids = {symbols.get(c, c): n for n, c in enumerate(trained.tokenizer.symbols)}
  shown = [float(percent.rstrip(" %")) / 100 for _, _, percent in rows]
  for (_, symbol, _), value in zip(rows, shown, strict=True):
    assert abs(value - p[ids[symbol]]) < 1e-4
  assert np.abs(shown[:10] + np.sort(-p)[:10]).max() < 1e-4
  assert [row[1] for row in rows if row[0] == "actual"] == [text[index + 1]]
  norms = opened.run(
    "return [...document.querySelectorAll('#norms tr')].map((row) =>"
    "[...row.children].map((cell) => cell.textContent))"
  )
  assert [int(row[0]) for row in norms] == [0, 1, 2, 4, 8, 16, 32, 64]
  for back, symbol, norm_h, norm_c in norms:
    at = index - int(back)
    assert symbol == symbols.get(text[at], text[at])
    for shown, name in ((norm_h, "h"), (norm_c, "c")):
      norm = data.paths(0)[name][index, int(back)]
      if norm == 0:  # of c at the cursor: the prediction reads h alone
        assert (shown, name, back) == ("–", "c", "0")
      else:  # shown with two digits
        assert abs(float(shown.replace("−", "-")) / norm - 1) < 0.051
  assert "log p(‘" in text_of(opened, "reach")


def test_the_keyboard_reaches_everything(opened, explored_page, explored_run):
  text = val_text(explored_run)
  focused = "return document.activeElement.id"
  assert opened.run(focused) == "text"
  assert (
    opened.run("return getComputedStyle(document.activeElement).outlineStyle")
    == "solid"
  )

  def cursor():
    return opened.run("return cursor")

  assert cursor() == 192  # two windows: its gradient path is complete
  lines = text.split("\n")
  opened.run("moveTo(0)")
  opened.press("down", "end")
  assert cursor() == len(lines[0]) + 1 + len(lines[1])  # at its line break
  opened.press("up", "home")
  assert cursor() == 0
  opened.press("left")
  assert cursor() == 0
  opened.press("s", "s", "s", "s")  # from c over i, f and g
  assert chosen(opened, "signal") == "o"
  opened.press("s", "S", "S", "o")
  assert (chosen(opened, "signal"), chosen(opened, "order")) == ("g", "2")
  first = chosen(opened, "unit")
  opened.press("n", "p")
  assert chosen(opened, "unit") == first
  # The menus come before the text, in their visual order.
  opened.run("document.getElementById('layer').focus()")
  order = []
  for _ in range(9):
    opened.press("tab")
    order.append(opened.run(focused))
  menus = ["signal", "order", "previous", "unit", "following"]
  assert order == [*menus, "owntitle", "pin", "select", "text"]
  opened.press("i")  # a pin is named, too
  unnamed = opened.run(
    """
    return [...document.querySelectorAll("select, button, canvas, [tabindex]")]
      .filter((e) => !e.ariaLabel && !e.closest("label, #swap")
        && !e.closest("#pins button:first-child")
        && !e.hasAttribute("aria-labelledby") && e !== textCanvas)
      .map((e) => e.outerHTML);
    """
  )
  assert unnamed == []


def test_a_script_in_the_text_is_shown_and_never_runs(opened, explored_run):
  text = val_text(explored_run)
  assert opened.run("return document.title") == "Cell explorer"
  assert HOSTILE in opened.run("return pieces.join('')")
  click_on(opened, text, text.index(HOSTILE))
  assert "‘<’" in text_of(opened, "status")
  opened.press(*["right"] * 8)
  assert "‘d’" in text_of(opened, "status")
  running = "return document.querySelectorAll('script:not([type])').length"
  assert opened.run(running) == 11  # the page's ten, and the shared head's
  assert opened.run("return document.title") == "Cell explorer"


def find(chromium, finder, pattern=""):
  """Choose how to find; return [first, last, note] of the passages."""
  chromium.run(
    "$('finder').value = args[0]; $('pattern').value = args[1]; find();",
    finder,
    pattern,
  )
  return chromium.run("return found.map((p) => [p.first, p.last, p.note])")


def test_a_pattern_is_found_and_f_goes_to_the_next_passage(
  opened, explored_run
):
  text = val_text(explored_run)
  places = [m.start() for m in re.finditer("more", text, re.I)]
  assert find(opened, "pattern", "MORE") == [[t, t + 3, None] for t in places]
  assert text_of(opened, "foundtitle") == f"{len(places)} passages"
  opened.run("moveTo(0); textBox.focus()")
  for place in (*places, places[0]):  # after the last one, the first again
    opened.press("f")
    assert opened.run("return cursor") == place + 3
  opened.press("F")
  assert opened.run("return cursor") == places[-1] + 3
  words = [m.span() for m in re.finditer("th?o[u.]", text, re.I)]
  found = find(opened, "pattern", "/th?o[u.]/")
  assert found == [[a, b - 1, None] for a, b in words]
  assert find(opened, "pattern", "a.c") == []  # a dot is a dot
  assert find(opened, "pattern", "/(/") == []
  assert "Not a regular expression" in text_of(opened, "foundtitle")


def ranked(scores, most=30, apart=12):
  """Return the indices of the highest scores that are not close together."""
  chosen = []
  for t in np.argsort(-scores, kind="stable"):
    if len(chosen) < most and all(abs(t - other) >= apart for other in chosen):
      chosen.append(int(t))
  return chosen


def test_passages_are_ranked_by_strength_and_by_similarity(
  opened, explored_page
):
  data = PageData(explored_page)
  (c,) = (s for s in data.header["layers"][1]["signals"] if s["name"] == "c")
  levels = (
    data.array(c["blob"]).reshape(len(c["scale"]), -1).astype(float) - 128
  )
  unit = int(chosen(opened, "unit"))
  found = find(opened, "strongest")
  assert [t for t, *_ in found] == ranked(np.abs(levels[unit]))
  first = found[0][0]
  value = levels[unit, first] / 127 * c["scale"][unit]
  assert found[0][2] == f"{value:.3f}".replace("-", "−")
  # The mean of a selection, made with Shift, against every other state.
  opened.run("moveTo(100); textBox.focus(); anchor = 96")
  found = find(opened, "similar")
  mean = levels[:, 96:101].sum(1)
  cosines = mean @ levels / np.linalg.norm(mean)
  cosines /= np.linalg.norm(levels, axis=0)
  cosines[96:101] = 0
  assert [t for t, *_ in found] == ranked(cosines)
  assert found[0][2] == f"cosine {cosines.max():.3f}"
  assert "at the 5 selected characters" in text_of(opened, "foundtitle")
  opened.run("document.querySelector('#found button').click()")
  assert opened.run("return cursor") == found[0][0]


def test_a_span_is_selected_by_mouse_keys_or_a_button(opened, explored_run):
  text = val_text(explored_run)
  index = text.index("compare")
  line = text.count("\n", 0, index)
  column = index - (text.rfind("\n", 0, index) + 1)
  left, top, width = opened.run(
    "textBox.scrollTop = 0;"
    "const box = textCanvas.getBoundingClientRect();"
    "return [box.left, box.top, charWidth]"
  )

  def place(k):
    x = left + 4 + (column + k + 0.5) * width
    return x, top + 4 + line * 26 + 9

  def selected():
    return opened.run("return [anchor, cursor, ...selection()]")

  opened.drag(place(0), place(3), place(6))
  assert selected() == [index, index + 6, index, index + 6]
  opened.drag(place(6), place(2))  # backward
  assert selected() == [index + 6, index + 2, index + 2, index + 6]
  opened.click(*place(1))
  assert selected() == [None, *[index + 1] * 3]
  opened.run("textBox.focus(); $('select').click()")
  opened.click(*place(4))
  opened.press("right")
  assert selected() == [index + 1, index + 5, index + 1, index + 5]
  opened.run("$('select').click()")
  assert selected() == [None, *[index + 5] * 3]


PIXELS = """
  return [...document.querySelectorAll("#pins canvas")].map((canvas) => {
    const ratio = canvas.width / canvas.clientWidth;
    const x = 4 + columnOf[cursor] * charWidth + 3;
    const at = [x * ratio, 3 * ratio].map(Math.round);
    return [...canvas.getContext("2d").getImageData(...at, 1, 1).data];
  });
"""


def pins(chromium):
  """Return (name, value) of each pinned unit, once they are drawn."""
  chromium.settle()
  rows = chromium.run(
    "return [...document.querySelectorAll('#pins li')].map((item) =>"
    "[item.querySelector('button').innerText,"
    " item.querySelector('span').innerText])"
  )
  return [(name, float(value.replace("−", "-"))) for name, value in rows]


def test_pinned_units_show_the_line_in_their_own_colors(opened, explored_page):
  data = PageData(explored_page)
  opened.press("i", "n", "n", "i")  # two units of c in the top layer
  opened.press("L", "s")
  opened.settle()
  opened.press("i")  # a gate of the lowest
  first, second = (
    np.argsort(
      -np.abs(data.header["layers"][1]["signals"][1]["scores"][0]),
      kind="stable",
    )[k]
    for k in (0, 2)
  )
  gate = int(chosen(opened, "unit"))
  expected = [
    (1, "c", first),
    (1, "c", second),
    (0, "i", gate),
  ]
  opened.press("right", "down", "right")
  opened.settle()
  cursor = opened.run("return cursor")
  shown, pixels = pins(opened), opened.run(PIXELS)
  assert len(shown) == 3
  for (name, value), pixel, (layer, signal, unit) in zip(
    shown, pixels, expected, strict=True
  ):
    assert name == f"unit {unit} of {signal}, layer {layer + 1}"
    values, half = data.signal(layer, signal)
    assert abs(value - values[unit, cursor]) < half.flat[0] + 1e-3
    signed = signal == "c"
    scale = np.abs(values[unit]).max() if signed else 1.0
    level = values[unit, cursor] / scale
    level = round(127 * level) + 128 if signed else round(255 * level)
    fill = opened.run("return palettes[args[0]][args[1]].fill", signed, level)
    assert fill == f"rgb({','.join(map(str, pixel[:3]))})"

  # Its name shows a unit in the text, and the same key removes the pin.
  opened.run("document.querySelector('#pins button').click()")
  opened.settle()
  assert (chosen(opened, "layer"), chosen(opened, "signal")) == ("1", "c")
  assert int(chosen(opened, "unit")) == first
  assert text_of(opened, "pin") == "Unpin"
  opened.run("textBox.focus()")
  opened.press("i")
  assert [name for name, _ in pins(opened)] == [n for n, _ in shown[1:]]
  assert text_of(opened, "pin") == "Pin"
  opened.run("document.querySelectorAll('#pins button')[1].click()")
  assert [name for name, _ in pins(opened)] == [shown[2][0]]


def test_no_more_units_can_be_pinned_than_fit(opened):
  for _ in range(10):
    opened.press("i", "n")
  assert len(pins(opened)) == 8
  assert opened.run("return document.getElementById('pin').disabled")


def test_on_a_phone_the_text_stays_over_what_it_explains(opened, explored_page):
  opened.emulate(360, 740)
  opened.open(explored_page)

  def box(name):
    return opened.run(
      "const box = document.getElementById(args[0]).getBoundingClientRect();"
      "return [box.top, box.bottom]",
      name,
    )

  text, panel, more = box("text"), box("atcursor"), box("more")
  assert 0 < text[0] < text[1] <= panel[0] < panel[1] <= more[0]
  for name in ("next", "path"):
    opened.run(
      "window.scrollTo(0, scrollY - 300 +"
      "document.getElementById(args[0]).getBoundingClientRect().top)",
      name,
    )
    assert box("text")[0] == 0
    assert abs(box(name)[0] - 300) < 1  # in view, under the text
    assert box("text")[1] < 300


@pytest.mark.exhaustive
def test_a_word_is_as_wide_as_its_characters(chromium, words_page):
  chromium.emulate(1100, 900)
  chromium.open(words_page)
  layout = "return pieces.map((p, t) => [p, lineOf[t], columnOf[t], widths[t]])"
  boxes = chromium.run(layout)
  assert [box[:3] for box in boxes[:11]] == [
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
  left, top, width = chromium.run(
    "const box = textCanvas.getBoundingClientRect();"
    "return [box.left, box.top, charWidth]"
  )
  chromium.click(left + 4 + 16.5 * width, top + 13)  # in lovely
  assert "‘lovely’, word 4 of 38. Unit" in text_of(chromium, "status")
  assert "Next in the text: ‘,’" in text_of(chromium, "status")
  chromium.press("down")
  assert "‘art’, word 10 of 38." in text_of(chromium, "status")
  assert "next word of the text" in text_of(chromium, "reach")
  actual = "return document.querySelector('#next .actual b').innerText"
  assert chromium.run(actual) == "↵"

  # On a phone, lines are broken: no word passes the edge or overlaps another.
  chromium.emulate(150, 740)
  chromium.open(words_page)
  columns, boxes = chromium.run("return columns"), chromium.run(layout)
  assert columns < 26
  assert all(column + width <= columns for _, _, column, width in boxes)
  assert [box[1] for box in boxes] == sorted(box[1] for box in boxes)
  for (_, line, column, width), (_, line2, column2, _) in itertools.pairwise(
    boxes
  ):
    assert line2 > line or column2 == column + width
  assert chromium.errors() == []


@pytest.mark.exhaustive
def test_a_page_of_words_opens_at_its_cursor(
  chromium, words_page, console, tmp_path
):
  """Which stands so many words in that they fill more than the window."""
  text = tmp_path / "long.txt"
  text.write_text("Thou\nart\nmore\nlovely\n" * 60, encoding="utf-8")
  options = explore.ExploreConfig(str(words_page.parent), str(text))
  page = explore.run(options, console).path
  for size in ((1100, 900), (360, 740)):
    chromium.emulate(*size)
    chromium.open(page)
    line, top, height = chromium.run(
      "return [lineOf[cursor] * LINE, textBox.scrollTop, textBox.clientHeight]"
    )
    assert height < line  # from the top, it would be out of sight
    assert top <= line and line + 26 <= top + height


@pytest.mark.exhaustive
def test_the_list_and_the_status_show_one_probability(opened):
  shown = opened.run(
    """
    const shown = [];
    for (let t = 0; t + 1 < pieces.length; t++) {
      moveTo(t);
      const listed = document.querySelector("#next .actual span");
      const status = document.getElementById("status").textContent;
      shown.push([listed.textContent, status.match(/[0-9.]+ %/)[0]]);
    }
    return shown;
    """
  )
  assert len(shown) == 399
  assert [listed for listed, _ in shown] == [status for _, status in shown]


@pytest.mark.everyday(1)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_scrolls_in_one_direction_and_every_color_is_legible(
  opened, explored_page, scheme, tmp_path
):
  opened.emulate(360, 740, scheme)
  opened.open(explored_page)
  for _ in range(6):
    opened.press("s")
    width = opened.run("return document.documentElement.scrollWidth")
    assert width == 360
    shades = opened.run("return palettes[signal.signed]")
    pairs = [(shade["fill"], shade["ink"]) for shade in shades]
    fills = [fill for fill, _ in pairs]
    assert min(contrast(*pair) for pair in pairs) >= 4.5
    assert len(set(fills)) > 200
  picture = tmp_path / "page.png"
  opened.screenshot(picture)
  assert picture.read_bytes().startswith(b"\x89PNG")
  background = opened.run("return getComputedStyle(document.body).color")
  assert (
    background
    == {
      "light": "rgb(27, 31, 36)",
      "dark": "rgb(230, 233, 236)",
    }[scheme]
  )


def contrast(fill, ink):
  """Return the contrast of two colors as WCAG 2 defines it."""

  def luminance(values):
    linear = [
      v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4
      for v in (int(v) / 255 for v in values)
    ]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

  a = luminance(re.findall(r"\d+", fill))
  b = luminance([255] * 3 if ink == "#fff" else [0] * 3)
  return (max(a, b) + 0.05) / (min(a, b) + 0.05)


@pytest.mark.exhaustive
def test_a_long_text_of_many_units_responds_quickly(chromium, tmp_path):
  units, length, window = 512, 20_000, 96
  draw, blobs = np.random.default_rng(0), Blobs()
  text = (VERSE * length)[:length]
  values = draw.random((units, length), np.float32)
  signals = [
    pack_signal("c", values - 0.5, [], blobs, signed=True)
    | {"meaning": "cell state"},
    pack_signal("f", values, [], blobs, signed=False)
    | {"meaning": "forget gate"},
  ]
  norms = draw.random((length, window)).astype(np.float32)
  header = {
    "pieces": [*text],
    "tokens": blobs.add(np.zeros(length, "<u4")),
    "unit": "character",
    "window": window,
    "features": [],
    "constant": [],
    "about": "random",
    "source": "noise",
    "symbols": sorted(set(text)),
    "layers": [{"signals": signals, "paths": [pack_path("h", norms, blobs)]}],
    "next": {
      "count": 10,
      "tokens": blobs.add(np.zeros((length, 10), "<u4")),
      "probabilities": blobs.add(np.zeros((length, 10), "<u2")),
      "actual": blobs.add(np.zeros(length - 1, "<f4")),
    },
  }
  path = tmp_path / "long.html"
  path.write_text(blobs.page(TEMPLATE, header), encoding="utf-8")
  chromium.emulate(1100, 900)
  chromium.open(path)
  milliseconds = chromium.run(
    """
    const medians = {};
    for (const key of ["ArrowRight", "ArrowDown", "n", "s"]) {
      const times = [];
      for (let k = 0; k < 15; k++) {
        const start = performance.now();
        textBox.dispatchEvent(new KeyboardEvent("keydown", { key }));
        while (document.querySelector("main").ariaBusy === "true") {
          await new Promise((done) => setTimeout(done, 1));
        }
        await new Promise(requestAnimationFrame);  // the one after the drawing
        times.push(performance.now() - start);
      }
      medians[key] = times.sort((a, b) => a - b)[7];
    }
    return medians;
    """
  )
  assert milliseconds["ArrowRight"] < 100
  assert milliseconds["ArrowDown"] < 100
  assert milliseconds["n"] < 150
  assert milliseconds["s"] < 1500
  assert chromium.errors() == []
