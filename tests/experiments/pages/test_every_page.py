"""What holds for each of the three pages, whatever their data are."""

import numpy as np
import pytest

from tests.experiments.pages import browser
from tests.experiments.pages.browser import UNNAMED, contrast, viewing
from tests.experiments.pages.explored import HOSTILE

pytestmark = [pytest.mark.programs, browser.NEEDED]
# Of each page: its title, and a script that returns the text that it shows.
PAGES = {
  "explore": ("Cell explorer", "return pieces.join('')"),
  "report": (
    "Training runs",
    "$('evaluation').value = 0;"
    "$('evaluation').dispatchEvent(new Event('input'));"
    "return $('samples').innerText",
  ),
  "write": (
    "A model that writes",
    "return $('own').value + $('marked').textContent",
  ),
}


@pytest.fixture(params=PAGES)
def page(request):
  """Return (name, path) of a page whose text has a script in it."""
  paths = {
    "explore": lambda: request.getfixturevalue("explored_page"),
    "report": lambda: request.getfixturevalue("reported")[1],
    "write": lambda: request.getfixturevalue("writer_page")("lstm")[1],
  }
  return request.param, paths[request.param]()


def test_a_script_in_a_text_is_shown_and_never_runs(chromium, page):
  name, path = page
  title, shown = PAGES[name]
  with viewing(chromium, path):
    assert HOSTILE in chromium.run(shown)
    assert chromium.run("return document.title") == title
  assert HOSTILE not in path.read_text("utf-8")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_is_cut_off_and_all_is_visible(
  chromium, page, scheme
):
  name, path = page
  with viewing(chromium, path):
    chromium.emulate(360, 740, scheme)
    chromium.settle()
    assert chromium.run("return document.documentElement.scrollWidth") == 360
    cut = "return [...document.querySelectorAll('.scroll')].filter((box) =>"
    assert chromium.run(f"{cut} box.scrollWidth > box.clientWidth)") == []
    assert chromium.run(UNNAMED) == []
    inks = ["ink", "soft", *[f"run{k}" for k in range(8) if name == "report"]]
    colors = chromium.run(
      "const style = getComputedStyle(document.documentElement);"
      "return args[0].map((name) => style.getPropertyValue(`--${name}`));",
      ["page", *inks],
    )
    assert len(set(colors)) == 1 + len(inks)
    assert min(contrast(colors[0], color) for color in colors[1:]) >= 4.5
    if name != "explore":
      return
    for kind in (True, False):  # the shades of states, and of gates
      shades = chromium.run("return palettes[args[0]]", kind)
      ratios = [contrast(shade["fill"], shade["ink"]) for shade in shades]
      assert np.min(ratios) >= 4.5
