from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from lstm_jax import gru, lstm, rnn, unroll
from lstm_jax.interop.cudnn import to_cudnn
from lstm_jax.interop.flax import (
  NNXRNN,
  LinenRNN,
  from_linen,
  from_nnx,
  to_linen,
  to_nnx,
)
from lstm_jax.interop.haiku import to_haiku
from lstm_jax.interop.keras import to_keras
from lstm_jax.interop.torch import to_torch
from tests.draws import B, D, H, T, arguments, normal_like, weighed, worst

pytestmark = pytest.mark.usefixtures("flax_promotion")
NAMES = "LSTMCell", "OptimizedLSTMCell", "GRUCell", "SimpleCell"
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
EACH_CELL = pytest.mark.parametrize("name", NAMES)
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
  """Return the outputs with 0 in the padding, where Flax has other values."""
  if "seq_lengths" not in options:
    return outputs
  outputs = outputs if options.get("time_major") else outputs.swapaxes(0, 1)
  mask = np.arange(T)[:, None] < LENGTHS
  return jnp.where(mask[..., None], outputs, 0)


@pytest.mark.everyday(2)
@EACH_CELL
@EACH_OPTIONS
def test_linen_rnn_has_the_values_and_gradients_of_flax(name, options, key):
  options = OPTIONS[options]
  xs = inputs(key, options)
  cell = getattr(linen, name)(H, param_dtype=jnp.float64)
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

  assert worst(run(ours), run(theirs)) < 1e-11


@EACH_CELL
def test_linen_rnn_has_the_initial_weights_of_flax(name, key):
  xs = inputs(key, {}).astype(jnp.float32)
  cell = getattr(linen, name)(H)
  theirs, ours = (kind(cell).init(key, xs) for kind in (linen.RNN, LinenRNN))
  assert worst(ours, theirs) == 0


@pytest.mark.everyday(1)
@EACH_CELL
@EACH_OPTIONS
def test_nnx_rnn_has_the_values_and_gradients_of_flax(name, options, key):
  options = OPTIONS[options]
  xs = inputs(key, options)
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
      carry, outputs = merged(xs, initial_carry=start, **options)
      return carry, valid(outputs, options)

    f = weighed(f, key)
    value, gradient = jax.jit(jax.value_and_grad(f, (0, 1)))(params, xs)
    return value, jax.tree.leaves(gradient)

  assert worst(run(NNXRNN), run(nnx.RNN)) < 1e-11


@EACH_CELL
def test_nnx_rnn_has_the_initial_carry_of_flax(name, key):
  xs = inputs(key, {}).astype(jnp.float32)
  cell = getattr(nnx, name)(D, H, rngs=nnx.Rngs(0))
  a, b = (kind(cell, rngs=nnx.Rngs(0))(xs) for kind in (NNXRNN, nnx.RNN))
  assert worst(a, b) < 1e-6


def test_initial_carries_are_used(key):
  xs = inputs(key, {})
  cell = linen.OptimizedLSTMCell(H, param_dtype=jnp.float64)
  variables = linen.RNN(cell).init(key, xs)
  carry = normal_like(key, (np.zeros((B, H)), np.zeros((B, H))))
  a, b = (
    kind(cell).apply(variables, xs, initial_carry=carry, return_carry=True)
    for kind in (LinenRNN, linen.RNN)
  )
  assert worst(a, b) < 1e-12


def test_padding_is_zero_and_an_empty_sequence_keeps_its_carry(key):
  xs = inputs(key, {})
  cell = linen.GRUCell(H, param_dtype=jnp.float64)
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
  rngs = nnx.Rngs(0)
  cell = getattr(nnx, name)(
    D, H, dtype=jnp.float64, param_dtype=jnp.float64, rngs=rngs
  )
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
  cell = nnx.LSTMCell(D, H, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match="LSTMCell cannot hold GRUParams"):
    to_nnx(gru.init(key, D, H), cell)
  with pytest.raises(
    ValueError, match=r"w_x .*LSTMCell must be \(4, 24\), got"
  ):
    to_nnx(lstm.init(key, D + 1, H), cell)
  with pytest.raises(ValueError, match="expected the params of lstm, gru or r"):
    to_nnx((1,), cell)


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


def test_weights_of_other_modules_are_refused(key):
  xs = inputs(key, {})
  with pytest.raises(ValueError, match=r"weights of an LSTMCell.*got kernel"):
    from_linen({"kernel": xs})
  weights = to_linen(gru.init(key, D, H))
  weights["hn"] = {"kernel": weights["hn"]["kernel"]}
  with pytest.raises(ValueError, match="hn must have a bias, got kernel"):
    from_linen(weights)
  weights = to_linen(lstm.init(key, D, H))
  weights["if"]["kernel"] = jnp.zeros((D, H + 1))
  expected = rf"if.kernel must be \[{D}, {H}\], as hi.kernel has {H} rows, got"
  with pytest.raises(ValueError, match=expected):
    from_linen(weights)
  for part, axes in (("i", "D, H"), ("h", "H, H")):
    weights = to_linen(lstm.init(key, D, H))
    weights[f"{part}i"]["kernel"] = jnp.zeros(H)
    expected = rf"^{part}i.kernel must be \[..., {axes}\], got \(6,\)$"
    with pytest.raises(ValueError, match=expected):
      from_linen(weights)
  with pytest.raises(ValueError, match="expected the params of lstm, gru or r"):
    to_linen((xs,))
  with pytest.raises(ValueError, match=r"an nnx LSTMCell.*, got flax.*Linear$"):
    from_nnx(nnx.Linear(D, H, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize(
  "make",
  [
    partial(nnx.SimpleCell, activation_fn=nnx.relu),
    partial(nnx.SimpleCell, residual=True),
    partial(nnx.GRUCell, gate_fn=nnx.relu),
    partial(nnx.LSTMCell, activation_fn=nnx.relu),
    partial(nnx.OptimizedLSTMCell, gate_fn=nnx.relu),
    type("Own", (nnx.LSTMCell,), {}),
  ],
)
def test_an_nnx_cell_with_other_equations_is_refused(make):
  module = make(D, H, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match="computes something else than our cell"):
    from_nnx(module)


def test_linen_weights_that_do_not_fit_are_named(key):
  weights = to_linen(lstm.init(key, D, H))
  for name, layer, text in (
    ("ii", {"bias": jnp.ones(H)}, "^ii must have no bias"),
    ("hi", {"bias": jnp.ones((1, H))}, r"^hi.bias must be .*got \(1, 6\)"),
    ("hf", {"kernel": jnp.ones((H + 1, H))}, r"^hf.kernel must be \[6, 6\]"),
    ("if", {"kernel": jnp.ones((D + 1, H))}, r"^if.kernel must be \[4, 6\]"),
    ("ho", {"kernel": jnp.ones((H, H), int)}, "^ho.kernel must hold floats"),
  ):
    changed = weights | {name: weights[name] | layer}
    with pytest.raises(ValueError, match=text):
      from_linen(changed)
  with pytest.raises(ValueError, match=r'^expected the collection "params"'):
    from_linen(lstm.init(key, D, H))


def test_the_weights_of_an_ensemble_are_those_of_a_vmapped_module(key):
  members = jax.vmap(lambda key: lstm.init(key, D, H))(jax.random.split(key, 4))
  weights = to_linen(members)
  assert weights["hf"]["bias"].shape == (4, H)
  found = from_linen(weights)[1]
  assert jax.tree.all(jax.tree.map(jnp.array_equal, found, members))


def test_params_that_do_not_fit_are_written_nowhere(key):
  params = lstm.init(key, D, H)
  params = params._replace(b=params.b[:-H])
  for write in (
    to_linen,
    to_haiku,
    to_keras,
    lambda p: to_torch((p,)),
    lambda p: to_cudnn((p,)),
  ):
    with pytest.raises(ValueError, match=r"^weights do not fit each other"):
      write(params)
