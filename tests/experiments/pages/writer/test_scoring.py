"""Texts are scored on the page that writes, in a browser."""

import dataclasses
import re

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.pages.packed_model import CELLS
from experiments.trainer.trained import load
from lstm_jax.language import language_model
from lstm_jax.language.evaluate import stateful_nats
from tests.experiments.pages import browser
from tests.experiments.pages.browser import text_of
from tests.experiments.pages.explored import VERSE, exact_params
from tests.experiments.pages.writer.listing import listed, percent

pytestmark = [pytest.mark.programs, browser.NEEDED]


TEXT = (VERSE * 4).partition("\n")[2]  # begins as the text of the page does
NATS = """
  const track = new Track(model, data.start);
  return tokens.map((token) => track.push(token));
"""


def test_an_accent_belongs_to_a_word_but_the_mark_after_an_emoji_does_not(
  opened,
):
  ends = opened.run(
    "return ['a cafe\u0301', 'में', 'a ❤\ufe0f', 'a1']"
    ".map((text) => WORD_AT_END.exec(text)[0])"
  )
  assert ends == ["cafe\u0301", "में", "", "a1"]


def pause(chromium):
  chromium.run("writing.pause()")


def read(chromium, text):
  """Put a text into the box, and wait until it is read."""
  chromium.run("$('own').value = args[0]; await reading.read();", text)


@pytest.mark.everyday(1)
@pytest.mark.parametrize("name", CELLS)
def test_the_nats_of_a_text_are_those_of_the_quantized_model(
  chromium, make_page, name
):
  run, page = make_page(name)
  trained = load(run)
  tokens = trained.tokenizer.encode("\n" + TEXT)  # a text starts after a break
  config = dataclasses.replace(trained.config.model, dtype=jnp.float64)
  model = language_model(config, trained.tokenizer.size)
  expected = stateful_nats(model, exact_params(trained), tokens)
  chromium.open(page)
  found = chromium.run("const tokens = args[0];" + NATS, tokens[1:].tolist())
  assert np.abs(np.array(found) - expected).max() < 1e-9  # both in doubles
  assert np.ptp(expected) > 0.1
  # What the page shows of the text that it opens with.
  shown = re.search(
    r"([\d,]+) characters, ([\d.]+) nats", text_of(chromium, "score")
  )
  own = chromium.run("return $('own').value")
  assert TEXT.startswith(own) and int(shown[1].replace(",", "")) == len(own)
  mean = expected[: len(own)].mean()
  assert abs(float(shown[2]) - mean) < 1e-3  # three decimals


def test_a_typed_text_is_scored_marked_and_continued(opened):
  pause(opened)
  opened.run("$('own').value = ''; await reading.read(); $('own').focus();")
  assert text_of(opened, "score") == "No text yet."
  opened.press(*"Thou§ art")
  opened.run("await reading.read();")
  assert "1 outside the vocabulary" in text_of(opened, "score")
  marks = opened.run(
    "return [...$('marked').querySelectorAll('span:not(.ghost)')].map("
    "(span) => [span.textContent, span.className])"
  )
  assert "".join(text for text, _ in marks) == "Thou§ art"
  assert marks[4] == ["§", "unknown"]
  nats = opened.run("return reading.track.nats")
  underlined = [i for i, m in enumerate(marks) if "surprising" in m[1]]
  known = [i for i in range(9) if i != 4]
  assert underlined == [
    i for i, v in zip(known, nats, strict=True) if v > np.log(100)
  ]
  # An edit in the middle, or after an unknown character, gives what reading the
  # text anew gives.
  for text in ("Thou§ are", "Thee art", "Thou art"):
    read(opened, text)
    edited, fresh = opened.run(
      "const tokens = reading.known.map((item) => item.token);"
      f"return [reading.track.nats, (() => {{{NATS}}})()];"
    )
    assert np.abs(np.array(edited) - fresh).max() < 1e-5  # states in float32
  # The first suggestion stands in the text, and a key takes it.
  ghost = opened.run("return reading.ghost.textContent")
  assert ghost and ghost == opened.run("return reading.suggestions[0]")
  opened.press("end", "right")
  assert opened.run("return $('own').value") == "Thou art" + ghost


def test_a_word_model_writes_scores_and_completes_words(chromium, make_page):
  page = make_page("words")[1]
  chromium.errors()
  chromium.open(page)
  chromium.run(
    "$('speed').value = 8; $('again').click();"
    "while (writing.track.length < 30)"
    "  await new Promise((done) => setTimeout(done, 5)); writing.pause();"
    "$('own').value = 'Thou art mo'; await reading.read();"
  )
  assert "<unk>" not in text_of(chromium, "text")
  assert chromium.run("return reading.suggestions") == ["re"]
  # An unknown word is read as <unk>: it has a loss, and counts.
  assert "3 words" in text_of(chromium, "score")
  marks = "return [...$('marked').querySelectorAll('.unknown')]"
  assert chromium.run(f"{marks}.map((span) => span.textContent)") == ["mo"]
  # The likeliest words at the caret: of those that begin as typed, or of all.
  likeliest = """
    const track = new Track(model, data.start);
    const before = writing.tokens.encode("Thou art");
    for (const { token } of before) track.push(token);
    const known = data.symbols.map((_, token) => token).slice(0, -1);
    const read = (text) => writing.tokens.encode(text).at(-1).token;
    return known.filter((token) => data.symbols[token].startsWith(args[0])
      && read("Thou art " + data.symbols[token]) === token)
      .sort((a, b) => track.y[b] - track.y[a]).slice(0, 3)
      .map((token) => data.symbols[token]);
  """
  for typed, start in (("Thou art t", "t"), ("Thou art ", "")):
    read(chromium, typed)
    expected = chromium.run(likeliest, start)
    assert chromium.run("return reading.suggestions") == [
      word[len(start) :] for word in expected
    ]
    assert len(expected) > 1
  read(chromium, "Thou art")  # "art" is the beginning of no other word
  assert chromium.run("return reading.suggestions") == []
  chromium.run("$('prompt').value = 'Thou zebra'; $('again').click();")
  assert "does not know ‘zebra’ of the" in text_of(chromium, "status")
  assert chromium.errors() == []


@pytest.mark.exhaustive
def test_the_caret_shows_what_the_model_gave_the_next_token(opened):
  pause(opened)
  read(opened, "Thou§ art")
  nats = opened.run("return reading.track.nats")
  for at in range(10):
    opened.run("reading.setCaret(args[0])", at)
    n = at - (at > 4)  # known tokens before it: § is not known
    known = "Thou␣art"
    before = f"After ‘{known[n - 1]}’" if n else "At the start"
    if n == len(known):
      assert text_of(opened, "caret") == f"{before}, the model expects:"
      break
    p = np.exp(-nats[n])
    assert text_of(opened, "caret") == (
      f"{before} stands ‘{known[n]}’: {percent(p)}, {nats[n]:.2f} nats."
    )
    rows = listed(opened, "expected")
    (actual,) = [row for row in rows if row.kind == "actual"]
    assert actual.symbol == known[n]
    assert actual.own == actual.drawn and abs(actual.own - p) < 1e-5
  # The line changes when a key moves the caret, and with the text.
  opened.press("home")
  assert text_of(opened, "caret").startswith("At the start stands ‘T’: ")
  read(opened, "art")
  assert text_of(opened, "caret") == "After ‘t’, the model expects:"


def test_the_score_and_the_marks_follow_from_the_losses(opened):
  pause(opened)
  read(opened, "T")
  assert text_of(opened, "score").startswith("1 character, ")
  read(opened, "Thou§ art")
  hidden = "return $('mostTitle').hidden"
  assert opened.run(hidden) and not text_of(opened, "most")
  nats = [0.1, 4.7, 4.5, 9.0, 1.0, 6.0, 2.0, 5.5]
  opened.run(
    "reading.track.nats = args[0]; reading.showMarked(); reading.showScore();",
    nats,
  )
  size = opened.run("return data.symbols.length")
  assert text_of(opened, "score") == (
    f"8 characters, {np.mean(nats):.3f} nats each "
    f"({np.mean(nats) / np.log(2):.3f} bits); a guess among all {size} would "
    f"cost {np.log(size):.2f}. 1 outside the vocabulary, outlined, not read."
  )
  marks = opened.run(
    "return [...$('marked').querySelectorAll('span:not(.ghost)')].map((span) =>"
    "[span.className, span.style.background])"
  )
  # A known character is surprising above log 100 = 4.61 nats.
  kinds = ["", "surprising", "", "surprising", "unknown"]
  assert [kind for kind, _ in marks] == [*kinds, "", *kinds[1:4]]
  del marks[4]
  page, accent = 255 + np.zeros(3), np.array([0xA1, 0x45, 0x0C])
  for (_, color), v in zip(marks, nats, strict=True):
    # The color is strongest from 8 nats on.
    share = np.floor(64 * min(1, v / 8) + 0.5) / 64
    rgb = np.floor(page + (accent - page) * share + 0.5)
    assert [int(c) for c in re.findall(r"\d+", color)] == rgb.tolist()
  # The three most surprising tokens, each in its word, or, if it begins one,
  # also after the word before; a click on one sets the caret there.
  assert not opened.run(hidden)
  most = "return [...$('most').children].map((button) => button.textContent)"
  assert opened.run(most) == [
    "Tho[u]§  9.0 nats",
    "Thou§ [a]rt  6.0 nats",
    "ar[t]  5.5 nats",
  ]
  opened.run("$('most').children[1].click()")
  assert opened.run(
    "return [$('own').selectionStart, document.activeElement === $('own')]"
  ) == [6, True]


def test_the_context_of_a_token_has_no_half_of_an_emoji(opened):
  """An emoji is two code units; the context is 16 of them before, 12 after."""
  found = opened.run(
    "reading.text = '🙂'.repeat(9) + 'ab' + '🙂'.repeat(9);"
    "reading.known = [18, 19].map((from) => ({ from, to: from + 1 }));"
    "return [0, 1].map((n) => {"
    " const context = reading.contextOf(n);"
    " return [context.isWellFormed(), context.length]; })"
  )
  # Emojis, "[a]", "b" and emojis; then emojis, "a", "[b]" and emojis.
  assert found == [[True, 8 * 2 + 3 + 1 + 5 * 2], [True, 7 * 2 + 1 + 3 + 6 * 2]]


@pytest.mark.exhaustive
def test_a_suggestion_is_what_the_model_finds_likeliest(opened):
  pause(opened)
  read(opened, "Thou ar")
  # The suggestion that begins with each token: the likeliest characters up to
  # the end of a word, 24 at most. The page suggests three at most. Those after
  # the first one need a first character of probability 0.02 or more.
  found = opened.run("""
    const grow = (token) => {
      const track = new Track(model, data.start);
      for (const known of reading.known) track.push(known.token);
      let text = "";
      for (let k = 0; k < 24; k++) {
        const symbol = data.symbols[token];
        if (/[a-z]/i.test(text) && !/[a-z'’-]/i.test(symbol)) break;
        text += symbol;
        track.push(token);
        [token] = largestOf(track.y, 1);
      }
      return text;
    };
    const p = new Float64Array(data.symbols.length);
    softmax(reading.track.y, 1, p);
    return [[...p], data.symbols.map((_, token) => grow(token))];
  """)
  p, grown = found
  order = np.argsort(-np.array(p), kind="stable")[:3]
  expected = [grown[t] for k, t in enumerate(order) if not k or p[t] >= 0.02]
  assert opened.run("return reading.suggestions") == expected
  assert len(expected) > 1
  # The color scheme changes the colors alone, whether all is read or not.
  ghost = "return [$('marked').innerText, reading.ghost.textContent]"
  before = opened.run(ghost)
  opened.emulate(1100, 900, "dark")
  opened.settle()
  assert opened.run(ghost) == before and before[1] == expected[0]
  opened.run("reading.track.truncate(3)")
  opened.emulate(1100, 900, "light")
  opened.settle()
  assert opened.run(ghost) == before
  # The right arrow takes the first suggestion only at the end of the text, and
  # only without Shift, and not within the composition of a character.
  opened.run("reading.setCaret(6)")
  opened.press("right")
  assert opened.run("return $('own').value") == "Thou ar"
  for held in "shiftKey", "isComposing":
    key = f"new KeyboardEvent('keydown', {{ key: 'ArrowRight', {held}: true }})"
    opened.run(f"$('own').dispatchEvent({key})")
    assert opened.run("return $('own').value") == "Thou ar"
  chips = opened.run(
    "return [...$('chips').children].map((b) => b.textContent)"
  )
  visible = [text.replace(" ", "␣").replace("\n", "↵") for text in expected]
  assert chips == [f"ar{text}" for text in visible]
  taken = opened.run(
    "$('chips').children[1].click();"
    "return [$('own').value, reading.suggestions];"
  )
  assert taken == ["Thou ar" + expected[1], []]  # the suggestions come later
  length = opened.run("await reading.read(); return reading.track.length")
  assert length == len(taken[0])
