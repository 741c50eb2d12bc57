"""Rare cases in a browser: text half read, clicks beside units, odd letters."""

import os
import re
import tempfile

import jax
import pytest

from experiments.pages import writer
from experiments.pages.packed_model import word_rules
from experiments.trainer.trained import load
from lstm_jax.language import CharTokenizer, WordTokenizer
from tests.experiments.pages import browser
from tests.experiments.pages.browser import viewing
from tests.experiments.pages.explored import VERSE, untrained_runs, val_text

pytestmark = [pytest.mark.programs, browser.NEEDED]
TEXT = VERSE * 4


def write_page(path, trained, text):
  with jax.numpy_dtype_promotion("standard"):
    page, _ = writer.make_page(trained, text, "a test")
  path.write_text(page, encoding="utf-8")
  return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  base = tmp_path_factory.mktemp("edges")
  return load(untrained_runs(base)("lstm"))


@pytest.fixture
def opened(chromium, trained, tmp_path):
  page = write_page(tmp_path / "page.html", trained, TEXT)
  with viewing(chromium, page):
    chromium.run("writing.pause()")
    yield chromium


@pytest.mark.exhaustive
def test_a_caret_beyond_what_is_read_so_far_shows_nothing_new(opened):
  opened.run("$('own').value = 'Thou art'; await reading.read();")
  shown = """
    $("caret").textContent = "before"; reading.setCaret(args[0]);
    return $("caret").textContent;
  """
  assert opened.run(shown, 3).startswith("After ‘o’ stands ‘u’: ")
  assert opened.run(shown, 8) == "After ‘t’, the model expects:"
  opened.run("reading.track.truncate(3)")  # as if the rest were not read yet
  assert opened.run(shown, 2).startswith("After ‘h’ stands ‘o’: ")
  for place in (3, 4, 8):
    assert opened.run(shown, place) == "before"


@pytest.mark.exhaustive
def test_suggestions_do_not_depend_on_what_the_caret_shows(opened):
  opened.run("$('own').value = 'Thou art'; await reading.read();")
  suggestions = """
    const suggestions = reading.continueWord(reading.reading);
    reading.p.fill(args[0]);  // as if a caret moved before the next frame
    return await suggestions;
  """
  after_ones, after_zeros = (opened.run(suggestions, p) for p in (1, 0))
  expected = opened.run("return reading.suggestions")
  assert after_ones == after_zeros == expected


@pytest.mark.exhaustive
def test_vowel_signs_belong_to_the_word_that_is_continued(opened):
  """The test replaces three symbols, and the tokens that the page predicts."""
  found = opened.run(
    """
    data.symbols.splice(0, 3, ...args[0]);
    const order = [0, 1, 0, 2], likeliest = largestOf;
    window.largestOf = () => [order.shift()];
    const found = await reading.continueWord(reading.reading);
    window.largestOf = likeliest;
    reading.text = "a " + args[0][0] + args[0][1];
    reading.suggest(found);
    return [found, $("chips").textContent];
    """,
    ["ह", "ि", " "],
  )
  assert found == [["हिह"], "हिहिह"]


def test_a_token_beyond_the_kept_products_is_read_alike(opened):
  found = opened.run(
    """
    const read = () => {
      const track = new Track(model, data.start);
      return [...args[0]].map((symbol) => track.push(
        data.symbols.indexOf(symbol)));
    };
    const kept = read();
    model.table.clear();
    for (let k = 0; k < TABLE_ROWS; k++) model.table.set(-1 - k, null);
    return [kept, read(), model.table.size];
  """,
    "Thou art more",
  )
  assert found[0] == found[1] and len(set(found[0])) > 5
  assert found[2] == 1024  # TABLE_ROWS: none is added


CLICK = """
  $("units").style.width = `${args[0]}px`;
  const { left, top } = $("units").getBoundingClientRect();
  $("units").dispatchEvent(new MouseEvent("click",
    { clientX: left + args[1], clientY: top + args[2] }));
"""


# (width of the canvas, x, y, the unit chosen). The square of a unit is 14
# pixels wide: a row of 75 has five, and one of 10 has one. A click beside them
# leaves the unit 9.
CLICKS = [(75, 63, 7, 4), (75, 7, 21, 5), (75, 73, 7, 9), (10, 7, 35, 2)]


@pytest.mark.everyday(1)
@pytest.mark.parametrize(("width", "x", "y", "unit"), CLICKS)
def test_a_click_on_a_square_of_the_writer_chooses_its_unit(
  width, x, y, unit, opened
):
  opened.run("writing.units.unit = 9; writing.units.choose();")
  opened.run(CLICK, width, x, y)
  assert opened.run("return writing.units.unit") == unit


@pytest.mark.everyday(1)
@pytest.mark.parametrize(("width", "x", "y", "place"), CLICKS)
def test_a_click_on_a_square_of_the_explorer_chooses_its_unit(
  width, x, y, place, chromium, explored_page
):
  chromium.open(explored_page)
  chromium.run("chooseUnit(ranks[9])")
  chromium.run(CLICK, width, x, y)
  assert chromium.run("return ranks.indexOf(unit)") == place


@pytest.mark.parametrize(
  ("symbol", "said"), [("\n", "a line break"), ("!", "‘␣’")]
)
def test_an_empty_prompt_says_what_the_text_starts_after(
  symbol, said, chromium, trained, tmp_path
):
  # Without a line break, a text starts after the first symbol, a space. The
  # vocabulary is as large as before: "!" is new in it.
  text = TEXT.replace("\n", symbol)
  other = trained._replace(tokenizer=CharTokenizer.from_text(text))
  chromium.open(write_page(tmp_path / "page.html", other, text))
  found = chromium.run("writing.pause(); return $('prompt').placeholder")
  assert found == f"Empty: it starts after {said}"


def test_a_clipped_word_is_found_in_any_case_as_in_python(opened):
  text = "'tıs 'Tİs 'ſ x'ſ ſ'ſ wI' wİ' 'sıx 'S"
  tokenizer = WordTokenizer.from_text(text, 1)
  found = opened.run(
    "return new WordTokens(...args.slice(0, 2)).encode(args[2])"
    ".map(({ token }) => token)",
    list(tokenizer.symbols),
    word_rules(),
    text,
  )
  assert found == tokenizer.encode(text).tolist()


def test_a_regular_expression_knows_the_classes_of_letters(
  chromium, explored_page, explored_run
):
  text = val_text(explored_run)
  chromium.open(explored_page)
  found = chromium.run(
    r"return matches('/more\\P{L}/').map((p) => [p.first, p.last])"
  )
  words = [m.span() for m in re.finditer(r"more[^A-Za-z]", text)]
  assert found == [[a, b - 1] for a, b in words] and words


def test_a_browser_leaves_no_files(monkeypatch):
  # The path of `tmp_path` is too long for the sockets of Chromium.
  with tempfile.TemporaryDirectory() as directory:
    monkeypatch.setenv("TMPDIR", directory)
    monkeypatch.setattr(tempfile, "tempdir", None)  # read $TMPDIR again
    with browser.chromium():
      assert os.listdir(directory)
    assert not os.listdir(directory)
