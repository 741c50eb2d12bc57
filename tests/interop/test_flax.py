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

NAMES = "LSTMCell", "OptimizedLSTMCell", "GRUCell", "SimpleCell"
LENGTHS = np.array([T, 2, 4])
WAYS = {
  "plain": {},
  "reverse": {"reverse": True, "seq_lengths": LENGTHS},
  "all": {
    "reverse": True,
    "keep_order": True,
    "seq_lengths": LENGTHS,
    "time_major": True,
  },
}
EACH = pytest.mark.parametrize("name", NAMES)
WAY = pytest.mark.parametrize(
  "way",
  [pytest.param("plain", marks=pytest.mark.exhaustive), "reverse", "all"],
)


@pytest.fixture(autouse=True)
def standard_ranks():
  """Flax adds a bias [K] to an array [..., K]."""
  with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
    yield


def inputs(key, way):
  shape = (T, B, D) if way.get("time_major") else (B, T, D)
  return normal_like(key, jnp.zeros(shape))


def valid(outputs, way):
  """Return the outputs without padding, on which the two differ."""
  if "seq_lengths" not in way:
    return outputs
  outputs = outputs if way.get("time_major") else outputs.swapaxes(0, 1)
  mask = np.arange(T)[:, None] < LENGTHS
  return jnp.where(mask[..., None], outputs, 0)


@EACH
@WAY
def test_the_linen_module_is_that_of_flax(name, way, key):
  way = WAYS[way]
  xs = inputs(key, way)
  cell = getattr(linen, name)(H, param_dtype=jnp.float64)
  theirs, ours = (
    kind(cell, return_carry=True) for kind in (linen.RNN, LinenRNN)
  )
  variables = theirs.init(key, xs, **way)
  initial = ours.init(key, xs, **way)
  assert jax.tree.map(jnp.shape, initial) == jax.tree.map(jnp.shape, variables)
  variables = normal_like(key, variables)

  def run(module):
    def f(variables, xs):
      carry, outputs = module.apply(variables, xs, **way)
      return carry, valid(outputs, way)

    return jax.jit(jax.value_and_grad(weighed(f, key), (0, 1)))(variables, xs)

  assert worst(run(ours), run(theirs)) < 1e-11


@EACH
def test_both_linen_modules_begin_with_the_same_weights(name, key):
  xs = inputs(key, {}).astype(jnp.float32)
  cell = getattr(linen, name)(H)
  theirs, ours = (kind(cell).init(key, xs) for kind in (linen.RNN, LinenRNN))
  assert worst(ours, theirs) == 0


@EACH
@WAY
def test_the_nnx_module_is_that_of_flax(name, way, key):
  way = WAYS[way]
  xs = inputs(key, way)
  cell = getattr(nnx, name)(
    D, H, dtype=jnp.float64, param_dtype=jnp.float64, rngs=nnx.Rngs(0)
  )

  zeros = jnp.zeros((B, H))
  start = normal_like(key, (zeros, zeros) if "LSTM" in name else zeros)

  def run(kind):
    module = kind(cell, return_carry=True)
    graph, params, other = nnx.split(module, nnx.Param, ...)

    def f(params, xs):
      merged = nnx.merge(graph, params, other)
      carry, outputs = merged(xs, initial_carry=start, **way)
      return carry, valid(outputs, way)

    f = weighed(f, key)
    value, gradient = jax.jit(jax.value_and_grad(f, (0, 1)))(params, xs)
    return value, jax.tree.leaves(gradient)

  assert worst(run(NNXRNN), run(nnx.RNN)) < 1e-11


@EACH
def test_an_nnx_module_begins_with_a_zero_carry(name, key):
  xs = inputs(key, {}).astype(jnp.float32)
  cell = getattr(nnx, name)(D, H, rngs=nnx.Rngs(0))
  a, b = (kind(cell, rngs=nnx.Rngs(0))(xs) for kind in (NNXRNN, nnx.RNN))
  assert worst(a, b) < 1e-6


def test_initial_carries_are_used(key):
  xs = inputs(key, {})
  cell = linen.OptimizedLSTMCell(H, param_dtype=jnp.float64)
  variables = linen.RNN(cell).init(key, xs)
  carry = normal_like(key, (jnp.zeros((B, H)), jnp.zeros((B, H))))
  a, b = (
    kind(cell).apply(variables, xs, initial_carry=carry, return_carry=True)
    for kind in (LinenRNN, linen.RNN)
  )
  assert worst(a, b) < 1e-12


def test_padding_is_zero_and_a_row_of_no_steps_keeps_its_carry(key):
  xs = inputs(key, {})
  cell = linen.GRUCell(H, param_dtype=jnp.float64)
  variables = normal_like(key, LinenRNN(cell).init(key, xs))
  start = normal_like(key, jnp.zeros((B, H)))
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
def test_weights_there_and_back_again_are_the_same(cell, key):
  params, _, _ = arguments(cell, key)
  found_cell, found = from_linen(to_linen(params))
  assert found_cell is cell
  assert worst(found, params) == 0


@EACH
def test_weights_written_into_an_nnx_cell_are_its_weights(name, key):
  rngs = nnx.Rngs(0)
  cell = getattr(nnx, name)(
    D, H, dtype=jnp.float64, param_dtype=jnp.float64, rngs=rngs
  )
  kind, params = from_nnx(cell)
  params = normal_like(key, params)
  if hasattr(params, "b_n"):
    with pytest.raises(ValueError, match="no bias b_n, which must be 0"):
      to_nnx(params, cell)
    params = params._replace(b_n=jnp.zeros_like(params.b_n))
  to_nnx(params, cell)
  assert worst(from_nnx(cell)[1], params) == 0
  xs = inputs(key, {})
  _, hs = unroll(kind, params, kind.initial_state(params, (B,)), xs[:, 0][None])
  carry = cell.initialize_carry((B, D), nnx.Rngs(0))
  found, _ = cell(jax.tree.map(jnp.zeros_like, carry), xs[:, 0])
  h = found[1] if kind is lstm else found
  assert worst(h, hs[0]) < 1e-12


def test_weights_that_do_not_fit_an_nnx_cell_are_named(key):
  cell = nnx.LSTMCell(D, H, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match="LSTMCell cannot hold GRUParams"):
    to_nnx(gru.init(key, D, H), cell)
  with pytest.raises(ValueError, match=r"w_x of this LSTMCell must be \(4, 6"):
    to_nnx(lstm.init(key, D + 1, H), cell)
  with pytest.raises(ValueError, match="expected the params of lstm, gru or r"):
    to_nnx((1,), cell)


def test_what_has_other_equations_is_refused(key):
  xs = inputs(key, {})
  for cell in (
    linen.GRUCell(H, gate_fn=linen.hard_sigmoid),
    linen.SimpleCell(H, activation_fn=linen.relu),
    linen.SimpleCell(H, residual=True),
  ):
    with pytest.raises(ValueError, match="sigmoid gates, tanh and no residual"):
      LinenRNN(cell).init(key, xs)
  with pytest.raises(ValueError, match=r"weights of an LSTMCell.*got kernel"):
    from_linen({"kernel": xs})
  with pytest.raises(ValueError, match="expected the params of lstm, gru or r"):
    to_linen((xs,))
  with pytest.raises(ValueError, match=r"expected an LSTMCell.*, got Linear"):
    from_nnx(nnx.Linear(D, H, rngs=nnx.Rngs(0)))
