"""`LinenRNN`, `NNXRNN` and converted weights, with Flax as the oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from lstm_jax import gru, lstm, rnn, unroll
from lstm_jax.interop.flax import (
  NNXRNN,
  LinenRNN,
  from_linen,
  from_nnx,
  to_linen,
  to_nnx,
)
from tests.draws import B, D, H, T, arguments, normal_like, weighed, worst
from tests.interop.flax_pairs import (
  EACH_CELL,
  count_unrolls,
  linen_cell,
  nnx_cell,
)

pytestmark = pytest.mark.usefixtures("flax_promotion")
LENGTHS = np.array([T, 2, 4])
OPTIONS = {
  "plain": {},
  "reverse": {"reverse": True, "seq_lengths": LENGTHS},
  "all": {
    "reverse": True,
    "keep_order": True,
    "seq_lengths": LENGTHS,
    "time_major": True,
  },
}
EACH_OPTIONS = pytest.mark.parametrize(
  "options",
  [
    pytest.param("plain", marks=pytest.mark.exhaustive),
    pytest.param("reverse", marks=pytest.mark.exhaustive),
    "all",
  ],
)


def inputs(key, options):
  shape = (T, B, D) if options.get("time_major") else (B, T, D)
  return normal_like(key, np.zeros(shape))


def valid(outputs, options):
  """Return the outputs with 0 in the padding, where Flax has other values.

  With lengths, they are returned time-major.
  """
  if "seq_lengths" not in options:
    return outputs
  outputs = outputs if options.get("time_major") else outputs.swapaxes(0, 1)
  mask = np.arange(T)[:, None] < LENGTHS
  return jnp.where(mask[..., None], outputs, 0)


@pytest.mark.everyday(1)
@EACH_CELL
@EACH_OPTIONS
def test_linen_rnn_has_the_values_and_gradients_of_flax(
  name, options, key, monkeypatch
):
  calls = count_unrolls(monkeypatch)
  options = OPTIONS[options]
  xs = inputs(key, options)
  cell = linen_cell(name)
  theirs, ours = (
    kind(cell, return_carry=True) for kind in (linen.RNN, LinenRNN)
  )
  variables = theirs.init(key, xs, **options)
  initial = ours.init(key, xs, **options)
  assert jax.tree.map(jnp.shape, initial) == jax.tree.map(jnp.shape, variables)
  variables = normal_like(key, variables)

  def run(module):
    def f(variables, xs):
      carry, outputs = module.apply(variables, xs, **options)
      return carry, valid(outputs, options)

    return jax.jit(jax.value_and_grad(weighed(f, key), (0, 1)))(variables, xs)

  assert worst(run(ours), run(theirs)) < 1e-12
  assert len(calls) == 2  # of `init` and of `apply`


@pytest.mark.everyday(2)
@EACH_CELL
def test_linen_rnn_has_the_initial_weights_of_flax(name, key):
  xs = inputs(key, {}).astype(jnp.float32)
  cell = getattr(linen, name)(H)
  theirs, ours = (kind(cell).init(key, xs) for kind in (linen.RNN, LinenRNN))
  assert worst(ours, theirs) == 0


@pytest.mark.everyday(1)
@EACH_CELL
@EACH_OPTIONS
def test_nnx_rnn_has_the_values_and_gradients_of_flax(
  name, options, key, monkeypatch
):
  calls = count_unrolls(monkeypatch)
  options = OPTIONS[options]
  xs = inputs(key, options)
  cell = nnx_cell(name)
  zeros = jnp.zeros((B, H))
  start = normal_like(key, (zeros, zeros) if "LSTM" in name else zeros)

  def run(kind):
    module = kind(cell, return_carry=True)
    graph, params, other = nnx.split(module, nnx.Param, ...)

    def f(params, xs):
      merged = nnx.merge(graph, params, other)
      carry, outputs = merged(xs, initial_carry=start, **options)
      return carry, valid(outputs, options)

    f = weighed(f, key)
    value, gradient = jax.jit(jax.value_and_grad(f, (0, 1)))(params, xs)
    return value, jax.tree.leaves(gradient)

  assert worst(run(NNXRNN), run(nnx.RNN)) < 1e-12
  assert len(calls) == 1


@EACH_CELL
def test_nnx_rnn_has_the_initial_carry_of_flax(name, key):
  xs = inputs(key, {}).astype(jnp.float32)
  cell = getattr(nnx, name)(D, H, rngs=nnx.Rngs(0))
  a, b = (kind(cell, rngs=nnx.Rngs(0))(xs) for kind in (NNXRNN, nnx.RNN))
  assert worst(a, b) < 1e-6


def test_initial_carries_are_used(key):
  xs = inputs(key, {})
  cell = linen_cell("OptimizedLSTMCell")
  variables = linen.RNN(cell).init(key, xs)
  carry = normal_like(key, (np.zeros((B, H)), np.zeros((B, H))))
  a, b = (
    kind(cell).apply(variables, xs, initial_carry=carry, return_carry=True)
    for kind in (LinenRNN, linen.RNN)
  )
  assert worst(a, b) < 1e-12


def test_padding_is_zero_and_an_empty_sequence_keeps_its_carry(key):
  xs = inputs(key, {})
  cell = linen_cell("GRUCell")
  variables = normal_like(key, LinenRNN(cell).init(key, xs))
  start = normal_like(key, np.zeros((B, H)))
  carry, outputs = LinenRNN(cell, return_carry=True).apply(
    variables,
    xs.at[1].set(jnp.nan),
    initial_carry=start,
    seq_lengths=np.array([T, 0, 2]),
  )
  assert worst(carry[1], start[1]) == 0
  assert not outputs[1].any() and not outputs[2, 2:].any()
  assert jnp.isfinite(outputs).all()


@pytest.mark.parametrize("cell", [lstm, gru, rnn])
def test_a_round_trip_keeps_the_weights_of_flax(cell, key):
  params, _, _ = arguments(cell, key)
  found_cell, found = from_linen(to_linen(params))
  assert found_cell is cell
  assert worst(found, params) == 0


@EACH_CELL
def test_weights_written_into_an_nnx_cell_are_its_weights(name, key):
  cell = nnx_cell(name)
  our_cell, params = from_nnx(cell)
  params = normal_like(key, params)
  if hasattr(params, "b_n"):
    with pytest.raises(ValueError, match=r"params.b_n must be 0: nnx.GRUCell"):
      to_nnx(params, cell)
    params = params._replace(b_n=jnp.zeros_like(params.b_n))
  to_nnx(params, cell)
  assert worst(from_nnx(cell)[1], params) == 0
  xs = inputs(key, {})
  state = our_cell.initial_state(params, (B,))
  _, hs = unroll(our_cell, params, state, xs[:, 0][None])
  carry = cell.initialize_carry((B, D), nnx.Rngs(0))
  found, _ = cell(jax.tree.map(jnp.zeros_like, carry), xs[:, 0])
  h = found[1] if our_cell is lstm else found
  assert worst(h, hs[0]) < 1e-12


def test_weights_that_do_not_fit_an_nnx_cell_are_named(key):
  # In tests.draws, D is 4 and H 6: so 4H is 24.
  cell = nnx.LSTMCell(D, H, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match="LSTMCell cannot hold GRUParams"):
    to_nnx(gru.init(key, D, H), cell)
  with pytest.raises(
    ValueError, match=r"w_x .*LSTMCell must be \(4, 24\), got"
  ):
    to_nnx(lstm.init(key, D + 1, H), cell)
  with pytest.raises(ValueError, match="expected the params of lstm, gru or r"):
    to_nnx((1,), cell)
  params = gru.init(key, D, H)._replace(b_n=jnp.zeros(H + 1))
  with pytest.raises(ValueError, match=r"^params.b_n must be \[6\], got \(7"):
    to_nnx(params, nnx.GRUCell(D, H, rngs=nnx.Rngs(0)))


@EACH_CELL
def test_weights_that_do_not_fit_leave_an_nnx_cell_unchanged(name, key):
  cell = getattr(nnx, name)(D, H, rngs=nnx.Rngs(0))
  _, before = from_nnx(cell)
  wrong = jax.tree.map(jnp.ones_like, before)._replace(b=jnp.ones(1))
  if hasattr(wrong, "b_n"):
    wrong = wrong._replace(b_n=jnp.zeros(H))
  with pytest.raises(ValueError, match=rf"b of this {name} must be .*got \(1,"):
    to_nnx(wrong, cell)
  assert worst(from_nnx(cell)[1], before) == 0
