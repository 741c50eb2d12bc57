"""Loss by context length, and gradient norms by distance."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.analysis import context
from experiments.analysis.context import bins, gradient_norms, nats_by_context
from lstm_jax import lstm, rnn
from lstm_jax.language import ModelConfig, cross_entropy, language_model

V, H = 9, 5
TOKENS = np.random.default_rng(0).integers(0, V, 100).astype(np.int32)


def make(cell, key, *, tied=False):
  size = H if tied else 3  # of an embedding
  config = ModelConfig(cell, size, H, tied=tied, dtype=jnp.float64)
  model = language_model(config, V)
  return model, model.init(key)


def test_bins_double_up_to_the_window():
  assert bins(1) == [1]
  assert bins(8) == [1, 2, 4, 8]
  assert bins(12) == [1, 2, 4, 8, 12]


@pytest.mark.exhaustive
@pytest.mark.parametrize(
  ("length", "shifts", "starts"),
  [
    (100, 32, range(80)),  # 16 shifts of 1, 5 windows each
    (100, 8, range(0, 80, 2)),  # 8 shifts of 2
    (20, 32, range(4)),  # a fifth start leaves 16 tokens; a window needs 17
  ],
)
def test_nats_by_context_are_the_means_of_the_single_predictions(
  length, shifts, starts, key, monkeypatch
):
  monkeypatch.setattr(context, "SHIFTS", shifts)
  model, params = make(lstm, key)
  means = nats_by_context(model, params, TOKENS[:length], 16)
  # The bins of a window of 16 tokens end at 1, 2, 4, 8 and 16.
  sums, counts, apply = np.zeros(5), np.zeros(5), jax.jit(model.apply)
  for start in starts:
    tokens = TOKENS[start : start + 17]
    _, logits = apply(params, model.initial_state(()), tokens[:-1])
    nats = np.asarray(cross_entropy(logits, tokens[1:]))
    for read, value in enumerate(nats, start=1):
      sums[int(np.ceil(np.log2(read)))] += value
      counts[int(np.ceil(np.log2(read)))] += 1
  assert np.abs(np.array(means) - sums / counts).max() < 1e-12


@pytest.mark.exhaustive
@pytest.mark.parametrize("cell", [lstm, rnn])
def test_gradient_norms_are_those_of_autodiff(cell, key):
  _, params = make(cell, key)
  norms = gradient_norms(cell, params, TOKENS[:23], 10)  # two windows
  (weights,) = params.layers

  @jax.jit
  def step(state, token):
    return cell.forward(weights, state, params.embedding[token])[0]

  def loss(after, rest, target):
    for token in rest:
      after = step(after, token)
    return cross_entropy(after.h @ params.readout + params.bias, target)

  for back in (0, 1, 10):
    expected = []
    for window in (TOKENS[:11], TOKENS[11:22]):
      after = cell.initial_state(weights, ())
      for token in window[: 10 - back]:
        after = step(after, token)
      gradient = jax.grad(loss)(after, window[10 - back : 10], window[10])
      expected.append([float(jnp.linalg.norm(leaf)) for leaf in gradient])
    actual = np.array([norms[field][back] for field in after._fields])
    assert np.abs(actual - np.mean(expected, axis=0)).max() < 1e-12
  assert all(len(values) == 11 for values in norms.values())


@pytest.mark.exhaustive
def test_chunks_of_windows_have_the_mean_of_all(key, monkeypatch):
  _, params = make(lstm, key)
  whole = gradient_norms(lstm, params, TOKENS, 10)  # nine windows
  monkeypatch.setattr(context, "CHUNK", 4)  # the last has one window
  chunked = gradient_norms(lstm, params, TOKENS, 10)
  for name, values in whole.items():
    assert np.abs(np.array(values) - chunked[name]).max() < 1e-12


def test_a_tied_model_reads_scaled_rows_of_its_readout(key):
  _, tied = make(rnn, key, tied=True)
  embedding = H**0.5 * tied.embedding  # as `language_model` scales it
  untied = tied._replace(embedding=embedding, readout=tied.embedding.T)
  found, expected = (
    np.array(gradient_norms(rnn, params, TOKENS[:22], 10)["h"])
    for params in (tied, untied)
  )
  assert found[0] > 0 and np.abs(found - expected).max() < 1e-12


def test_norms_whose_squares_underflow_are_not_zero(key):
  _, params = make(rnn, key)
  params = jax.tree.map(lambda p: p.astype(jnp.float32), params)
  (weights,) = params.layers
  small = weights._replace(w_h=1e-6 * weights.w_h)
  norms = gradient_norms(rnn, params._replace(layers=(small,)), TOKENS, 5)["h"]
  assert 0 < norms[5] < 1e-28
  assert all(b < 1e-4 * a for a, b in pairwise(norms))


def test_a_short_text_or_several_layers_are_refused(key):
  model, params = make(rnn, key)
  with pytest.raises(ValueError, match="at least 101 tokens, got 100"):
    nats_by_context(model, params, TOKENS, 100)
  with pytest.raises(ValueError, match="at least 101 tokens, got 100"):
    gradient_norms(rnn, params, TOKENS, 100)
  two = params._replace(layers=params.layers * 2)
  with pytest.raises(ValueError, match="one layer is needed, got 2"):
    gradient_norms(rnn, two, TOKENS, 10)
