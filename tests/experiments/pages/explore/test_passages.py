"""Passages of a text are found, ranked and selected, in a browser."""

import re

import numpy as np
import pytest

from tests.experiments.pages import browser
from tests.experiments.pages.browser import chosen, text_of
from tests.experiments.pages.explored import PageData, val_text

pytestmark = [pytest.mark.programs, browser.NEEDED]


def find(chromium, finder, pattern=""):
  """Find passages in a way of the menu; return [first, last, note] of each."""
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
  # The list has each passage with 24 characters before and after it, and a
  # click selects the passage.
  item = opened.run(
    "return [...$('found').children[1].firstChild.childNodes].map("
    "(part) => part.textContent)"
  )
  first, last = places[1], places[1] + 3
  parts = text[first - 24 : first], text[first : last + 1]
  parts = *parts, text[last + 1 : last + 25]
  assert item == [part.replace("\n", "↵") for part in parts]
  opened.run("$('found').children[1].firstChild.click()")
  assert opened.run("return selection()") == [first, last]
  # A pattern is found as it is typed, and Enter goes to a passage.
  opened.run("$('pattern').value = ''; find(); moveTo(0); $('pattern').focus()")
  opened.press(*"more")
  assert opened.run("return found.length") == len(places)
  for shift, place in ((False, 0), (False, 1), (True, 0), (True, -1)):
    opened.run(
      "$('pattern').dispatchEvent(new KeyboardEvent('keydown',"
      " { key: 'Enter', shiftKey: args[0] }))",
      shift,
    )
    assert opened.run("return cursor") == places[place] + 3
  many = find(opened, "pattern", "/[aeiou]/")
  assert text_of(opened, "foundtitle") == (
    f"{len(many)} passages, of which the first 30 are listed"
  )
  marks = "return [...document.querySelectorAll('mark')].map("
  assert opened.run(f"{marks} (e) => e.previousSibling.textContent)") == [
    text[max(0, t - 24) : t].replace("\n", "↵") for t, *_ in many[:30]
  ]
  find(opened, "pattern", "/^./")
  assert text_of(opened, "foundtitle") == "1 passage"
  words = [m.span() for m in re.finditer("th?o[u.]", text, re.I)]
  found = find(opened, "pattern", "/th?o[u.]/")
  assert found == [[a, b - 1, None] for a, b in words]
  assert find(opened, "pattern", "a.c") == []  # a dot is a dot
  assert find(opened, "pattern", "/(/") == []
  assert "Not a regular expression" in text_of(opened, "foundtitle")


def ranked(scores, most=30, apart=12):
  """Return the indices of the highest scores that are not close together.

  Args:
    scores: of each token, [N].
    most: indices returned at most; the default is MOST of find.js.
    apart: the least distance of two indices; the default is APART of find.js.
  """
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
  hidden = "return $('pattern').parentElement.hidden"
  assert opened.run(hidden)
  # Another unit, or another signal, has other passages.
  for key in "ns":
    opened.press(key)
    unit, (name, other) = (
      int(chosen(opened, "unit")),
      opened.run("return [signalName, [...levels]]"),
    )
    title = f"Where unit {unit} of {name} is strongest"
    assert text_of(opened, "foundtitle") == title
    values = np.reshape(other, (12, -1))[unit] - (128.0 if name == "c" else 0)
    shown = opened.run("return found.map((p) => p.first)")
    assert shown == ranked(np.abs(values))
  opened.press("S", "p")  # back to c and to the unit before
  # The mean over a selection is compared with every other state.
  opened.run("moveTo(100); textBox.focus(); anchor = 96")
  found = find(opened, "similar")
  mean = levels[:, 96:101].sum(1)
  cosines = mean @ levels / np.linalg.norm(mean)
  cosines /= np.linalg.norm(levels, axis=0)
  cosines[96:101] = 0
  assert [t for t, *_ in found] == ranked(cosines)
  assert found[0][2] == f"cosine {cosines.max():.3f}"
  assert text_of(opened, "foundtitle") == (
    "Where c of layer 2 is most similar to its value at the 5 selected "
    "characters"
  )
  opened.run("document.querySelector('#found button').click()")
  assert opened.run("return [anchor, cursor]") == [None, found[0][0]]
  # 0.5 is subtracted from the values of a gate, which are in [0, 1].
  opened.press("s")
  (gate,) = opened.run("return [[...levels]]")
  values = np.reshape(gate, (12, -1)) - 127.5
  cursor = found[0][0]
  cosines = values[:, cursor] @ values / np.linalg.norm(values[:, cursor])
  cosines /= np.linalg.norm(values, axis=0)
  cosines[cursor] = 0
  notes = opened.run("return found.map((p) => [p.first, p.note])")
  assert notes == [
    [t, f"cosine {cosines[t]:.3f}"] for t in ranked(cosines) if cosines[t] > 0
  ]
  find(opened, "pattern", "art")
  assert not opened.run(hidden)


def test_a_unit_that_is_always_0_is_strongest_nowhere(opened):
  opened.run("levels = levels.slice().fill(128)")  # the level of 0
  assert find(opened, "strongest") == find(opened, "similar") == []


def test_a_passage_after_an_emoji_is_found_in_its_place(opened):
  """An emoji is one token, and two of the code units of a JavaScript string."""
  found = opened.run(
    "pieces = [...args[0]]; return matches('t t');", "❤🙂t tat"
  )
  assert found == [{"first": 2, "last": 4}]


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
    """Return the anchor, the cursor, and the first and last token selected."""
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
  # With Shift, keys and clicks select from where the cursor was.
  shift = "bubbles: true, shiftKey: true"
  right = f"new KeyboardEvent('keydown', {{ key: 'ArrowRight', {shift} }})"
  opened.run(f"for (const _ of [1, 2]) textBox.dispatchEvent({right})")
  assert selected() == [index + 5, index + 7, index + 5, index + 7]
  opened.press("left")
  assert selected() == [None, *[index + 6] * 3]
  opened.run(
    "textBox.dispatchEvent(new MouseEvent('click',"
    f" {{ clientX: args[0], clientY: args[1], {shift} }}))",
    *place(1),
  )
  assert selected() == [index + 6, index + 1, index + 1, index + 6]


def test_a_drag_that_begins_outside_the_text_selects_nothing_in_it(opened):
  left, top = opened.run(
    "const box = textCanvas.getBoundingClientRect(); return [box.left, box.top]"
  )
  opened.click(left + 50, top + 20)

  def drag_from_outside():
    place = "return [cursor, anchor]"
    before = opened.run(place)
    opened.drag(
      (left + 50, top - 90), (left + 70, top + 40), (left + 90, top + 70)
    )
    assert opened.run(place) == before

  drag_from_outside()
  # The page is selected now, so that the browser drags it: with no `pointerup`.
  opened.drag((left + 50, top + 20), (left + 90, top + 70))
  drag_from_outside()
