"""The page that writes, in a browser: it computes what the library computes."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.pages import writer
from experiments.pages.packed_model import CELLS, word_rules
from experiments.pages.quantized import dequantize_params, quantize_params
from experiments.trainer.trained import load
from lstm_jax.language import CharTokenizer, WordTokenizer, language_model
from lstm_jax.language.drawing import keep_top_p
from lstm_jax.language.evaluate import stateful_nats
from tests.experiments.pages import browser
from tests.experiments.pages.browser import text_of
from tests.experiments.pages.explored import (
  HOSTILE,
  VERSE,
  exact_params,
  untrained_runs,
)

pytestmark = [pytest.mark.programs, browser.NEEDED]
TEXT = VERSE * 4
NATS = """
  const track = new Track(model, data.start);
  return tokens.map((token) => track.push(token));
"""
WORDY = (
  "'Tis th' o'er \t thy feel'st--self-love,love , 'quoted' (and) “such”\n"
  "  Thou’rt\x85unknown! $5 été\n\n   \nend 't 'Twas \U0001d49c--- "
)


@pytest.fixture(scope="module")
def make_page(tmp_path_factory):
  """Return a function: name -> (run, page) of an untrained model."""
  base = tmp_path_factory.mktemp("writer")
  make_run = untrained_runs(base)

  @functools.cache
  def make(name):
    run, page = make_run(name), base / f"{name}.html"
    with jax.numpy_dtype_promotion("standard"):
      text, _ = writer.make_page(load(run), TEXT, "a test")
    page.write_text(text, encoding="utf-8")
    return run, page

  return make


@pytest.fixture
def opened(chromium, make_page):
  chromium.emulate(1100, 900)
  chromium.errors()  # forget those of earlier pages
  chromium.requests()
  page = make_page("lstm")[1]
  chromium.open(page)
  yield chromium
  assert chromium.errors() == []
  # The page requests nothing but itself.
  assert set(chromium.requests()) == {page.resolve().as_uri()}


def pause(chromium):
  chromium.run("writing.pause()")


@pytest.mark.everyday(1)
@pytest.mark.parametrize("name", CELLS)
def test_the_nats_of_a_text_are_those_of_the_quantized_model(
  chromium, make_page, name
):
  run, page = make_page(name)
  trained = load(run)
  tokens = trained.tokenizer.encode("\n" + TEXT)
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
  tokens = trained.tokenizer.encode("\n" + own)
  expected = stateful_nats(model, exact_params(trained), tokens)
  assert int(shown[1].replace(",", "")) == len(own) == len(expected)
  assert abs(float(shown[2]) - expected.mean()) < 1e-3  # three decimals


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


def test_the_cursor_shows_a_unit_and_what_the_model_expected(opened, make_page):
  # Written by hand: at full speed, 6,144 tokens are soon written, and the first
  # ones forgotten.
  opened.run(
    "$('again').click(); writing.pause();"
    "while (writing.track.length < 80) writing.advance();"
    "writing.show(); $('text').focus(); writing.moveTo(30);"
  )
  opened.press("right", "n")
  tokens, unit, layer, signal = opened.run(
    "return [writing.track.tokens, units().unit, units().layer,"
    "  units().signalName]; function units() { return writing.units; }"
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
  # An edit in the middle gives what reading the text anew gives.
  opened.run("$('own').value = 'Thou art'; await reading.read();")
  edited = opened.run("return reading.track.nats")
  fresh = opened.run(
    "const tokens = reading.known.map((item) => item.token);" + NATS
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
  assert "3 words" in text_of(chromium, "score")
  assert chromium.errors() == []


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
  assert heights[0] == heights[1] >= heights[2]  # both break the same lines


def test_a_script_in_the_text_is_shown_and_never_runs(opened):
  assert opened.run("return document.title") == "A model that writes"
  assert HOSTILE in opened.run("return $('own').value")
  assert HOSTILE in opened.run("return $('marked').textContent")
