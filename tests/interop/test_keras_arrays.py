"""Weights from and to Keras, without Keras."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import gru, gru_reset_before, lstm, rnn, unroll
from lstm_jax.cells import RELU, make_hard_sigmoid
from lstm_jax.interop import keras as interop
from tests.draws import B, D, H, T, normal_like, worst
from tests.interop.keras_layers import (
  EACH,
  HARD,
  OPTIONS,
  SIDES,
  draw,
  from_options,
)


def sigmoid(a):
  return 1 / (1 + np.exp(-a))


def hard(a):
  return np.clip(a / 6 + 0.5, 0, 1)


def forward(kind, weights, xs):
  """Return a Keras layer's outputs, by its documented equations, in NumPy."""
  # OPTIONS sets no other activations than hard_sigmoid for gates, and relu.
  options = from_options(kind)
  gate = hard if "recurrent_activation" in options else sigmoid
  act = partial(np.maximum, 0) if "activation" in options else np.tanh
  kernel, recurrent, bias = weights
  h = c = np.zeros((xs.shape[0], H))
  outputs = []
  for x in np.swapaxes(xs, 0, 1):
    if kind.startswith("LSTM"):
      i, f, g, o = np.split(x @ kernel + h @ recurrent + bias, 4, axis=-1)
      c = gate(f) * c + gate(i) * act(g)
      h = gate(o) * act(c)
    elif kind.startswith("SimpleRNN"):
      h = act(x @ kernel + h @ recurrent + bias)
    else:
      of_x, of_h = bias if bias.ndim == 2 else (bias, np.zeros_like(bias))
      x_z, x_r, x_h = np.split(x @ kernel + of_x, 3, axis=-1)
      w_z, w_r, w_h = np.split(recurrent, 3, axis=-1)
      b_z, b_r, b_h = np.split(of_h, 3)
      z, r = gate(x_z + h @ w_z + b_z), gate(x_r + h @ w_r + b_r)
      before = "before" in kind
      inner = (r * h) @ w_h if before else r * (h @ w_h + b_h)
      h = z * h + (1 - z) * act(x_h + inner)
    outputs.append(h)
  return np.stack(outputs, axis=1)


def random_weights(key, kind):
  """Return the arrays of a layer, all of them Gaussian."""
  arrays = interop.to_keras(draw(key, kind))
  draws = normal_like(key, [np.zeros(a.shape) for a in arrays])
  return [np.asarray(x) / 2 for x in draws]


@EACH
def test_outputs_are_those_of_the_equations_of_keras(kind, key):
  weights = random_weights(key, kind)
  xs = np.asarray(normal_like(key, np.zeros((B, T, D))))
  cell, params = interop.from_keras(weights, **from_options(kind))
  assert cell is OPTIONS[kind][1]
  _, found = unroll(cell, params, None, xs, time_major=False)
  assert worst(found, forward(kind, weights, xs)) < 1e-12


@EACH
@SIDES
def test_a_round_trip_keeps_the_weights_of_keras(kind, both, key):
  params = draw(key, kind, both)
  weights = interop.to_keras(params)
  options = from_options(kind)
  paths = [
    f"net/{side}layer/cell/{name}"
    for side in (["forward_", "backward_"] if both else [""])
    for name in ("kernel", "recurrent_kernel", "bias")
  ]
  named = dict(zip(paths, weights, strict=True))
  sources = [weights, tuple(weights), named]
  if not both:  # the names alone are paths too
    sources.append({k.rpartition("/")[2]: x for k, x in named.items()})
  for source in sources:
    cell, same = interop.from_keras(source, **options)
    assert cell is OPTIONS[kind][1] and worst(same, params) == 0
  traced = jax.jit(lambda w: interop.from_keras(w, **options)[1])(weights)
  assert worst(traced, params) == 0
  with pytest.raises(
    ValueError,
    match=r"^b must be 0 .*, got magnitudes of up to [\d.]+$",
  ):
    interop.to_keras(params, bias=False)
  params = jax.tree.map(lambda w: w if w.ndim > 1 else 0 * w, params)
  weights = interop.to_keras(params, bias=False)
  assert len(weights) == (4 if both else 2)
  options = {"reset_after": True, **options} if kind == "GRU" else options
  assert worst(interop.from_keras(weights, **options)[1], params) == 0


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_a_bias_with_one_nonzero_element_is_not_left_out(kind, key):
  params = jax.tree.map(np.zeros_like, draw(key, kind))
  params[-1][-1] = 0.5
  name = {"LSTM": "b", "GRU": "b_n"}[kind]
  with pytest.raises(ValueError, match=rf"^{name} must be 0 .* to 0\.5$"):
    interop.to_keras(params, bias=False)


@EACH
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_arrays_have_the_dtype_of_the_params(kind, dtype, key):
  params = jax.tree.map(lambda w: np.asarray(w, dtype), draw(key, kind))
  with jax.enable_x64(False):
    arrays = interop.to_keras(params)
  assert {array.dtype for array in arrays} == {np.dtype(dtype)}
  assert not any(np.shares_memory(a, w) for a in arrays for w in params)


@pytest.mark.parametrize(
  "layers",
  [
    ["backward/lstm_cell"],
    ["backward_reader/lstm_cell"],
    ["net/forward_reader/lstm_cell"],
    ["bi/forward_lstm/lstm_cell", "bi/lstm_2/lstm_cell"],
    ["bi/forward_a/lstm_cell", "bi/a_forward_b/lstm_cell"],
    ["backward_bi/forward_lstm/lstm_cell", "backward_bi/backward_lstm/cell"],
    ["bi/forward_backward_a/lstm_cell", "bi/backward_backward_a/lstm_cell"],
  ],
)
def test_only_the_part_above_the_cell_tells_the_direction(layers, key):
  params = draw(key, "LSTM", both=len(layers) == 2)
  names = "kernel", "recurrent_kernel", "bias"
  paths = [f"{layer}/{name}" for layer in layers for name in names]
  named = dict(zip(paths, interop.to_keras(params), strict=True))
  for items in (named.items(), reversed(named.items())):
    assert worst(interop.from_keras(dict(items))[1], params) == 0


def test_later_changes_of_the_arrays_do_not_reach_the_params(key):
  for kind in OPTIONS:
    weights = random_weights(key, kind)
    _, params = interop.from_keras(weights, **from_options(kind))
    expected = jax.tree.map(np.array, params)
    for x in weights:
      x[...] = 9
    assert worst(params, expected) == 0


def test_bfloat16_arrays_keep_dtype_and_values(key):
  params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), draw(key, "GRU"))
  _, same = interop.from_keras(interop.to_keras(params))
  assert {leaf.dtype for leaf in same} == {jnp.dtype(jnp.bfloat16)}
  assert worst(same, params) == 0


def test_a_hard_sigmoid_of_keras_2_is_an_activation(key):
  hard_2 = make_hard_sigmoid(0.2)
  weights = random_weights(key, "LSTM")
  cell, _ = interop.from_keras(weights, recurrent_activation=hard_2)
  assert cell is lstm.with_activations(hard_2)


def test_each_activation_has_its_place_in_the_cell(key):
  options = {"recurrent_activation": "hard_sigmoid", "activation": "relu"}
  places = {  # of the gates, and of the candidate
    "LSTM": lstm.with_activations(HARD, RELU, RELU),
    "GRU": gru.with_activations(HARD, RELU),
    "GRU before": gru_reset_before.with_activations(HARD, RELU),
    "SimpleRNN": rnn.with_activation(RELU),
  }
  for kind, expected in places.items():
    cell, _ = interop.from_keras(interop.to_keras(draw(key, kind)), **options)
    assert cell is expected


# Kernels of a GRU and of an LSTM.
G = np.ones((D, 3 * H)), np.ones((H, 3 * H))
L = np.ones((D, 4 * H)), np.ones((H, 4 * H))


def test_a_missing_bias_has_the_dtype_of_the_weights():
  for wide in (G, L):
    weights = [x.astype(np.float32) for x in wide]
    for after in (True, False):
      _, params = interop.from_keras(weights, reset_after=after)
      assert {leaf.dtype for leaf in params} == {jnp.dtype(jnp.float32)}
