"""The rules that decide whether `unroll` computes a call of Flax's RNN."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from lstm_jax import gru, lstm
from lstm_jax.interop.flax import (
  LinenRNN,
  equivalence,
  from_nnx,
  modules,
  to_nnx,
)
from tests.draws import B, D, H, T, normal_like, worst
from tests.interop.flax_pairs import NNX64, inputs, linen_cell, nnx_cell

pytestmark = pytest.mark.usefixtures("flax_promotion")

BATCH = 2, B  # the sizes of two batch axes


def call(cell=gru, dtype=jnp.float32, **changes):
  """Return a `Call` that `unroll` computes, with some of its fields changed."""
  h = np.zeros((*BATCH, H), dtype)
  shapes = jax.eval_shape(lambda: cell.init(jax.random.key(0), D, H, dtype))
  params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
  xs = np.zeros((T, *BATCH, D), dtype)
  carry = (h, h) if cell is lstm else h
  made = equivalence.Call(cell, params, carry, xs, lengths=None, dtype=None)
  return made._replace(**changes)


def test_a_call_fits_unroll_if_all_its_shapes_fit_the_inputs():
  h = np.zeros((*BATCH, H))
  for changes in (
    {},
    {"cell": lstm},
    {"lengths": np.ones(BATCH, int)},
    {"xs": np.zeros((1, *BATCH, D), int)},
  ):
    assert equivalence.fits(call(**changes))
  for changes in (
    {"carry": (h, h)},
    {"carry": [h]},
    {"cell": lstm, "carry": h},
    {"cell": lstm, "carry": (h, h[..., 1:])},
    {"carry": h[0]},
    {"carry": h[:1]},
    {"xs": np.zeros((T, *BATCH, D + 1))},
    {"xs": np.zeros((T, B, D))},
    {"lengths": np.ones(BATCH)},
    {"lengths": np.ones(B, int)},
    {"lengths": 1},
  ):
    assert not equivalence.fits(call(**changes))


def test_weights_and_carry_have_the_dtype_that_flax_computes_in():
  narrow, wide = (call(dtype=x) for x in (jnp.float32, jnp.float64))
  for same in (
    narrow,
    wide,
    narrow._replace(xs=narrow.xs.astype(int)),
    wide._replace(xs=narrow.xs),
    narrow._replace(dtype=jnp.float32, xs=wide.xs),
  ):
    assert equivalence.has_flax_dtype(same)
  for other in (
    call(dtype=jnp.bfloat16),
    narrow._replace(dtype=jnp.bfloat16),
    narrow._replace(dtype=jnp.float64),
    narrow._replace(xs=wide.xs),
    narrow._replace(carry=wide.carry),
    wide._replace(carry=narrow.carry),
    wide._replace(params=narrow.params),
  ):
    assert not equivalence.has_flax_dtype(other)


@pytest.mark.parametrize(
  ("name", "options"),
  [
    ("dense_i", {"use_bias": False}),
    ("dense_h", {"use_bias": True}),
    ("dense_h", {"use_bias": False, "dtype": jnp.bfloat16}),
  ],
)
def test_a_cell_with_another_bias_or_dtype_has_no_equivalent(name, options):
  cell = nnx_cell("GRUCell")
  assert equivalence.equivalent_cell(cell) is gru
  sizes = D if name == "dense_i" else H, 3 * H
  layer = nnx.Linear(*sizes, rngs=nnx.Rngs(0), **{**NNX64, **options})
  setattr(cell, name, layer)
  assert equivalence.equivalent_cell(cell) is None


def test_weights_of_nnx_are_read_and_written_in_its_dtype(key):
  cell = nnx.GRUCell(D, H, rngs=nnx.Rngs(0))  # in float32
  _, params = from_nnx(cell)
  assert {leaf.dtype for leaf in params} == {jnp.dtype(jnp.float32)}
  params = jax.tree.map(lambda x: x.astype(jnp.float64) + 1, params)
  params = params._replace(b_n=jnp.zeros(H))
  to_nnx(params, cell)
  assert cell.dense_i.bias[...].dtype == jnp.float32
  assert worst(from_nnx(cell)[1], params) < 1e-6


def test_an_option_of_a_call_takes_precedence_over_that_of_the_module():
  own = modules.Options(
    return_carry=True, time_major=True, reverse=False, keep_order=False
  )
  module = SimpleNamespace(**own._asdict())
  assert modules._options(module, None, None, None, None) == own
  found = modules._options(module, False, None, True, None)
  assert found == own._replace(return_carry=False, reverse=True)


def test_outputs_with_two_batch_axes_are_reversed_within_their_lengths(
  monkeypatch,
):
  # The outputs are the inputs, so that only their reversal is seen.
  def outputs_are_inputs(cell, params, state, xs, **options):
    return state, xs

  monkeypatch.setattr(modules, "unroll", outputs_are_inputs)
  xs = np.arange(T * 2 * B * D, dtype="f").reshape(T, *BATCH, D)
  lengths = np.array([[T, 2, 1], [3, 4, 0]])
  found = modules._run(
    SimpleNamespace(implementation=None),
    call(xs=xs, lengths=lengths),
    modules.Options(
      return_carry=False, time_major=True, reverse=True, keep_order=False
    ),
  )
  for index, n in np.ndenumerate(lengths):
    within = (slice(n), *index)
    np.testing.assert_array_equal(found[within], xs[within][::-1])


def test_without_a_key_a_carry_is_drawn_as_flax_does(key):
  cell = linen_cell("SimpleCell", carry_init=jax.nn.initializers.normal())
  xs = inputs(key)[:, :1]
  variables = jax.eval_shape(linen.RNN(cell).init, key, xs)
  variables = normal_like(key, variables)
  found, expected = (
    kind(cell).apply(variables, xs) for kind in (LinenRNN, linen.RNN)
  )
  assert worst(found, expected) < 1e-12
