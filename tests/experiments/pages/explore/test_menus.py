"""Menus, keys and scrolling of the page of `experiments.explore`."""

import numpy as np
import pytest

from tests.experiments.pages import browser
from tests.experiments.pages.browser import chosen, text_of
from tests.experiments.pages.explored import LENGTH, PageData, val_text

pytestmark = [pytest.mark.programs, browser.NEEDED]


def select(chromium, name, value):
  """Choose from a menu."""
  chromium.run(
    "$(args[0]).value = args[1]; $(args[0]).dispatchEvent(new Event('change'))",
    name,
    value,
  )
  chromium.settle()


def press_with(chromium, modifier, key):
  """Press a key in the text with a modifier, such as "ctrl".

  Returns whether the page leaves the key to the browser.
  """
  default = chromium.run(
    "return textBox.dispatchEvent(new KeyboardEvent('keydown',"
    " { key: args[1], [`${args[0]}Key`]: true, cancelable: true }))",
    modifier,
    key,
  )
  chromium.settle()
  return default


def ranking(data, layer, signal, order):
  """Return the units from best to worst, and all scores as texts, by unit.

  `order` is a value of the menu "order": 1 for the first feature.
  """
  signals = data.header["layers"][layer]["signals"]
  (scores,) = (s["scores"][order - 1] for s in signals if s["name"] == signal)
  measure = data.header["features"][order - 1]["measure"]
  strength = np.abs(np.array(scores) - 0.5 * (measure == "AUC"))
  texts = [f"{measure} {score:.2f}".replace("-", "−") for score in scores]
  return np.argsort(-strength, kind="stable").tolist(), texts


@pytest.mark.exhaustive
def test_menus_choose_the_best_unit_and_the_legend_says_its_score(
  opened, explored_page
):
  data = PageData(explored_page)
  features = [feature["name"] for feature in data.header["features"]]
  assert {f["measure"] for f in data.header["features"]} == {"AUC", "r"}

  def check(layer, signal, order, unit):
    assert int(chosen(opened, "unit")) == unit
    units, texts = ranking(data, layer, signal, order)
    options = opened.run("return [...$('unit').options].map((o) => o.text)")
    assert options == [f"{u} ({texts[u]})" for u in units]
    meaning = {"c": "cell state", "f": "forget gate"}[signal]
    legend = opened.run(
      "return [...$('legend').children].map((e) => e.innerText)"
    )
    assert legend[0] == (
      f"Unit {unit} of {signal}, {meaning}, layer {layer + 1}; "
      f"{features[order - 1]}: {texts[unit]}"
    )
    largest = f"{data.scale(layer, signal)[unit]:.3f}"
    ends = [f"−{largest}", largest]
    ends = ends if signal == "c" else ["0 (closed)", "1 (open)"]
    assert [legend[1], legend[3]] == ends

  for order in range(1, len(features) + 1):
    select(opened, "order", order)
    unit = ranking(data, 1, "c", order)[0][0]
    check(1, "c", order, unit)
  select(opened, "signal", "f")  # the unit stays
  check(1, "f", order, unit)
  select(opened, "layer", 0)
  units = ranking(data, 0, "f", order)[0]
  check(0, "f", order, units[0])
  select(opened, "unit", units[5])
  check(0, "f", order, units[5])
  opened.press("N")
  check(0, "f", order, units[4])
  opened.press("P", "n")  # both to the next: Shift reverses a key
  check(0, "f", order, units[6])
  opened.run("$('previous').click(); $('previous').click();")
  check(0, "f", order, units[4])
  opened.run("$('following').click()")
  check(0, "f", order, units[5])
  opened.press("O")
  check(0, "f", order - 1, ranking(data, 0, "f", order - 1)[0][0])
  select(opened, "order", 0)
  options = opened.run("return [...$('unit').options].map((o) => o.text)")
  assert options == [str(unit) for unit in range(12)]
  # Before the first order comes the last one that is not disabled.
  opened.press("O")
  assert chosen(opened, "order") == str(len(features))
  units = opened.run(
    "return [...document.querySelectorAll('.unit')].map((e) => e.textContent)"
  )
  assert set(units) == {"character"}


def test_keys_scroll_the_text_and_a_click_finds_its_character(
  opened, explored_run
):
  text = val_text(explored_run)
  begins = [0, *(k + 1 for k, c in enumerate(text) if c == "\n")]
  opened.emulate(1100, 400)  # eight lines of the text
  opened.settle()

  def cursor():
    at, line, top, height = opened.run(
      "return [cursor, lineOf[cursor], textBox.scrollTop, textBox.clientHeight]"
    )
    assert line == text.count("\n", 0, at)
    assert top <= line * 26 and (line + 1) * 26 <= top + height
    return at

  press_with(opened, "ctrl", "Home")
  assert cursor() == 0
  page = opened.run("return Math.floor(textBox.clientHeight / 26) - 2")
  assert len(begins) > page + 2 > 5
  opened.run(
    "textBox.dispatchEvent(new KeyboardEvent('keydown', { key: 'PageDown' }))"
  )
  assert cursor() == begins[page]
  press_with(opened, "ctrl", "End")
  assert cursor() == LENGTH - 1
  opened.press("home")
  assert cursor() == begins[-1] > 0
  opened.run(
    "textBox.dispatchEvent(new KeyboardEvent('keydown', { key: 'PageUp' }))"
  )
  assert cursor() == begins[-1 - page]
  press_with(opened, "ctrl", "End")
  left, top, width, scrolled = opened.run(
    "textBox.scrollIntoView();"
    "const box = textCanvas.getBoundingClientRect();"
    "return [box.left, box.top, charWidth, textBox.scrollTop]"
  )
  assert scrolled > 0
  line = len(begins) - 1
  opened.click(left + 4 + 2.5 * width, top + 13 + line * 26 - scrolled)
  assert cursor() == begins[-1] + 2
  # A text that is scrolled is drawn again, and so is one of another width.
  first = """
    textBox.scrollTop = 0;
    for (const _ of [1, 2, 3]) await new Promise(requestAnimationFrame);
    const at = [5, 5].map((v) => v * devicePixelRatio);
    const { data: [r, g, b] } = textCanvas.getContext("2d").getImageData(
      ...at, 1, 1);
    return [`rgb(${r},${g},${b})`,
      palettes[signal.signed][levels[unit * pieces.length]].fill];
  """
  drawn, fill = opened.run(first)
  assert drawn == fill
  press_with(opened, "ctrl", "End")
  press_with(opened, "ctrl", "Home")
  assert cursor() == 0
  opened.emulate(400, 400, "dark")
  opened.settle()
  sizes = opened.run(
    "return [columns, Math.floor((textBox.clientWidth - 8) / charWidth),"
    " textCanvas.clientWidth, textBox.clientWidth, palettes.true[1].fill]"
  )
  assert sizes[0] == sizes[1] and sizes[2] == sizes[3]
  # Level 1 has the dark scheme's most negative color: signed levels start at 1.
  assert sizes[4] == "rgb(100,177,244)"
  assert press_with(opened, "ctrl", "f")  # the browser finds in the page


def test_the_first_tokens_have_fewer_steps_back_and_the_last_no_gradient(
  opened,
):
  steps = (
    "moveTo(args[0]); return [...document.querySelectorAll('#norms tr')].map("
    "(row) => Number(row.firstChild.textContent))"
  )
  assert opened.run(steps, 4) == [0, 1, 2, 4]
  assert opened.run(steps, 0) == [0]
  opened.run("moveTo(args[0])", LENGTH - 1)
  assert text_of(opened, "reach") == (
    "The text ends here: move the cursor back to see a gradient."
  )
  assert text_of(opened, "status").endswith(" The text ends here.")
  head = "return [...$('norms').previousSibling.rows[0].cells].map("
  head += "(cell) => cell.textContent)"
  assert opened.run(head) == ["steps back", "after", "‖dh‖", "‖dc‖"]
