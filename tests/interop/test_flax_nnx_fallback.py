"""nnx cells and options that `unroll` does not have run in Flax's own RNN."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from tests.draws import D, H
from tests.interop.flax_pairs import (
  NNX64,
  count_unrolls,
  inputs,
  nnx_cell,
  nnx_difference,
)

pytestmark = pytest.mark.usefixtures("flax_promotion")

clipped = partial(jnp.clip, min=-1, max=1)


class DropoutLSTM(nnx.OptimizedLSTMCell):
  """An LSTM whose h is dropped out between time steps."""

  def __init__(self, *args, rngs, **kwargs):
    super().__init__(*args, rngs=rngs, **kwargs)
    self.recurrent_dropout = nnx.Dropout(0.5, rngs=rngs)

  def __call__(self, carry, x):
    (c, h), y = super().__call__(carry, x)
    return (c, self.recurrent_dropout(h)), y


class HalvedLinear(nnx.Linear):
  def __call__(self, x):
    return 0.5 * super().__call__(x)


def halved(args, *, dtype):
  """Promote dtypes, and halve what a layer gets."""
  return tuple(None if a is None else 0.5 * a.astype(dtype) for a in args)


def replace_layer(cell, name):
  layer = getattr(cell, name)
  other = HalvedLinear(
    layer.in_features,
    layer.out_features,
    use_bias=layer.use_bias,
    rngs=nnx.Rngs(0),
    **NNX64,
  )
  setattr(cell, name, other)
  return cell


def change_product(cell, name):
  layer = getattr(cell, name)
  layer.dot_general = lambda *args, **kwargs: (
    2 * jax.lax.dot_general(*args, **kwargs)
  )
  return cell


OTHER_NNX_CELLS = {
  "recurrent dropout": lambda: DropoutLSTM(D, H, rngs=nnx.Rngs(0), **NNX64),
  "exchanged activations": lambda: nnx_cell(
    "LSTMCell", gate_fn=nnx.tanh, activation_fn=nnx.sigmoid
  ),
  "a partial as gates": lambda: nnx_cell("GRUCell", gate_fn=clipped),
  "sigmoid for tanh": lambda: nnx_cell("SimpleCell", activation_fn=nnx.sigmoid),
  "residual": lambda: nnx_cell("SimpleCell", residual=True),
  "promotion": lambda: nnx_cell("OptimizedLSTMCell", promote_dtype=halved),
  "another layer": lambda: replace_layer(nnx_cell("LSTMCell"), "if_"),
  "another product": lambda: change_product(nnx_cell("GRUCell"), "dense_h"),
}


@pytest.mark.everyday(2)
@pytest.mark.parametrize("name", OTHER_NNX_CELLS)
def test_another_nnx_cell_runs_in_flax(name, key, monkeypatch):
  calls = count_unrolls(monkeypatch)
  cell = OTHER_NNX_CELLS[name]()
  assert nnx_difference(cell, inputs(key), key) < 1e-12
  assert not calls


@pytest.mark.everyday(1)
@pytest.mark.parametrize(
  "options",
  [
    {"unroll": 2},
    {"state_axes": {...: None}},
    {"broadcast_rngs": "carry"},
  ],
  ids=lambda options: next(iter(options)),
)
def test_options_of_the_nnx_scan_run_in_flax(options, key, monkeypatch):
  calls = count_unrolls(monkeypatch)
  cell = nnx_cell("GRUCell")
  assert nnx_difference(cell, inputs(key), key, **options) < 1e-12
  assert not calls
