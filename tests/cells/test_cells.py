"""Cells compared with autodiff, NumPy, Flax and PyTorch; special cases."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import (
  coupled_lstm,
  layernorm_lstm,
  lru,
  lstm,
  min_lstm,
  mogrifier_lstm,
  peephole_lstm,
  projected_lstm,
  unroll,
)
from tests.contract import ROWS, TABLE, TOKEN_ROWS, each_cell
from tests.draws import B, D, H, T, arguments, normal_like, weighed, worst

EVERY_ROW = pytest.mark.parametrize("row", TABLE.values(), ids=TABLE.keys())
IN_FLAX = {name: row for name, row in TABLE.items() if row.flax}
IN_TORCH = {name: row for name, row in TABLE.items() if row.torch}


def one_step_arguments(cell, key, **sizes):
  params, state, xs = arguments(cell, key, **sizes)
  return params, state, xs[0]


SIZES = [
  *({"batch": batch} for batch in [(), (B,), (2, B), (1,)]),
  {"batch": (1,), "size": 1, "hidden": 1},
]


@pytest.mark.everyday(4)
@each_cell("sizes", SIZES, others=SIZES[::2])  # each rank, and sizes of one
def test_backward_is_the_gradient_of_forward(cell, sizes, key):
  args = one_step_arguments(cell, key, **sizes)
  explicit = weighed(cell.step, key)
  twin = weighed(lambda *args: cell.forward(*args)[0], key)
  gradient = jax.jit(jax.grad(explicit, (0, 1, 2)))(*args)
  assert worst(gradient, jax.jit(jax.grad(twin, (0, 1, 2)))(*args)) < 1e-12


@TOKEN_ROWS
def test_a_token_equals_its_one_hot_row(row, key):
  cell = row.cell
  params, state, _ = one_step_arguments(cell, key)
  tokens = jnp.array([D - 1, 0, 2])
  rows = jax.nn.one_hot(tokens, D, dtype=jnp.float64)
  of_tokens = weighed(lambda p, s: cell.step(p, s, tokens), key)
  of_rows = weighed(lambda p, s: cell.step(p, s, rows), key)
  a = jax.jit(jax.value_and_grad(of_tokens, (0, 1)))(params, state)
  b = jax.jit(jax.value_and_grad(of_rows, (0, 1)))(params, state)
  assert worst(a, b) < 1e-12


@EVERY_ROW
def test_equals_the_numpy_oracle(row, key):
  params, state, xs = arguments(row.cell, key, batch=())
  expected = row.oracle(params, state, xs)
  found_state, found = unroll(row.cell, params, state, xs)
  assert worst((tuple(found_state), found), expected) < 1e-12


@pytest.mark.parametrize("row", IN_FLAX.values(), ids=IN_FLAX.keys())
def test_equals_flax_in_value_and_gradient(row, key):
  cell, (params, state, x) = row.cell, one_step_arguments(row.cell, key)

  def ours(params, state, x):
    return tuple(cell.step(params, state, x))

  def flax(params, state, x):
    module = row.flax(H, param_dtype=jnp.float64)
    # Flax's carry is (c, h), or h alone.
    carry = state[::-1] if len(state) == 2 else state[0]
    variables = row.to_flax(params)
    carry, _ = module.apply(variables, carry, x)
    return carry[::-1] if len(state) == 2 else (carry,)

  a, b = (
    jax.jit(jax.value_and_grad(weighed(f, key), (0, 1, 2)))(params, state, x)
    for f in (ours, flax)
  )
  assert worst(a, b) < 1e-12


@pytest.mark.parametrize("row", IN_TORCH.values(), ids=IN_TORCH.keys())
def test_equals_torch_in_value_and_gradient(row, key):
  torch = pytest.importorskip("torch", reason="PyTorch is not installed")
  params, state, xs = arguments(row.cell, key)
  module = getattr(torch.nn, row.torch)(D, H, dtype=torch.float64)
  weights = row.to_torch(params)
  module.load_state_dict({k: torch.tensor(v) for k, v in weights.items()})
  inputs = torch.tensor(np.asarray(xs), requires_grad=True)
  leaves = [torch.tensor(np.asarray(s)[None]).requires_grad_() for s in state]
  outputs, last = module(
    inputs, tuple(leaves) if len(leaves) > 1 else leaves[0]
  )
  last = last if isinstance(last, tuple) else (last,)

  def run(params, state, xs):
    return unroll(row.cell, params, state, xs)

  found, pullback = jax.vjp(run, params, state, xs)
  cotangents = normal_like(jax.random.key(1), found)
  d_params, d_state, d_xs = pullback(cotangents)
  (d_last, d_hs) = cotangents
  weigh = [(outputs, d_hs)] + [
    (t[0], d) for t, d in zip(last, d_last, strict=True)
  ]
  sum((a * torch.tensor(np.asarray(d))).sum() for a, d in weigh).backward()

  def close(ours, theirs):
    assert np.abs(np.asarray(ours) - theirs.detach().numpy()).max() < 1e-10

  close(found[1], outputs)
  for ours, theirs in zip(found[0], last, strict=True):
    close(ours, theirs[0])
  close(d_xs, inputs.grad)
  for ours, theirs in zip(d_state, leaves, strict=True):
    close(ours, theirs.grad[0])
  gradients = row.to_torch(d_params)
  for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0"):
    close(gradients[name], getattr(module, name).grad)
  if hasattr(d_params, "b_n"):  # the end of PyTorch's second bias
    close(d_params.b_n, module.bias_hh_l0.grad[-H:])


@pytest.mark.everyday(2)
@ROWS
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_states_keep_dtypes_and_cotangents_have_those_of_their_primals(
  row, dtype, key
):
  cell = row.cell

  def step():
    params = cell.init(key, D, H, dtype)
    args = params, cell.initial_state(params, (B,)), jnp.ones((B, D), dtype)
    after, pullback = jax.vjp(cell.step, *args)
    return args, after, pullback(jax.tree.map(jnp.ones_like, after))

  arrays = jax.eval_shape(step)
  args, after, gradient = jax.tree.map(lambda leaf: leaf.dtype, arrays)
  assert {*args[0]} == {jnp.dtype(dtype)}
  h, *others = args[1]  # c, n, m: float32 even if dtype is bfloat16
  assert h == dtype and {*others} <= {jnp.dtype(jnp.float32)}
  assert after == args[1] and gradient == args


@ROWS
@pytest.mark.parametrize("shape", [(B, D + 1), (B + 1, D), (D,), (T, B, D)])
def test_inputs_of_another_shape_are_an_error(row, shape, key):
  params, state, _ = one_step_arguments(row.cell, key)
  message = re.escape(f"x must be inputs [{B}, {D}], got {shape}")
  with pytest.raises(ValueError, match=rf"^{message}(\n|$)"):
    row.cell.step(params, state, jnp.ones(shape))


@ROWS
def test_tokens_of_another_shape_are_an_error(row, key):
  params, state, _ = one_step_arguments(row.cell, key)
  message = re.escape(f"x must be integer tokens [{B}], got {(B, D)}")
  message += "; inputs must be floats, not int(32|64)"
  with pytest.raises(ValueError, match=rf"^{message}(\n|$)"):
    row.cell.step(params, state, jnp.zeros((B, D), int))


@pytest.mark.parametrize("x", [None, "text", [[1.0], [1.0, 2.0]]])
def test_x_that_is_no_array_is_refused(x, key):
  message = re.escape(f"tokens [...], got {type(x).__name__}: ")
  for f in lstm.step, lstm.forward:
    with pytest.raises(ValueError, match=f"^x must be inputs .* {message}"):
      f(lstm.init(key, D, H), None, x)


def test_variants_without_their_additions_are_the_lstm(key):
  """Peepholes or rounds are all 0, or the projection is the identity."""
  params, state, xs = arguments(lstm, key)
  expected = unroll(lstm, params, state, xs)
  blind = peephole_lstm.PeepholeLSTMParams(*params, jnp.zeros(3 * H))
  assert worst(unroll(peephole_lstm, blind, state, xs), expected) < 1e-14
  zeros = jnp.zeros((3, H, D)), jnp.zeros((2, D, H))  # Q and R of 5 rounds
  unmodulated = mogrifier_lstm.MogrifierLSTMParams(*params, *zeros)
  found = unroll(mogrifier_lstm, unmodulated, state, xs)
  assert worst(found, expected) < 1e-14
  projected = projected_lstm.ProjectedLSTMParams(*params, jnp.eye(H))
  assert worst(unroll(projected_lstm, projected, state, xs), expected) < 1e-14


def test_a_coupled_lstm_equals_an_lstm_with_tied_gates(key):
  """As i = 1 − f = σ(−a_f), the LSTM's W_i and b_i are −W_f and −b_f."""
  params, state, xs = arguments(coupled_lstm, key)
  i = jax.tree.map(lambda w: -w[..., :H], params)
  tied = lstm.LSTMParams(
    *(jnp.concatenate(both, -1) for both in zip(i, params, strict=True))
  )
  state = lstm.LSTMState(*state)
  expected = unroll(lstm, tied, state, xs)
  assert worst(unroll(coupled_lstm, params, state, xs), expected) < 1e-13


def test_layer_norm_is_invariant_to_the_scale_of_weights(key):
  """The normalization N has N(k u) = N(u), except for ε under its root."""
  params, state, xs = arguments(layernorm_lstm, key)
  # Beside products with weights of 1e6, ε is negligible.
  scaled = params._replace(w_x=1e6 * params.w_x, w_h=1e6 * params.w_h)
  larger = scaled._replace(w_x=10 * scaled.w_x, w_h=10 * scaled.w_h)
  a, b = (unroll(layernorm_lstm, p, state, xs) for p in (scaled, larger))
  assert worst(a, b) < 1e-9
  plain = lstm.LSTMParams(scaled.w_x, scaled.w_h, scaled.b)
  assert worst(a, unroll(lstm, plain, state, xs)) > 1e-2


def test_a_minimal_lstm_whose_gates_both_underflow_shares_equally(key):
  """f / (f + i) of two gates of e⁻²⁰⁰, which are 0 in float32, is ½."""
  params = min_lstm.init(key, D, H)
  params = jax.tree.map(jnp.zeros_like, params)
  params = params._replace(b=params.b.at[: 2 * H].set(-200))
  state = jax.tree.map(jnp.ones_like, min_lstm.initial_state(params, (B,)))

  def f(params, state):
    return min_lstm.step(params, state, jnp.ones((B, D), jnp.float32)).h.sum()

  value, (d_params, d_state) = jax.value_and_grad(f, (0, 1))(params, state)
  assert value == B * H / 2
  # The derivatives of p = σ(log f − log i): here those of log f by a_f, and of
  # log i by aᵢ, are 1.
  expected = np.repeat(np.float32([B / 4, -B / 4, B / 2]), H)
  for gradient in (d_params.b, d_params.w_x):
    assert (np.asarray(gradient) == expected).all()
  assert (d_state.h == 1 / 2).all()


def test_a_minimal_lstm_does_not_round_a_small_share_of_its_state_to_0(key):
  """p = f / (f + i) is ∂h'/∂h, also where 1 − p is 1 in float32."""
  forget = np.array([-5.0, -10, -15, -20, -40, -80])  # a_f of each unit
  params = jax.tree.map(jnp.zeros_like, min_lstm.init(key, D, len(forget)))
  params = params._replace(b=params.b.at[: len(forget)].set(np.float32(forget)))
  state = min_lstm.initial_state(params)

  xs = jnp.ones((1, D), jnp.float32)
  f, i = 1 / (1 + np.exp(-forget)), 1 / 2

  def last(state):
    return unroll(min_lstm, params, state, xs)[0].h.sum()

  # The tolerance is the rounding of a pre-activation of 80.
  found = jax.grad(last)(state).h
  np.testing.assert_allclose(found, f / (f + i), rtol=80 * 2**-23)


@pytest.mark.parametrize("nu", [-800.0, 200.0])
def test_an_lru_of_extreme_decays_keeps_its_state_or_takes_its_input(nu, key):
  """The decay λ is 1 and the scale γ of the input is 0, or λ is 0 and γ 1."""
  params = lru.init(key, D, H, jnp.float64)
  params = params._replace(nu=jnp.full_like(params.nu, nu))
  state = jax.tree.map(jnp.ones_like, lru.initial_state(params, (B,)))

  def f(params):
    return lru.step(params, state, jnp.ones((B, D))).h.sum()

  value, gradient = jax.value_and_grad(f)(params)
  decay, scale = (1, 0) if nu < 0 else (0, 1)
  inputs = params.w_x.sum()  # the sum of x W_x + b, for x = 1 and b = 0
  np.testing.assert_allclose(value, B * (decay * H + scale * inputs), 1e-12)
  assert (gradient.w_x == B * scale).all() and (gradient.b == B * scale).all()
  assert not gradient.nu.any()


def test_the_scale_of_an_lru_is_not_rounded_to_0_beside_a_decay_of_1(key):
  """λ = exp(−e⁻⁴⁰) is 1 in float64, but γ = √(1 − λ²) is √2 e⁻²⁰."""
  params = jax.tree.map(jnp.ones_like, lru.init(key, D, H, jnp.float64))
  params = params._replace(nu=jnp.full(H, -40.0))

  def f(params):
    return lru.step(params, None, jnp.ones((1, D))).h.sum()

  value, gradient = jax.value_and_grad(f)(params)
  scale = 2**0.5 * np.exp(-20)
  a = D + 1  # x W_x + b of ones
  np.testing.assert_allclose(value, H * scale * a, 1e-14)
  np.testing.assert_allclose(gradient.nu, scale / 2 * a, 1e-14)


def test_a_step_of_float64_arrays_of_numpy_needs_no_x64(key, recwarn):
  made = jax.tree.map(np.asarray, one_step_arguments(lstm, key))
  with jax.enable_x64(False):
    state, residuals = lstm.forward(*made)
    d_state = jax.tree.map(lambda x: np.asarray(x, float), state)
    cotangents = lstm.backward(residuals, d_state)
  assert not recwarn.list
  dtypes = {x.dtype for x in jax.tree.leaves((residuals, cotangents))}
  assert dtypes == {jnp.dtype(jnp.float32)}
