"""`LinenRNN` runs cells and options that `unroll` lacks in Flax's own RNN."""

from functools import partial

import jax.numpy as jnp
import pytest
from flax import linen

from lstm_jax.interop.flax import LinenRNN
from tests.draws import H, worst
from tests.interop.flax_pairs import (
  LINEN64,
  count_unrolls,
  inputs,
  linen_cell,
  linen_difference,
)

pytestmark = pytest.mark.usefixtures("flax_promotion")


class HalvedLSTM(linen.LSTMCell):
  """A subclass with the weights of its parent, and other outputs."""

  @linen.compact
  def __call__(self, carry, x):
    carry, h = super().__call__(carry, x)
    return carry, 0.5 * h


class OwnCell(linen.RNNCellBase):
  """A cell whose layers have the names of a SimpleCell's."""

  @linen.compact
  def __call__(self, h, x):
    i = linen.Dense(H, name="i", param_dtype=jnp.float64)(x)
    u = linen.Dense(H, name="h", use_bias=False, param_dtype=jnp.float64)(h)
    h = jnp.sin(i) * jnp.cos(u)
    return h, h

  def initialize_carry(self, rng, input_shape):
    return jnp.ones((*input_shape[:-1], H), jnp.float64)

  @property
  def num_feature_axes(self):
    return 1


def sigmoid(x):
  """A sine: the name of a function must not count."""
  return jnp.sin(x)


clipped = partial(jnp.clip, min=-1, max=1)
OTHER_LINEN_CELLS = {
  "a subclass": HalvedLSTM(H, **LINEN64),
  "an own cell": OwnCell(),
  "exchanged activations": linen_cell(
    "LSTMCell", gate_fn=linen.tanh, activation_fn=linen.sigmoid
  ),
  "a partial as gates": linen_cell("OptimizedLSTMCell", gate_fn=clipped),
  "a partial as activation": linen_cell("GRUCell", activation_fn=clipped),
  "hard sigmoids": linen_cell("GRUCell", gate_fn=linen.hard_sigmoid),
  "another sigmoid": linen_cell("GRUCell", gate_fn=sigmoid),
  "sigmoid for tanh": linen_cell("SimpleCell", activation_fn=linen.sigmoid),
  "residual": linen_cell("SimpleCell", residual=True),
  "another type": linen_cell("MGUCell"),
  "checkpointed": linen.remat(linen.GRUCell)(H, **LINEN64),
}


@pytest.mark.everyday(1)
@pytest.mark.parametrize("name", OTHER_LINEN_CELLS)
def test_another_linen_cell_runs_in_flax(name, key, monkeypatch):
  calls = count_unrolls(monkeypatch)
  cell = OTHER_LINEN_CELLS[name]
  assert linen_difference(cell, inputs(key), key) < 1e-12
  assert not calls


def test_complex_weights_run_in_flax(key):
  cell, xs = linen.SimpleCell(H, param_dtype=jnp.complex128), inputs(key)
  theirs, ours = (kind(cell) for kind in (linen.RNN, LinenRNN))
  variables = theirs.init(key, xs)
  found = ours.apply(variables, xs)
  assert found.dtype == theirs.apply(variables, xs).dtype
  assert jnp.iscomplexobj(found)
  assert jnp.array_equal(found, theirs.apply(variables, xs))


@pytest.mark.everyday(1)
@pytest.mark.parametrize(
  "fields",
  [
    {"unroll": 2},
    {"variable_broadcast": ["params", "other"]},
    {"variable_carry": "other"},
    {"variable_axes": {"other": 0}},
    {
      "variable_axes": {"params": 0},
      "variable_broadcast": False,
      "split_rngs": {"params": True},
    },
  ],
  ids=lambda fields: next(iter(fields)),
)
def test_options_of_the_linen_scan_run_in_flax(fields, key, monkeypatch):
  calls = count_unrolls(monkeypatch)
  cell = linen_cell("GRUCell")
  assert linen_difference(cell, inputs(key), key, **fields) < 1e-12
  assert not calls


def test_with_an_interceptor_of_methods_the_module_runs_in_flax(key):
  cell, xs = linen_cell("GRUCell"), inputs(key)
  theirs, ours = (kind(cell) for kind in (linen.RNN, LinenRNN))
  variables = theirs.init(key, xs)

  def doubled(call, args, kwargs, context):
    result = call(*args, **kwargs)
    return 2 * result if isinstance(context.module, linen.Dense) else result

  plain = theirs.apply(variables, xs)
  with linen.intercept_methods(doubled):
    expected = theirs.apply(variables, xs)
    found = ours.apply(variables, xs)
  assert worst(found, expected) < 1e-12
  assert worst(plain, expected) > 1e-2


@pytest.mark.parametrize("cell", [OwnCell(), linen_cell("GRUCell")])
def test_the_output_of_a_module_is_captured_once(cell, key):
  xs = inputs(key)
  module = LinenRNN(cell)
  outputs, captured = module.apply(
    module.init(key, xs), xs, capture_intermediates=True, mutable=True
  )
  (found,) = captured["intermediates"]["__call__"]
  assert worst(found, outputs) == 0
