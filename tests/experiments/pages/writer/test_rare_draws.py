"""Rare draws of the page that writes, and words after a mark, in a browser."""

import pytest

from tests.experiments.pages import browser

pytestmark = [pytest.mark.programs, browser.NEEDED]


def test_ties_round_off_and_suppressed_tokens_are_drawn_as_documented(opened):
  kept, drawn, greedy = opened.run("""
    const kept = [[0.5, 0.25, 0.25], [0.4, 0.3, 0.3]].map((p) => {
      keepTopP(p, 0.5);
      return p;
    });
    // The first two probabilities sum to less than 1, as after rounding.
    const drawn = drawFrom([0.5, 0.25, 0], 0.875), greedy = [0, 0, 0];
    softmax([1, 3, 2], 0, greedy, [1]);
    return [kept, drawn, greedy];
  """)
  # 0.5 is enough by itself; of two tokens as likely, both are kept.
  assert kept == [[1, 0, 0], [0.4, 0.3, 0.3]]
  assert drawn == 1  # not the last token, whose probability is 0
  assert greedy == [0, 0, 1]


def test_a_word_that_is_suggested_is_known_and_has_its_space(
  chromium, make_page
):
  chromium.open(make_page("words")[1])
  text, suggestions = chromium.run("""
    writing.pause();
    const likely = data.symbols.indexOf("more");
    // The last symbol is <unk>.
    model.bias[likely] = 98, model.bias[data.symbols.length - 1] = 99;
    reading.track.clear(), reading.items = [];  // reads the text anew
    $("own").value = "Thou art,";
    await reading.read();
    const { suggestions } = reading;
    reading.take(suggestions[0]);
    return [$("own").value, suggestions];
  """)
  assert text == "Thou art, more" and "<unk>" not in "".join(suggestions)


def test_a_mark_is_suggested_only_where_no_space_stands_before_it(
  chromium, make_page
):
  """After a space, the page would read another token than the mark."""
  chromium.open(make_page("words")[1])
  found = chromium.run(
    """
    writing.pause();
    model.bias[data.symbols.indexOf("?")] = 99;
    reading.track.clear(), reading.items = [];  // reads the text anew
    const found = [];
    for (const text of args[0]) {
      $("own").value = text;
      await reading.read();
      found.push(reading.suggestions.map((more) => [more,
        data.symbols[reading.tokens.encode(text + more).at(-1).token]]));
    }
    return found;
    """,
    ["Lord:", "Lord: "],
  )
  assert found[0][0] == ["?", "?"] and len(found[1]) == 3
  assert all(more == symbol for more, symbol in found[1])
