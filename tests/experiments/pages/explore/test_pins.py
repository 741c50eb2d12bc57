"""Pinned units on the page of `experiments.explore`, in a browser."""

import numpy as np
import pytest

from tests.experiments.pages import browser
from tests.experiments.pages.browser import chosen, text_of
from tests.experiments.pages.explored import PageData

pytestmark = [pytest.mark.programs, browser.NEEDED]


# Returns, for each pin, the color of the token at the cursor in its line.
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
  first, second = (  # the best unit and the one two places on
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
    values, _ = data.signal(layer, signal)
    assert abs(value - values[unit, cursor]) < 1e-3  # three decimals
    signed = signal == "c"
    scale = np.abs(values[unit]).max() if signed else 1.0
    level = values[unit, cursor] / scale
    level = round(127 * level) + 128 if signed else round(255 * level)
    fill = opened.run("return palettes[args[0]][args[1]].fill", signed, level)
    assert fill == f"rgb({','.join(map(str, pixel[:3]))})"

  # A click on the line moves the cursor.
  opened.run("""
    const canvas = $("pins").lastChild.lastChild;
    const { left, top } = canvas.getBoundingClientRect();
    canvas.dispatchEvent(new MouseEvent("click",
      { clientX: left + 4 + 2.5 * charWidth, clientY: top + 9 }));
  """)
  opened.settle()
  assert opened.run("return cursor - starts[lineOf[cursor]]") == 2
  for (_, value), (layer, signal, unit) in zip(
    pins(opened), expected, strict=True
  ):
    values, _ = data.signal(layer, signal)
    at = opened.run("return cursor")
    assert abs(value - values[unit, at]) < 1e-3

  # A click on the name of a pin shows its unit in the text, and the key that
  # pins a unit removes the pin.
  opened.run("document.querySelector('#pins button').focus()")
  opened.run("document.querySelector('#pins button').click()")
  opened.settle()
  assert opened.run("return document.activeElement.id") == "text"
  assert (chosen(opened, "layer"), chosen(opened, "signal")) == ("1", "c")
  assert int(chosen(opened, "unit")) == first
  assert text_of(opened, "pin") == "Unpin"
  opened.run("textBox.focus()")
  opened.press("i")
  assert [name for name, _ in pins(opened)] == [n for n, _ in shown[1:]]
  assert text_of(opened, "pin") == "Pin"
  opened.run("document.querySelectorAll('#pins button')[1].click()")
  assert [name for name, _ in pins(opened)] == [shown[2][0]]
  focused = "return document.activeElement.textContent"
  assert opened.run(focused) == shown[2][0]
  opened.run("document.querySelectorAll('#pins button')[1].click()")
  assert opened.run(focused) == "Pin" and pins(opened) == []


def test_at_most_eight_units_are_pinned_and_none_while_a_signal_is_unpacked(
  opened,
):
  for _ in range(10):
    opened.press("i", "n")
  assert len(pins(opened)) == 8
  assert opened.run("return document.getElementById('pin').disabled")
  # `setBusy(true)` stands for the unpacking of another signal's values.
  busy = "setBusy(true); togglePin(); setBusy(false); return pins.length;"
  opened.run("setPins([])")
  assert opened.run(busy) == 0
