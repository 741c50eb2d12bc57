"""The page of `experiments.explore`: its numbers are those of the library."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.analysis.features import (
  inside_quotes,
  line_position,
  scores,
  speaker_names,
  word_starts,
)
from experiments.analysis.gradient_flow import gradient_paths
from experiments.analysis.states import signals, trace_layers
from experiments.pages.explore import (
  TEMPLATE,
  TOP_TOKENS,
  WINDOW,
  make_header,
  pack_path,
)
from experiments.pages.packing import Blobs
from experiments.trainer.config import CELLS
from experiments.trainer.trained import load
from lstm_jax import Autodiff
from lstm_jax.language import ModelConfig, language_model
from tests.contract import NAMES
from tests.draws import worst
from tests.experiments.pages.explored import LENGTH, PageData, val_text
from tests.experiments.test_cli import finish, start
from tests.training.test_matrix_state import cell as matrix_cell


def test_a_state_that_is_no_vector_has_no_page(key):
  config = ModelConfig(matrix_cell, embedding_size=3, hidden_size=4)
  params = language_model(config, 7, adjoint=Autodiff()).init(key)
  message = r"^a page shows states that are vectors, got m \[4, 4\]$"
  with pytest.raises(ValueError, match=message):
    make_header(matrix_cell, params, np.arange(7), [*"abcdefg"], Blobs())


@pytest.mark.exhaustive
def test_a_state_or_logit_that_is_not_finite_has_no_page(key):
  config = ModelConfig(CELLS["relu_rnn"], embedding_size=3, hidden_size=4)
  params = language_model(config, 7).init(key)
  (layer,) = params.layers  # h of about 10, 1e21, 1e41: the third overflows
  layer = layer._replace(w_h=1e20 * jnp.eye(4), b=jnp.full(4, 10.0))
  params = params._replace(layers=(layer,))
  with pytest.raises(ValueError, match="infinite or NaN from token 3 of the "):
    make_header(config.cell, params, np.arange(7), [*"abcdefg"], Blobs())
  with pytest.raises(ValueError, match="infinite or NaN from token 1 of the "):
    nan = params._replace(bias=params.bias.at[2].set(jnp.nan))
    make_header(config.cell, nan, np.arange(7), [*"abcdefg"], Blobs())


def test_the_page_has_states_and_gates_to_half_a_level(
  explored_page, explored_run
):
  """A level is a step of the 8-bit numbers in which the page holds them.

  States are compared with those of `cell.step`, gates with those of `signals`,
  which has its own tests.
  """
  data, trained = PageData(explored_page), load(explored_run)
  tokens = trained.tokenizer.encode(val_text(explored_run))
  xs = trained.params.embedding[tokens]
  cell = CELLS["lstm"]
  layers, _ = trace_layers(cell, trained.params, jnp.asarray(tokens))
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
    xs = states.h


def test_the_predictions_are_the_softmax_of_the_logits(
  explored_page, explored_run
):
  data, trained = PageData(explored_page), load(explored_run)
  tokens = trained.tokenizer.encode(val_text(explored_run))
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
  assert len(actual) == LENGTH - 1
  assert np.abs(actual - p[np.arange(LENGTH - 1), tokens[1:]]).max() < 1e-6


def test_gradient_norms_are_stored_to_six_per_cent(explored_page, explored_run):
  data, trained = PageData(explored_page), load(explored_run)
  tokens = trained.tokenizer.encode(val_text(explored_run))
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


def test_units_are_scored_by_every_feature_that_the_text_has(
  explored_page, explored_run
):
  data, text = PageData(explored_page), val_text(explored_run)
  names = [feature["name"] for feature in data.header["features"]]
  assert names == [
    "line position",
    "inside quotes",
    "word starts",
    "speaker names",
  ]
  measures = [feature["measure"] for feature in data.header["features"]]
  assert measures == ["r", "AUC", "AUC", "AUC"]
  features = line_position, inside_quotes, word_starts, speaker_names
  values = [feature(text) for feature in features]
  for layer in data.header["layers"]:
    for signal in layer["signals"]:
      # The layers of `explored_run` have 12 units.
      levels = data.array(signal["blob"]).reshape(12, LENGTH)
      expected = [scores(levels, feature) for feature in values]
      assert worst(np.array(signal["scores"]), np.array(expected)) < 1e-4


@pytest.mark.exhaustive
@pytest.mark.programs
def test_the_program_writes_a_page(explored_run, tmp_path):
  output = tmp_path / "page.html"
  flags = f"--run={explored_run}", "--length=30", f"--out={output}"
  status, out, err = finish(start("explore", *flags))
  assert (status, err) == (0, "")
  assert f"page    {output}: " in out
  assert len(PageData(output).text) == 30


@pytest.mark.exhaustive
@NAMES
def test_every_cell_has_a_page(name, key):
  text = "to be or not to be"
  symbols = sorted(set(text))
  tokens = np.array([symbols.index(c) for c in text], np.int32)
  config = ModelConfig(
    CELLS[name], embedding_size=3, hidden_size=4, num_layers=2
  )
  params = language_model(config, len(symbols)).init(key)
  blobs = Blobs()
  header = make_header(CELLS[name], params, tokens, [*text], blobs)
  # The LSTM has the signals hcifgo, and the state has the fields hc. These are
  # the signals, and the fields, of the cells that differ from it.
  letters = dict.fromkeys(
    ("rnn", "relu_rnn", "min_gru", "min_lstm", "lru"), "h"
  )
  fields_of = letters | {"gru": "h", "gru_reset_before": "h", "slstm": "hcnm"}
  letters |= {
    "gru": "hrzn",
    "gru_reset_before": "hrzn",
    "coupled_lstm": "hcfgo",
    "slstm": "hcnmifgo",
  }
  meanings_of_n = {
    "gru": "candidate",
    "gru_reset_before": "candidate",
    "slstm": "normaliser",
  }
  for layer in header["layers"]:
    signals_of_layer = "".join(signal["name"] for signal in layer["signals"])
    assert signals_of_layer == letters.get(name, "hcifgo")
    fields = [path["name"] for path in layer["paths"]]
    assert fields == [*fields_of.get(name, "hc")]
    meanings = {s["name"]: s["meaning"] for s in layer["signals"]}
    assert meanings.get("n") == meanings_of_n.get(name)
  assert header["next"]["count"] == len(symbols) < TOP_TOKENS
  assert 'id="header"' in blobs.page(TEMPLATE, header)


def test_a_gradient_that_overflows_has_the_level_of_the_largest():
  for finite, bounds in (([1.0, 1e-3], [-3, 0]), ([0.0, 0.0], [0, 1e-3])):
    norms = np.array([[finite[0], np.inf], [finite[1], np.nan]], np.float32)
    taken = []
    header = pack_path("h", norms, SimpleNamespace(add=taken.append))
    assert np.allclose([header["low"], header["high"]], bounds)
    (levels,) = taken
    assert levels.max() > 0 and (levels[:, 1] == levels.max()).all()
    assert ((levels[:, 0] > 0) == (norms[:, 0] > 0)).all()
    assert (levels[0, 0] > levels[1, 0]) == (finite[0] > finite[1])
