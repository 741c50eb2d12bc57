"""The units of the page that writes: their menus, values and colors."""

import re

import numpy as np
import pytest

from tests.experiments.pages import browser
from tests.experiments.pages.browser import chosen, text_of
from tests.experiments.pages.explored import PageData

pytestmark = [pytest.mark.programs, browser.NEEDED]

PAGE, INK = (255, 255, 255), (27, 31, 36)
NEGATIVE, POSITIVE = (0x1F, 0x5F, 0xA8), (0xB3, 0x26, 0x1E)
# Returns, for each token, the values of a signal of a layer, and its color; for
# each unit at the end, the color of its square, and of the edge of the square.
SHOWN = """
  const [layer, signal] = args, { track, spans } = writing;
  const values = spans.map((_, t) => [...model.viewsOf(
    Float64Array.from(track.stateAt(t))).layers[layer][signal]]);
  const colors = spans.map((span) => span.style.background);
  const canvas = $("units"), ratio = canvas.width / canvas.clientWidth;
  const perRow = Math.floor(canvas.parentElement.clientWidth / 14);
  const copy = document.createElement("canvas").getContext("2d",
    { willReadFrequently: true });
  [copy.canvas.width, copy.canvas.height] = [canvas.width, canvas.height];
  copy.drawImage(canvas, 0, 0);
  const pixel = (x, y) => [...copy.getImageData(
    Math.round(x * ratio), Math.round(y * ratio), 1, 1).data].slice(0, 3);
  const at = values[0].map(
    (_, u) => [u % perRow * 14, Math.floor(u / perRow) * 14]);
  return [values, colors, at.map(([x, y]) => pixel(x + 7, y + 7)),
    at.map(([x, y]) => pixel(x + 1, y + 7))];
"""


def color_of(value, scale):
  """Return the color of a value, in 64 steps from the page's to another one."""
  share = np.floor(64 * min(1, abs(value) / scale) + 0.5) / 64
  end = np.array(NEGATIVE if value < 0 else POSITIVE)
  return [int(v) for v in np.floor(PAGE + (end - PAGE) * share + 0.5)]


def check(chromium, layers, layer, signal, unit):
  """Check all that the page shows of a unit."""
  states = {state["name"]: state for state in layers[layer]}
  scale, meaning = states[signal]["scale"], states[signal]["meaning"]
  assert [chosen(chromium, name) for name in ("layer", "signal", "unit")] == (
    [str(layer), signal, str(unit)]
  )
  title = f"Unit {unit} of {signal}, {meaning}, layer {layer + 1}"
  assert text_of(chromium, "unitTitle") == title
  ends = f"−{scale[unit]:.3f}", f"{scale[unit]:.3f}"
  assert (text_of(chromium, "low"), text_of(chromium, "high")) == ends
  values, colors, squares, edges = chromium.run(SHOWN, layer, signal)
  for state, color in zip(values, colors, strict=True):
    found = [int(v) for v in re.findall(r"\d+", color)]
    assert found == color_of(state[unit], scale[unit])
  pairs = zip(values[-1], scale, strict=True)
  assert squares == [color_of(value, largest) for value, largest in pairs]
  inked = [u for u, edge in enumerate(edges) if tuple(edge) == INK]
  assert inked == [unit]
  status = f" Unit {unit} of {signal} is {values[-1][unit]:.3f}. "
  assert status.replace("-", "−") in text_of(chromium, "status")


@pytest.mark.exhaustive
def test_a_unit_is_chosen_by_menus_keys_and_buttons(opened, make_page):
  header = PageData(make_page("lstm")[1]).header
  layers = header["layers"]
  opened.run(
    "$('again').click(); writing.pause();"
    "while (writing.track.length < 60) writing.advance();"
    "writing.show(); $('text').focus();"
  )

  def select(name, value):
    opened.run(
      "$(args[0]).value = args[1];"
      "$(args[0]).dispatchEvent(new Event('change'));",
      name,
      value,
    )

  # The unit that follows a feature, as the menu describes it.
  options = opened.run("return [...$('follows').options].map((o) => o.text)")
  assert len(options) > 3 and options[-1] == "another one"
  for k, option in enumerate(options[:-1]):
    select("follows", k)
    signal, unit, layer = re.search(
      r": (\w) (\d+), layer (\d) \((?:AUC|r) −?[\d.]+\)$", option
    ).groups()
    check(opened, layers, int(layer) - 1, signal, int(unit))
  select("layer", 0)
  select("signal", "h")
  select("unit", 3)
  check(opened, layers, 0, "h", 3)
  opened.press("n")
  check(opened, layers, 0, "h", 4)
  opened.press("p", "p", "s")
  check(opened, layers, 0, "c", 2)
  opened.press("l")
  check(opened, layers, 1, "c", 2)
  opened.press("l", "s")
  check(opened, layers, 0, "h", 2)
  opened.run("$('previous').click(); $('previous').click();")
  check(opened, layers, 0, "h", 0)
  opened.run("$('previous').click(); $('following').click();")
  check(opened, layers, 0, "h", 1)
  select("unit", 10)
  opened.press("n")  # it is the last one
  check(opened, layers, 0, "h", 10)
  follows = {
    (f["layer"], f["signal"], f["unit"]): str(k)
    for k, f in reversed([*enumerate(header["follows"])])
  }
  layer, signal, unit = next(iter(follows))
  other = (layer, {"h": "c", "c": "h"}[signal], unit)
  for place in ((0, "h", 10), (layer, signal, unit), other):
    for name, value in zip(("layer", "signal", "unit"), place, strict=True):
      select(name, value)
    assert chosen(opened, "follows") == follows.get(place, "")


@pytest.mark.exhaustive
def test_without_a_text_the_units_of_the_start_are_shown(opened):
  """As after a prompt that is refused."""

  def picture(prompt):
    run = "$('prompt').value = args[0]; $('again').click(); writing.pause();"
    opened.run(run, prompt)
    return opened.run("return $('units').toDataURL()")

  start = picture("")
  picture("Shall")
  opened.run("while (writing.given.length) writing.advance(); writing.show();")
  written = opened.run("return $('units').toDataURL()")
  assert picture("§") == start != written
  opened.run("$('following').click();")
  other = opened.run("return $('units').toDataURL()")
  assert other == picture("") != start


@pytest.mark.exhaustive
def test_the_strip_of_the_legend_has_the_colors_of_its_ends(opened):
  """The strip has every eighth of 130 colors, and so lacks the very last."""
  strip = opened.run("return getComputedStyle($('strip')).backgroundImage")
  colors = [
    [int(v) for v in color]
    for color in re.findall(r"rgb\((\d+), (\d+), (\d+)\)", strip)
  ]
  assert colors[0] == list(NEGATIVE)
  assert np.abs(np.subtract(colors[-1], POSITIVE)).max() <= 4
  middle = len(colors) // 2
  assert np.abs(np.subtract(colors[middle], PAGE)).max() <= 4
