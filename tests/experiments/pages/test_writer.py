"""The data of the page that writes: an excerpt, and a unit for each feature."""

from collections import namedtuple
from types import SimpleNamespace

import numpy as np

from experiments.analysis.features import line_position, word_starts
from experiments.pages import writer
from experiments.pages.quantized import Cost
from experiments.pages.writer import EXCERPT, excerpt
from lstm_jax import lstm
from lstm_jax.language import CharTokenizer


def test_a_short_text_has_an_excerpt_and_blanks_before_it_do_not_count():
  words = "word " * 30
  assert excerpt(f"{words}\n") == excerpt(f"{words}\n\n \n") == words.rstrip()
  assert excerpt(f"a title\n\n{words}\n") == words.rstrip()
  assert excerpt(" \n") == ""
  assert excerpt("\n" * 3 * EXCERPT + "end") == "end"


def test_an_excerpt_has_whole_lines_or_else_words():
  line = "word " * 9 + "end\n"  # 49 characters: 240 hold four lines
  assert excerpt("title\n\n" + 9 * line) == (4 * line).rstrip()
  words = "title\n" + "word " * 99
  assert excerpt(words) == ("word " * 48).rstrip() == excerpt(words[6:])
  assert excerpt("a\n" + "word " * 59) == ("word " * 48).rstrip()
  assert excerpt("x" * 300) == excerpt("x" * 600 + "\nend") == "x" * EXCERPT
  assert excerpt("short\n" + "x" * 300) == "x" * EXCERPT
  whole = "word " * 47 + "words"
  assert excerpt(whole) == whole and len(whole) == EXCERPT
  # A line that ends in the first half does not end the excerpt.
  assert excerpt("title\nshort\n" + "x" * 300) == "short\n" + "x" * 234


def test_the_unit_that_follows_a_feature_best_is_found_in_any_layer(
  monkeypatch,
):
  pieces = [*"To be, or\nnot to be,\nthat is"]
  text = "".join(pieces)
  h = np.random.default_rng(0).standard_normal((2, len(pieces), 3))
  c = h[::-1].copy()
  c[0, :, 2] = line_position(text)
  h[1, :, 1] = ~word_starts(text)  # an AUC of 0 is as good as one of 1
  State = namedtuple("State", "h c")
  traces = [SimpleNamespace(states=State(h[k], c[k])) for k in (0, 1)]
  # In place of a model's states, these, in which the best units are known.
  monkeypatch.setattr(writer, "trace_layers", lambda *_: (traces, None))
  layers, follows = writer.score_units(lstm, None, None, pieces)
  keys = "feature", "measure", "layer", "signal", "unit"
  assert [tuple(best[key] for key in keys) for best in follows] == [
    ("line position", "r", 0, "c", 2),
    ("word starts", "AUC", 1, "h", 1),
  ]
  found = [(best["score"], best["strength"]) for best in follows]
  assert np.allclose(found, [(1, 1), (0, 1)], atol=1e-3)
  for layer, trace in zip(layers, traces, strict=True):
    for state, values in zip(layer, trace.states, strict=True):
      assert np.allclose(state["scale"], np.abs(values).max(0), rtol=1e-3)


def test_a_page_is_measured_on_the_beginning_of_its_text(monkeypatch):
  text, given = "\ta line\n" * 3, []

  def pack_model(trained, tokens, blobs):
    given.append(tokens.tolist())
    return {}, "rounded", Cost(2.0, 2.0, len(tokens))

  def score_units(cell, params, tokens, pieces):
    given.append((cell, params, tokens.tolist(), pieces))
    return [], []

  def page(blobs, template, header):
    return header

  for name, value in (
    ("MEASURED", 9),
    ("TRACED", 4),
    ("pack_model", pack_model),
    ("score_units", score_units),
    ("describe", lambda trained: "a model"),
  ):
    monkeypatch.setattr(writer, name, value)
  monkeypatch.setattr(writer.Blobs, "page", page)
  tokenizer = CharTokenizer.from_text(text)
  config = SimpleNamespace(model=SimpleNamespace(cell="cell"))
  trained = SimpleNamespace(tokenizer=tokenizer, config=config)
  header, cost = writer.make_page(trained, text, "a text")
  tokens = tokenizer.encode(text).tolist()
  assert given == [tokens[:9], ("cell", "rounded", tokens[:4], [*text[:4]])]
  assert header["cost"].endswith(" on 9 characters of a text.")
  assert header["start"] == 1 and tokenizer.symbols[1] == "\n"
  assert cost.num_tokens == 9
