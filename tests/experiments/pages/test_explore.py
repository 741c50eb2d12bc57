"""The page of `experiments.explore`: its numbers are those of the library."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import explore
from experiments.analysis.context import gradient_paths
from experiments.analysis.features import FEATURES, measure, scores
from experiments.analysis.states import signals, trace_layers
from experiments.explore import ExploreConfig
from experiments.pages.explore import (
  TEMPLATE,
  TOP_TOKENS,
  WINDOW,
  make_header,
)
from experiments.pages.packed_model import (
  dequantize_params,
  describe_cost,
  measure_cost,
  quantize_params,
)
from experiments.pages.packing import Blobs
from experiments.trainer.config import CELLS
from experiments.trainer.records import replace
from experiments.trainer.trained import load
from lstm_jax.language import ModelConfig, language_model, read_text, split
from tests.contract import NAMES
from tests.draws import worst
from tests.experiments.pages.explored import (
  HOSTILE,
  LENGTH,
  PageData,
  val_text,
  write_run,
)


@pytest.fixture
def read(explored_page, explored_run):
  """Return (data of the page, the model, its text, the text's tokens)."""
  trained, text = load(explored_run), val_text(explored_run)
  return PageData(explored_page), trained, text, trained.tokenizer.encode(text)


def test_the_page_has_states_and_gates_to_half_a_level_and_scores(read):
  """A level is a step of the 8-bit numbers in which the page holds them.

  States are compared with those of `cell.step`, gates with those of `signals`,
  which has its own tests.
  """
  data, trained, text, tokens = read
  xs, cell = trained.params.embedding[tokens], CELLS["lstm"]
  layers, _ = trace_layers(cell, trained.params, jnp.asarray(tokens))
  features = {f.name: f.of_pieces([*text]) for f in FEATURES}
  assert data.header["features"] == [
    {"name": name, "measure": measure(values)}
    for name, values in features.items()
  ]
  for number, weights in enumerate(trained.params.layers):

    def step(state, x, weights=weights):
      after = cell.step(weights, state, x)
      return after, after

    _, states = jax.lax.scan(step, cell.initial_state(weights), xs)
    gates = signals(cell, layers[number])
    assert list(gates) == ["h", "c", "i", "f", "g", "o"]
    for name, values in (gates | states._asdict()).items():
      decoded, half = data.signal(number, name)
      if name in ("h", "c", "g"):  # levels are shares of the largest magnitude
        largest = np.abs(values).max(axis=0)
        assert np.allclose(data.scale(number, name), largest, atol=1e-5)
      assert (np.abs(decoded - values.T) <= half + 1e-5).all(), (number, name)
    for signal in data.header["layers"][number]["signals"]:
      levels = data.array(signal["blob"]).reshape(12, LENGTH)  # 12 units
      expected = [scores(levels, feature) for feature in features.values()]
      assert worst(np.array(signal["scores"]), np.array(expected)) < 1e-4
    xs = states.h


def test_the_predictions_are_the_softmax_of_the_logits(read):
  data, trained, _, tokens = read
  model, state = trained.model, trained.model.initial_state(())
  _, logits = model.apply(trained.params, state, tokens)
  p = np.asarray(jax.nn.softmax(logits))
  blobs, count = data.header["next"], TOP_TOKENS
  top_tokens = data.array(blobs["tokens"], "<u4").reshape(-1, count)
  top_p = data.array(blobs["probabilities"], "<u2").reshape(-1, count) / 65535
  expected = -np.sort(-p, axis=-1)[:, :count]
  assert np.abs(top_p - expected).max() < 0.5 / 65535 + 1e-6
  p_of_tokens = np.take_along_axis(p, top_tokens.astype(int), axis=-1)
  assert np.abs(top_p - p_of_tokens).max() < 0.5 / 65535 + 1e-6
  assert all(len(set(row)) == count for row in top_tokens)
  actual = data.array(blobs["actual"], "<f4")
  assert np.abs(actual - p[np.arange(LENGTH - 1), tokens[1:]]).max() < 1e-6


def test_gradient_norms_are_stored_to_six_per_cent(read):
  data, trained, _, tokens = read
  cell, params = CELLS["lstm"], trained.params
  layers, _ = trace_layers(cell, params, jnp.asarray(tokens))
  paths = gradient_paths(cell, params, layers, tokens, WINDOW)
  for number, path in enumerate(paths):
    found = data.paths(number)
    assert [*found] == ["h", "c"]
    for name, norms in found.items():
      expected = getattr(path, name)
      in_range = expected > 1.001e-12 * expected.max()
      assert in_range.mean() > 0.5
      # 254 levels span at most 12 decades: half a level is a factor of
      # 10**(6 / 254) = 1.056.
      assert np.abs(norms[in_range] / expected[in_range] - 1).max() < 0.057
      assert ((norms == 0) == (expected == 0)).all()


def test_the_text_is_that_of_the_validation_split_and_cannot_act_as_markup(
  read, explored_page
):
  data, trained, text, tokens = read
  html = explored_page.read_text(encoding="utf-8")
  assert data.text == text and HOSTILE in text
  for part in ("document.title", "First Lord", "Shall I", "lovely"):
    assert part not in html
  assert not re.search(r"https?:|\bsrc=|@import|url\(", html)
  assert "lstm, 2 × 12 units" in data.header["about"]
  source = data.header["source"]
  assert "400 characters of the validation split of verse.txt" in source
  rounded = dequantize_params(quantize_params(trained.params))
  cost = measure_cost(trained, rounded, tokens)
  said = describe_cost(cost, trained.tokenizer)
  assert data.header["cost"] == f"{said} of the page’s text."


def test_a_run_with_a_test_split_is_explored_on_that_split(config, console):
  config = replace(config, test_fraction=0.2, val_fraction=0.3)
  page = explore.run(ExploreConfig(str(write_run(config)), length=50), console)
  text = split(read_text(config.data.corpus), 0.2)[1][:50]
  data = PageData(page.path)
  assert data.text == text
  assert data.header["source"] == "50 characters of the test split of verse.txt"
  assert "1 × 12 units, after 0 training steps" in console.file.getvalue()


def test_a_file_or_a_prompt_is_shown_instead(explored_run, tmp_path, console):
  text, out = tmp_path / "text.txt", tmp_path / "page.html"
  text.write_text("Shall I more\r\nlovely été", encoding="utf-8")
  flags = {"length": 15, "out": str(out)}
  config = ExploreConfig(str(explored_run), str(text), **flags)
  page = explore.run(config, console)
  assert page == (out, out.stat().st_size)
  assert f"page    {out}: " in console.file.getvalue()
  data = PageData(out)
  assert data.text == "Shall I more\nlo"
  assert data.header["constant"] == ["inside quotes", "speaker names"]
  assert f"15 characters of {text}" in data.header["source"]
  config = ExploreConfig(str(explored_run), prompt="more\nShall", **flags)
  explore.run(config, console)
  assert PageData(out).text == "more\nShall"
  assert "10 characters of a prompt" in PageData(out).header["source"]


def test_a_word_model_is_shown_word_by_word(words_page, tmp_path):
  data, trained = PageData(words_page), load(words_page.parent)
  line = ["Thou", " art", " more", " lovely", ",", " more", "\n  "]
  line += ["<unk>", " Thou", " art", "\n", "more"]
  assert data.header["pieces"] == [*line, "\n", *line, "\n", *line]
  assert data.header["unit"] == "word" and "38 words" in data.header["source"]
  tokens = data.array(data.header["tokens"], "<u4")
  text = (tmp_path / "text.txt").read_text()
  assert (tokens == trained.tokenizer.encode(text)).all()
  names = [feature["name"] for feature in data.header["features"]]
  assert names == ["line position", "word starts"]


@pytest.mark.exhaustive
@NAMES
def test_every_cell_has_a_page(name, key):
  text, cell = "to be or not to be", CELLS[name]
  symbols = sorted(set(text))
  tokens = np.array([symbols.index(c) for c in text], np.int32)
  config = ModelConfig(cell, embedding_size=3, hidden_size=4, num_layers=2)
  params = language_model(config, len(symbols)).init(key)
  layers, _ = trace_layers(cell, params, jnp.asarray(tokens))
  blobs = Blobs()
  header = make_header(cell, params, tokens, [*text], blobs)
  for found, layer in zip(header["layers"], layers, strict=True):
    assert [s["name"] for s in found["signals"]] == [*signals(cell, layer)]
    assert [p["name"] for p in found["paths"]] == [*layer.states._fields]
    meanings = {s["name"]: s["meaning"] for s in found["signals"]}
    n = "normaliser" if name == "slstm" else "candidate"
    assert meanings.get("n", n) == n
  assert header["next"]["count"] == len(symbols) < TOP_TOKENS
  assert 'id="header"' in blobs.page(TEMPLATE, header)
