"""The page of `experiments.explore` on any screen: layout, colors, speed."""

import itertools

import numpy as np
import pytest

from experiments import explore
from experiments.pages.explore import TEMPLATE, pack_path, pack_signal
from experiments.pages.packing import Blobs
from tests.experiments.pages import browser
from tests.experiments.pages.browser import contrast, text_of
from tests.experiments.pages.explored import LENGTH, VERSE

pytestmark = [pytest.mark.programs, browser.NEEDED]


@pytest.mark.exhaustive
def test_on_a_phone_the_text_stays_over_what_explains_it(opened, explored_page):
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
  # Three times the 12 tokens of LINES, and the 2 line breaks between them.
  assert "‘lovely’, word 4 of 38. Unit" in text_of(chromium, "status")
  assert "Next in the text: ‘,’" in text_of(chromium, "status")
  chromium.press("down")
  assert "‘art’, word 10 of 38." in text_of(chromium, "status")
  assert "next word of the text" in text_of(chromium, "reach")
  actual = "return document.querySelector('#next .actual b').innerText"
  assert chromium.run(actual) == "↵"

  names = (  # what the page calls a token
    "return [...document.querySelectorAll('.unit')].map((e) => e.innerText)"
  )
  assert set(chromium.run(names)) == {"word"}
  # A feature that is the same throughout has no order of the units.
  features, constant, disabled = chromium.run(
    "const options = [...$('order').options].filter((o) => o.disabled);"
    "return [data.features.length, data.constant, options.map((o) => o.text)]"
  )
  assert disabled == [f"{name} (the same throughout)" for name in constant]
  # O, the previous order, wraps from 0 to the last that is not disabled.
  chromium.run("$('order').value = 0; textBox.focus()")
  chromium.press("O")
  assert disabled and chromium.run("return order") == features

  # On a very narrow screen, lines are broken: no word passes the edge or
  # overlaps another.
  chromium.emulate(150, 740)
  chromium.open(words_page)
  columns, boxes = chromium.run("return columns"), chromium.run(layout)
  assert columns < 26  # the first line has 26
  assert all(column + width <= columns for _, _, column, width in boxes)
  assert [box[1] for box in boxes] == sorted(box[1] for box in boxes)
  for (_, line, column, width), (_, line2, column2, _) in itertools.pairwise(
    boxes
  ):
    assert line2 > line or column2 == column + width
  assert chromium.errors() == []


@pytest.mark.exhaustive
@pytest.mark.parametrize(
  ("words", "lines"),
  [
    ("['\\n' + ' '.repeat(columns), 'temperate', ' more']", [0, 1, 2]),
    ("['\\n' + ' '.repeat(columns), 'more'.repeat(columns)]", [0, 1]),
    ("['a', ' temperately', '-', 'temperate'.repeat(columns)]", [0, 1, 1, 2]),
  ],
  ids=["indentation", "indentation before a long word", "hyphen"],
)
def test_no_word_passes_the_edge(chromium, words_page, words, lines):
  chromium.emulate(360, 740)
  chromium.open(words_page)
  columns, boxes = chromium.run(
    f"pieces = {words}; layOut(); return [columns, pieces.map("
    "(_, t) => [lineOf[t], columnOf[t] + widths[t]])]"
  )
  assert [line for line, _ in boxes] == lines
  assert all(end <= columns for _, end in boxes)
  # At the edge; " temperately" begins the line of the hyphen.
  assert boxes[1][1] == (12 if words.startswith("['a'") else columns)


@pytest.mark.exhaustive
def test_a_page_of_words_opens_with_its_cursor_in_view(
  chromium, words_page, console, tmp_path
):
  """The words before the cursor are taller than the box of the text."""
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
    assert top <= line and line + 26 <= top + height  # LINE is 26


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
  assert len(shown) == LENGTH - 1  # all but the last, after which the text ends
  assert [listed for listed, _ in shown] == [status for _, status in shown]


@pytest.mark.everyday(1)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_scrolls_in_one_direction_and_every_color_is_legible(
  opened, explored_page, scheme
):
  opened.emulate(360, 740, scheme)
  opened.open(explored_page)
  for _ in range(6):  # the signals h, c, i, f, g and o
    opened.press("s")
    width = opened.run("return document.documentElement.scrollWidth")
    assert width == 360
    shades = opened.run("return palettes[signal.signed]")
    pairs = [(shade["fill"], shade["ink"]) for shade in shades]
    fills = [fill for fill, _ in pairs]
    assert min(contrast(*pair) for pair in pairs) >= 4.5
    assert len(set(fills)) > 200
  ink = opened.run("return getComputedStyle(document.body).color")
  assert (
    ink
    == {
      "light": "rgb(27, 31, 36)",
      "dark": "rgb(230, 233, 236)",
    }[scheme]
  )


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
        await new Promise(requestAnimationFrame);  // draw's has run
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
