"""Clicks and keys on the page of `experiments.explore`, in a browser."""

import re

import jax
import numpy as np
import pytest

from experiments.trainer.trained import load
from tests.experiments.pages import browser
from tests.experiments.pages.browser import chosen, text_of
from tests.experiments.pages.explored import (
  HOSTILE,
  LENGTH,
  PageData,
  val_text,
)

pytestmark = [pytest.mark.programs, browser.NEEDED]


def click_on(chromium, text, index):
  """Click on the middle of a character of a text.

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
  chromium.click(left + 4 + (column + 0.5) * width, top + 4 + line * 26 + 9)


def value_shown(chromium):
  """Return the unit and its value, as the status line names them."""
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
  # Of c, the second signal; the first feature is the position in the line.
  scores = np.abs(data.header["layers"][1]["signals"][1]["scores"][0])
  assert int(chosen(opened, "unit")) == scores.argmax()
  index = text.index("compare", text.index("compare") + 1)
  click_on(opened, text, index)
  assert f"‘c’, character {index + 1} of {LENGTH}." in text_of(opened, "status")
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
  _, rounding = data.signal(1, "c")
  assert abs(value - state[1].c[unit]) < rounding[unit, 0] + 1e-3

  # Another layer and a gate: the color of a character is the gate's level.
  opened.press("L", "s")
  assert (chosen(opened, "layer"), chosen(opened, "signal")) == ("0", "i")
  unit, value = value_shown(opened)
  gate, _ = data.signal(0, "i")
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
  # The 10 likeliest come first; the text's own character may follow.
  assert np.abs(shown[:10] - np.sort(p)[::-1][:10]).max() < 1e-4
  assert [row[1] for row in rows if row[0] == "actual"] == [text[index + 1]]
  norms = opened.run(
    "return [...document.querySelectorAll('#norms tr')].map((row) =>"
    "[...row.children].map((cell) => cell.textContent))"
  )
  assert [int(row[0]) for row in norms] == [0, 1, 2, 4, 8, 16, 32, 64]
  for back, symbol, norm_h, norm_c in norms:
    at = index - int(back)
    assert symbol == symbols.get(text[at], text[at])
    for figure, name in ((norm_h, "h"), (norm_c, "c")):
      norm = data.paths(0)[name][index, int(back)]
      if norm == 0:  # of c at the cursor: the prediction reads h alone
        assert (figure, name, back) == ("–", "c", "0")
      else:  # shown with two digits
        assert abs(float(figure.replace("−", "-")) / norm - 1) < 0.051
  reach = text_of(opened, "reach")
  assert "log p(‘" in reach
  assert reach.endswith(": of h with c held fixed, and of c with h held fixed.")


def test_keys_move_and_choose_and_every_control_has_a_name(
  opened, explored_page, explored_run
):
  text = val_text(explored_run)
  focused = "return document.activeElement.id"
  assert opened.run(focused) == "text"
  assert (
    opened.run("return getComputedStyle(document.activeElement).outlineStyle")
    == "solid"
  )

  def cursor():
    return opened.run("return cursor")

  assert cursor() == 192  # two WINDOWs, so that its gradient path is complete
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
  opened.press("s", "S", "S", "o")  # to h and back over o; order 1 was chosen
  assert (chosen(opened, "signal"), chosen(opened, "order")) == ("g", "2")
  first = chosen(opened, "unit")
  opened.press("n", "p")
  assert chosen(opened, "unit") == first
  # From the menu of layers, Tab moves on in visual order, and last to the text.
  opened.run("document.getElementById('layer').focus()")
  order = []
  for _ in range(9):
    opened.press("tab")
    order.append(opened.run(focused))
  menus = ["signal", "order", "previous", "unit", "following"]
  assert order == [*menus, "owntitle", "pin", "select", "text"]
  # Pins a unit, for the controls of a pin. A label, or a text inside, is a
  # name; the canvas lies in an element that has one.
  opened.press("i")
  unnamed = opened.run(
    """
    const controls = "select, button, input, textarea, canvas, [tabindex]";
    return [...document.querySelectorAll(controls)]
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
  assert opened.run(running) == 13  # the page's twelve, and the shared head's
  assert opened.run("return document.title") == "Cell explorer"
