"""A text typed into the page of `experiments.explore`, in a browser.

Its states, gates, predictions and gradients are those of the library, in
float64, with the 8-bit weights of the page.
"""

import functools
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from experiments import explore
from experiments.analysis.gradient_flow import gradient_paths
from experiments.analysis.states import signals, trace_layers
from experiments.pages import packed_model
from experiments.pages.quantized import dequantize_params, quantize_params
from experiments.trainer.config import TrainConfig
from experiments.trainer.records import replace
from experiments.trainer.trained import load
from lstm_jax import gru, layernorm_lstm, lstm, peephole_lstm, rnn
from tests.experiments.pages import browser
from tests.experiments.pages.browser import text_of
from tests.experiments.pages.explored import VERSE, PageData, write_run

pytestmark = [
  pytest.mark.programs,
  pytest.mark.skipif(
    bool(browser.missing()), reason=f"{browser.missing()} is not installed"
  ),
]
MODELS = {
  "lstm": {"cell": lstm, "num_layers": 2, "embedding_size": 5},
  "layernorm_lstm": {"cell": layernorm_lstm, "num_layers": 2},
  "gru": {"cell": gru, "num_layers": 2, "tied": True, "embedding_size": 11},
  "rnn": {"cell": rnn, "num_layers": 2},
  "peephole_lstm": {"cell": peephole_lstm},
  "words": {"tokenizer": "word"},
}
TYPED = "Shall I compare§ thee\nto a lovely day" + " more lovely" * 7
WINDOW = 96


@pytest.fixture(scope="module")
def make_run(tmp_path_factory):
  """Return a function: name -> the run of an untrained model."""
  base = tmp_path_factory.mktemp("typed")
  corpus = base / "verse.txt"
  corpus.write_text(VERSE * 40, encoding="utf-8")
  config = replace(
    TrainConfig(), corpus=str(corpus), val_fraction=0.3, hidden_size=11
  )

  @functools.cache
  def make(name):
    with jax.numpy_dtype_promotion("standard"):
      return write_run(
        replace(config, **MODELS[name] | {"run": str(base / name)})
      )

  return make


def page_of(run):
  """Return the page of a run."""
  config = explore.ExploreConfig(str(run), length=300)
  return explore.run(config, Console(file=io.StringIO())).path


@pytest.fixture
def chromium(chromium):
  chromium.emulate(1100, 900)
  chromium.errors()
  yield chromium
  assert chromium.errors() == []


def type_text(chromium, text):
  """Put a text into the page's box, as if it were typed."""
  chromium.run(
    "$('typing').open = true; $('own').value = args[0];"
    "$('own').dispatchEvent(new Event('input'));",
    text,
  )
  chromium.settle()


def computed(run, text):
  """Return what the library computes with the page's weights, in float64."""
  trained = load(run)
  exact = jax.tree.map(  # a product q s has up to 31 bits
    lambda leaf: leaf.astype(np.float64) if leaf.dtype != np.int8 else leaf,
    quantize_params(trained.params),
  )
  params = jax.tree.map(jnp.asarray, dequantize_params(exact))
  cell = trained.config.model.cell
  tokens = trained.tokenizer.encode(text)
  layers, logits = trace_layers(cell, params, jnp.asarray(tokens))
  assert logits.dtype == jnp.float64
  paths = gradient_paths(cell, params, layers, tokens, WINDOW)
  return cell, tokens, layers, jax.nn.softmax(logits), paths


@pytest.mark.parametrize(
  "name",
  [
    "lstm",
    "gru",
    pytest.param("rnn", marks=pytest.mark.exhaustive),
    pytest.param("layernorm_lstm", marks=pytest.mark.exhaustive),
  ],
)
def test_a_typed_text_is_read_as_the_library_reads_it(chromium, make_run, name):
  run = make_run(name)
  cell, tokens, layers, p, paths = computed(run, TYPED.replace("§", ""))
  last = len(tokens) - 1
  chromium.open(page_of(run))
  type_text(chromium, TYPED)
  assert chromium.run("return [...tokens]") == tokens.tolist()
  assert chromium.run("return pieces.join('')") == TYPED.replace("§", "")
  assert f"character {last + 1} of {last + 1}." in text_of(chromium, "status")

  # Every signal, to half of a level.
  for number, layer in enumerate(layers):
    for signal, values in signals(cell, layer).items():
      values = np.asarray(values).T
      scale, is_signed, levels = chromium.run(
        "const s = await text.signalOf(args[0], args[1]);"
        "return [s.scale, s.signed, [...s.levels]];",
        number,
        signal,
      )
      levels = np.array(levels).reshape(values.shape).astype(float)
      if is_signed:
        assert np.abs(scale - np.abs(values).max(1)).max() < 1e-12
        shown = (levels - 128) / 127 * np.array(scale)[:, None]
        half = 0.5 / 127 * np.array(scale)[:, None]
      else:
        shown, half = levels / 255, 0.5 / 255
      assert (np.abs(shown - values) < half + 1e-12).all(), signal
      assert np.ptp(values) > 0.01

  # The predictions, of all tokens, and what the text costs.
  actual, top = chromium.run("return [text.actual, text.top]")
  expected = p[np.arange(last), tokens[1:]]
  assert np.abs(np.array(actual) - expected).max() < 1e-12
  for t in (0, 7, last):
    likeliest = np.argsort(-p[t], kind="stable")[:10]
    assert [token for token, _ in top[t]] == likeliest.tolist()
    found = np.array([q for _, q in top[t]])
    assert np.abs(found - p[t][likeliest]).max() < 1e-12
  nats = -np.log(expected).mean()
  said = text_of(chromium, "score")
  assert said == (
    f"{last + 1} characters; {nats:.3f} nats each after the first; "
    "1 outside the vocabulary, not read."
  )

  # The gradients, at cursors with and without a full window before them.
  for at in (0, 30, last - 1, last):
    chromium.run("moveTo(args[0]); await text.follow(args[0]);", at)
    for number, path in enumerate(paths):
      chromium.run("$('layer').value = args[0]; layer = args[0];", number)
      found = chromium.run(
        "const paths = await text.pathsOf(args[0]);"
        "return Object.fromEntries(paths.map((path) => [path.name,"
        " Array.from({ length: data.window }, (_, k) => path.norm(args[1], k)"
        " ?? 0)]));",
        number,
        at,
      )
      assert set(found) == set(path._asdict())
      for field, norms in path._asdict().items():
        relative = np.abs(found[field] - norms[at]) / np.maximum(
          np.asarray(norms[at]), 1e-300
        )
        assert relative[norms[at] > 0].max(initial=0) < 1e-9
        assert (np.array(found[field])[norms[at] == 0] == 0).all()
  assert (paths[0].h[last - 1] > 0).all()


def test_the_pages_text_comes_back_and_pins_follow_the_text(chromium, make_run):
  page = page_of(make_run("lstm"))
  data = PageData(page)
  chromium.open(page)
  chromium.press("i")
  before = chromium.run("return [cursor, unit, [...pins[0].levels]]")
  type_text(chromium, "Thou art")
  unit, pinned, scale = chromium.run(
    "return [unit, [...pins[0].levels], pins[0].signal.scale]"
  )
  own = chromium.run("return [...(await text.signalOf(1, 'c')).levels]")
  assert unit == before[1]  # the unit stays
  assert pinned == own[8 * unit : 8 * (unit + 1)] and len(scale) == 11
  assert chromium.run("return lineOf[cursor]") == 0

  # A passage is found in the text that is shown.
  chromium.run("$('pattern').value = 'art'; find();")
  assert chromium.run("return found.map((f) => f.first)") == [5]
  chromium.run("$('pagetext').click()")
  chromium.settle()
  assert chromium.run("return pieces.join('')") == data.text
  after = chromium.run("return [cursor, unit, [...pins[0].levels]]")
  assert after == before
  assert chromium.run("return found.length") == data.text.count("art")
  assert text_of(chromium, "score") == ""

  # So does an empty box, or one of unknown characters alone.
  type_text(chromium, "Thou")
  type_text(chromium, "§")
  assert chromium.run("return pieces.join('')") == data.text


def test_a_text_too_long_and_one_letter_are_read(chromium, make_run):
  chromium.open(page_of(make_run("gru")))
  type_text(chromium, "art " * 600)
  assert chromium.run("return pieces.length") == 2000
  said = text_of(chromium, "score")
  assert said.startswith("2,000 characters; ")
  assert said.endswith("; the other 400 are too many for this page.")
  type_text(chromium, "a")
  assert text_of(chromium, "score") == "1 character."
  assert "The text ends here." in text_of(chromium, "status")


def test_a_word_model_reads_typed_words(chromium, make_run):
  run = make_run("words")
  chromium.open(page_of(run))
  type_text(chromium, "Thou art more zebra\nlovely")
  pieces = chromium.run("return pieces")
  tokens = load(run).tokenizer.encode("Thou art more zebra\nlovely")
  assert chromium.run("return [...tokens]") == tokens.tolist()
  assert pieces == load(run).tokenizer.pieces(tokens)


def test_a_page_that_cannot_read_says_why(chromium, make_run, monkeypatch):
  chromium.open(page_of(make_run("peephole_lstm")))
  assert chromium.run("return $('typing').hidden")
  assert text_of(chromium, "untyped") == (
    "No text of your own here: a page has no cell peephole_lstm, only lstm, "
    "layernorm_lstm, gru, rnn."
  )
  monkeypatch.setattr(packed_model, "MAX_WEIGHTS", 1_000)
  header = PageData(page_of(make_run("rnn"))).header
  assert header["model"] is None
  assert "at most 1,000 weights" in header["untyped"]
