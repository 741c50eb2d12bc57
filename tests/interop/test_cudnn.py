"""Weights from and to cuDNN's array, with an LSTM of JAX as the oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import rnn

from lstm_jax import (
  gru,
  layernorm_lstm,
  lstm,
  peephole_lstm,
  projected_lstm,
  unroll_stack,
)
from lstm_jax.interop.cudnn import from_cudnn, to_cudnn
from lstm_jax.sequence import init_stack, initial_stack_state
from tests.draws import B, D, H, T, normal_like, weighed, worst

DIRECTIONS = pytest.mark.parametrize(
  "both",
  [pytest.param(False, marks=pytest.mark.exhaustive), True],
  ids=["one", "both"],
)
LENGTHS = np.full(B, T, np.int32)


@pytest.mark.exhaustive
@DIRECTIONS
def test_unroll_has_the_value_and_gradient_of_jax_reference_lstm(both, key):
  layers = init_stack(
    lstm, key, D, (H, H), bidirectional=both, dtype=jnp.float64
  )
  weights = normal_like(key, to_cudnn(layers))
  xs = normal_like(key, np.zeros((B, T, D)))
  sizes = D, H, 2, both

  def reference(weights, xs):
    zeros = jnp.zeros((4 if both else 2, B, H))  # 2 layers × directions
    parts = rnn.unpack_lstm_weights(weights, *sizes)
    return rnn.lstm_ref(
      xs, zeros, zeros, *parts, jnp.asarray(LENGTHS), D, H, 2, 0.0, both
    )[0]

  def ours(layers, xs):
    states = initial_stack_state(lstm, layers, (B,))
    return unroll_stack(lstm, layers, states, xs, time_major=False)[1]

  def run(f, weights):
    return jax.jit(jax.value_and_grad(weighed(f, key), (0, 1)))(weights, xs)

  value, (d_layers, d_xs) = run(ours, from_cudnn(weights, *sizes))
  with jax.numpy_rank_promotion("allow"):
    expected, (d_weights, d_inputs) = run(reference, weights)
  # 0 for bias_hh, which our layers do not have, and 1 for all other weights.
  ours_too = to_cudnn(jax.tree.map(jnp.ones_like, layers))
  found = value, to_cudnn(d_layers), d_xs
  assert worst(found, (expected, ours_too * d_weights, d_inputs)) < 1e-12


@DIRECTIONS
def test_a_round_trip_keeps_the_weights(both, key):
  layers = init_stack(
    lstm, key, D, (H, H, H), bidirectional=both, dtype=jnp.float64
  )
  layers = normal_like(key, layers)
  weights = to_cudnn(layers)
  assert worst(from_cudnn(weights, D, H, 3, both), layers) == 0


def test_eleven_layers_are_in_the_order_of_their_numbers():
  """In alphabetical order, l10 would be before l2."""
  # D and H are 1: a layer has 4 weights in w_x and 4 in w_h.
  layers = [
    lstm.LSTMParams(*(np.full(n, k, "f") for n in ((1, 4), (1, 4), 4)))
    for k in range(11)
  ]
  weights = np.asarray(to_cudnn(tuple(layers)))[: 11 * 8]  # the biases follow
  assert (weights.reshape(11, 8) == np.arange(11)[:, None]).all()


@pytest.mark.exhaustive
@DIRECTIONS
def test_weights_are_converted_inside_a_compiled_gradient(both, key):
  layers = init_stack(
    lstm, key, D, (H, H), bidirectional=both, dtype=jnp.float64
  )
  weights = to_cudnn(normal_like(key, layers))

  def same(weights):
    return to_cudnn(from_cudnn(weights, D, H, 2, both))

  assert worst(jax.jit(same)(weights), weights) == 0
  gradient = jax.grad(weighed(same, key))
  found = jax.jit(gradient)(weights)
  assert found.any() and worst(found, gradient(weights)) == 0


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_the_length_is_that_of_jax_for_any_number_of_layers(num_layers, both):
  sizes = 3, 5, num_layers, both
  size = rnn.get_num_params_in_lstm(*sizes)
  assert len(from_cudnn(np.ones(size), *sizes)) == num_layers
  with pytest.raises(ValueError, match=rf"must be \[{size}\], got \(1,\)$"):
    from_cudnn(np.ones(1), *sizes)
  with pytest.raises(ValueError, match=r", got \(1,\)$"):  # at once
    from_cudnn(np.ones(1), 3, 5, num_layers * 10**9, both)


def test_weights_of_another_size_or_cell_are_refused(key):
  # One layer with D = 3 and H = 5 has 4·5·(3 + 5 + 2) = 200 weights.
  for shape, found in ((7, r"\(7,\)"), ((200, 1), r"\(200, 1\)")):
    message = rf"^weights must be \[200\], got {found}$"
    with pytest.raises(ValueError, match=message):
      from_cudnn(jnp.zeros(shape), 3, 5)
  with pytest.raises(ValueError, match=r"must be \[200\], got \(2,\)$"):
    from_cudnn([0.5, 0.5], 3, 5)
  with pytest.raises(ValueError, match=r"must hold floats, got int64$"):
    from_cudnn(np.zeros(200, np.int64), 3, 5)
  for cell in (gru, projected_lstm, peephole_lstm, layernorm_lstm):
    params = cell.init(key, D, H)
    kind = type(params).__name__
    message = f"^every layer must be the LSTMParams of lstm, got {kind}$"
    with pytest.raises(ValueError, match=message):
      to_cudnn((params,))
  layers = lstm.init(key, D, H), lstm.init(key, H, H + 1)
  with pytest.raises(
    ValueError, match="layer 1 must be like the first layer, "
  ):
    to_cudnn(layers)


@pytest.mark.parametrize("name", ["input_size", "hidden_size", "num_layers"])
@pytest.mark.parametrize("value", [0, -1, 1.0, "1"])
def test_sizes_must_be_positive_integers(name, value):
  sizes = {"input_size": 3, "hidden_size": 5} | {name: value}
  message = f"^{name} must be an integer ≥ 1, got {value!r}$"
  with pytest.raises(ValueError, match=message):
    from_cudnn(np.zeros(200), **sizes)
