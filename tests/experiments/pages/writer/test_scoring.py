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

pytestmark = [pytest.mark.programs, browser.NEEDED]


TEXT = VERSE * 4
NATS = """
  const track = new Track(model, data.start);
  return tokens.map((token) => track.push(token));
"""


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
