"""Initial biases that fit a delay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.analysis.recall import GATE_BIASES, with_chrono_biases
from experiments.trainer.config import CELLS
from lstm_jax.language import ModelConfig, language_model


def initial_and_changed(cell, key, longest=50):
  """Return a language model's weights before and after `with_chrono_biases`.

  The model has one layer of 64 units. All weights but its biases are 0: to draw
  them would take the longest to compile.
  """
  config = ModelConfig(CELLS[cell], embedding_size=4, hidden_size=64)
  model = language_model(config, 5)

  @jax.jit
  def biases(key):
    params = model.init(key)
    changed = with_chrono_biases(params, cell, key, longest)
    return params.layers[0].b, changed.layers[0].b

  shapes = jax.eval_shape(model.init, key)
  zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
  (layer,) = zeros.layers
  return [zeros._replace(layers=(layer._replace(b=b),)) for b in biases(key)]


@pytest.mark.exhaustive
@pytest.mark.parametrize("cell", GATE_BIASES)
def test_a_unit_keeps_its_memory_for_about_its_own_time(cell, key):
  """A step without input keeps a share of u / (u + 1) of the memory.

  The times u are uniform between 1 and T − 1, with T = 50.
  """
  _, params = initial_and_changed(cell, key)
  (layer,) = params.layers
  zero = CELLS[cell].initial_state(layer, (1,))
  if cell == "slstm":  # the normaliser's fixed point, n = f n + i
    i, f = jnp.exp(layer.b[:64]), jax.nn.sigmoid(layer.b[64:128])
    zero = zero._replace(n=(i / (1 - f))[None])

  @jax.jit
  def memory(state):
    after = CELLS[cell].step(layer, state, jnp.zeros((1, 4), jnp.float32))
    if cell == "slstm":
      return after.c / after.n
    return getattr(after, "c", after.h)

  name = "c" if hasattr(zero, "c") else "h"
  whole = getattr(zero, "n", jnp.ones_like(getattr(zero, name)))
  kept = memory(zero._replace(**{name: whole})) - memory(zero)
  times = np.asarray(kept / (1 - kept))
  assert 0.99 < times.min() < 4 and 45 < times.max() < 49.01
  assert abs(times.mean() - 25) < 6


@pytest.mark.exhaustive
def test_the_input_gate_of_an_lstm_gets_the_opposite_bias(key):
  params, _ = initial_and_changed("lstm", key)
  (layer,) = params.layers
  given = params._replace(layers=(layer._replace(b=layer.b + 0.5),))  # not 0
  before, after = (
    params.layers[0].b.reshape(4, -1)
    for params in (given, with_chrono_biases(given, "lstm", key, 50))
  )
  np.testing.assert_array_equal(after[0], -after[1])
  np.testing.assert_array_equal(after[2:], before[2:])
  assert (after[1] != before[1]).all()


def test_each_layer_draws_its_own_times(key):
  params, _ = initial_and_changed("lstm", key)
  two = params._replace(layers=params.layers * 2)
  first, second = with_chrono_biases(two, "lstm", key, 50).layers
  # The biases of i and f; each gate has 64 units.
  assert (first.b[:128] != second.b[:128]).all()


def test_a_cell_without_a_gate_that_keeps_its_memory_is_refused(key):
  message = r"a gate that keeps its memory \(lstm, .*, gru, .*\), got rnn$"
  params, _ = initial_and_changed("lstm", key)
  with pytest.raises(ValueError, match=message):
    with_chrono_biases(params, "rnn", key, 50)
  with pytest.raises(ValueError, match="longest must be at least 2, got 1"):
    with_chrono_biases(params, "lstm", key, 1)
