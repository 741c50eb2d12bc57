"""The page that writes, in a browser: it computes what the library computes."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.pages.packed_model import word_rules
from experiments.pages.quantized import dequantize_params, quantize_params
from experiments.trainer.trained import load
from lstm_jax.language import CharTokenizer, WordTokenizer
from lstm_jax.language.drawing import keep_top_p
from tests.experiments.pages import browser
from tests.experiments.pages.browser import text_of
from tests.experiments.pages.explored import HOSTILE

pytestmark = [pytest.mark.programs, browser.NEEDED]


WORDY = (
  "'Tis th' o'er \t thy feel'st--self-love,love , 'quoted' (and) “such”\n"
  "  Thou’rt\x85unknown! $5 été\n\n   \nend 't 'Twas \U0001d49c--- "
)


@pytest.mark.exhaustive
def test_a_token_is_drawn_as_the_library_draws_it(opened):
  y = np.random.default_rng(0).standard_normal(40) * 3
  for temperature, top_p in ((1.0, 1.0), (0.7, 0.8), (1.5, 0.05)):
    p = jax.nn.softmax(keep_top_p(jnp.array(y) / temperature, top_p))
    found = opened.run(
      "const [y, temperature, topP] = args, p = new Float64Array(y.length);"
      "softmax(y, temperature, p); keepTopP(p, topP); return [...p];",
      y.tolist(),
      temperature,
      top_p,
    )
    assert np.abs(np.array(found) - p).max() < 1e-12
  greedy, drawn = opened.run(
    "const [y] = args, p = new Float64Array(y.length);"
    "softmax(y, 0, p, []); const greedy = drawFrom(p, 0.999);"
    "softmax(y, 1, p, [greedy]); const random = makeRandom(3);"
    "const drawn = new Array(y.length).fill(0);"
    "for (let k = 0; k < 20000; k++) drawn[drawFrom(p, random())]++;"
    "return [greedy, drawn];",
    y.tolist(),
  )
  assert greedy == y.argmax() and drawn[greedy] == 0
  p = np.exp(y - y.max())
  p[greedy] = 0
  p /= p.sum()
  # Five standard deviations of a binomial share, for each token.
  tolerance = 5 * np.sqrt(p * (1 - p) / 20_000) + 1e-4
  assert (np.abs(np.array(drawn) / 20_000 - p) < tolerance).all()


def test_the_page_has_the_tokens_and_the_texts_of_both_tokenizers(opened):
  # The vocabulary of words lacks "unknown".
  words = WordTokenizer.from_text(WORDY.replace("unknown", "end"), 1)
  characters = CharTokenizer.from_text(WORDY)
  for tokenizer in (words, characters):
    tokens = tokenizer.encode(WORDY)
    rules = word_rules() if tokenizer is words else None
    items, pieces = opened.run(
      "const [symbols, rules, text] = args;"
      "const tokens = rules ? new WordTokens(symbols, rules)"
      "  : new CharTokens(symbols), items = tokens.encode(text);"
      "const spell = tokens.spell();"
      "return [items, items.map(({ token }) => spell(token))];",
      list(tokenizer.symbols),
      rules,
      WORDY,
    )
    assert [item["token"] for item in items] == tokens.tolist()
    assert pieces == tokenizer.pieces(tokens)
    # The places of the tokens follow one another.
    ends = [0, *(item["to"] for item in items)]
    for end, item in zip(ends, items, strict=False):
      assert end <= item["from"] < item["to"]
    if tokenizer is characters:
      units = WORDY.encode("utf-16-le")  # in which JavaScript counts
      cut = [units[2 * item["from"] : 2 * item["to"]] for item in items]
      assert [part.decode("utf-16-le") for part in cut] == [*WORDY]
  assert opened.run(
    "return new CharTokens(['a']).encode('aé').map((item) => item.token)"
  ) == [0, -1]


def test_the_same_seed_writes_the_same_text_and_another_one_does_not(opened):
  written = """
    const pause = async () => { while (writing.track.length < 60)
      await new Promise((done) => setTimeout(done, 5)); writing.pause();
      return $("text").innerText.slice(0, 50); };
    $("speed").value = 8; $("seed").value = args[0]; $("prompt").value = "Thou";
    $("again").click();
    return pause();
  """
  first, again, other = (opened.run(written, seed) for seed in (7, 7, 8))
  assert first == again != other and first.startswith("Thou")


def test_an_unknown_character_of_the_prompt_is_named(opened):
  opened.run("$('prompt').value = 'a§b'; $('again').click();")
  assert "does not know ‘§’ of the prompt" in text_of(opened, "status")
  shown = """
    $("play").click();
    return [writing.running, $("next").children.length,
      $("prompt").ariaInvalid];
  """
  assert opened.run(shown) == [False, 0, "true"]
  opened.run("$('prompt').value = 'a'; $('again').click(); writing.pause();")
  running, listed, invalid = opened.run(shown)
  assert running and listed and invalid == "false"


def test_the_cursor_shows_a_unit_and_what_the_model_expected(opened, make_page):
  # The test writes 80 tokens by itself: at full speed the page soon has 6,144,
  # and forgets the first ones.
  opened.run(
    "$('again').click(); writing.pause();"
    "while (writing.track.length < 80) writing.advance();"
    "writing.show(); $('text').focus(); writing.moveTo(30);"
  )
  opened.press("right", "n")
  tokens, unit, layer, signal = opened.run(
    "const { units, track } = writing;"
    "return [track.tokens, units.unit, units.layer, units.signalName];"
  )
  trained = load(make_page("lstm")[0])
  params = dequantize_params(quantize_params(trained.params))
  start = trained.tokenizer.encode("\n")
  read = np.concatenate([start, tokens[:32]]).astype(np.int32)
  state, logits = trained.model.apply(
    params, trained.model.initial_state(()), read
  )
  status = text_of(opened, "status")
  value = getattr(state[layer], signal)[unit]
  shown = re.search(rf"Unit {unit} of {signal} is ([−\d.]+)\.", status)
  assert abs(float(shown[1].replace("−", "-")) - value) < 6e-4
  assert "character 32 of" in status
  p = np.asarray(jax.nn.softmax(logits[-1]))
  rows = opened.run(
    "return [...document.querySelectorAll('#next li')].map((row) =>"
    "  [row.className, row.children[0].textContent,"
    "   row.children[1].style.getPropertyValue('--own')])"
  )
  assert (
    np.abs(
      np.sort([float(own) for _, _, own in rows])[::-1][:8]
      - np.sort(p)[::-1][:8]
    ).max()
    < 1e-5
  )
  (actual,) = [symbol for kind, symbol, _ in rows if kind == "actual"]
  symbols = {" ": "␣", "\n": "↵"}
  expected = trained.tokenizer.symbols[tokens[32]]
  assert actual == symbols.get(expected, expected)
  color = opened.run("return writing.spans[31].style.background")
  opened.press("n")
  assert opened.run("return writing.spans[31].style.background") != color


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_a_phone_and_every_control_has_a_name(
  chromium, make_page, scheme
):
  chromium.emulate(375, 800, scheme)
  chromium.open(make_page("lstm")[1])
  assert chromium.run("return document.documentElement.scrollWidth") == 375
  unnamed = chromium.run(
    """
    return [...document.querySelectorAll("input, textarea, select, button,"
      + "canvas, [tabindex]")]
      .filter((e) => !e.ariaLabel && !e.closest("label")
        && !(e.tagName === "BUTTON" && e.textContent)
        && !e.hasAttribute("aria-labelledby"))
      .map((e) => e.outerHTML);
    """
  )
  assert unnamed == []
  heights = chromium.run(
    "return [$('own').clientHeight, $('marked').clientHeight,"
    " $('own').scrollHeight]"
  )
  assert heights[0] == heights[1] >= heights[2]
  # Without the suggestion, both break the lines of a long text alike.
  lines = chromium.run("""
    $("own").value = "Thou art ".repeat(60);
    await reading.read();
    reading.ghost.remove();
    return ["own", "marked"].map((name) => {
      $(name).style = "height: 0; min-height: 0; padding-bottom: 0";
      return $(name).scrollHeight;
    });
  """)
  assert lines[0] == lines[1] > 100
  # A long word, whose continuations are buttons.
  chips = chromium.run(
    "reading.text = 'more'.repeat(40); reading.suggest(['art', 'Thou']);"
    "return [...$('chips').children].map((chip) => chip.textContent.length)"
  )
  assert chips == [163, 164]  # the word's 160 and those of the continuation
  assert chromium.run("return document.documentElement.scrollWidth") == 375


def test_a_script_in_the_text_is_shown_and_never_runs(opened):
  assert opened.run("return document.title") == "A model that writes"
  assert HOSTILE in opened.run("return $('own').value")
  assert HOSTILE in opened.run("return $('marked').textContent")


def test_the_empty_lines_of_the_text_are_copied(opened):
  copied = opened.run(
    """
    writing.pause();
    $("prompt").value = args[0], $("seed").value = 1, writing.restart();
    while (writing.given.length) writing.advance();
    getSelection().selectAllChildren($("text"));
    return `${getSelection()}`;
  """,
    "Thou\n\nart\n\n\nmore",
  )
  assert copied == "Thou\n\nart\n\n\nmore"
