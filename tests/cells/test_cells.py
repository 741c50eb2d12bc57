from collections import defaultdict
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import (
  Autodiff,
  Explicit,
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
  cotangents = normal_like(key, found)
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
  if hasattr(d_params, "b_n"):
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
  h, *others = args[1]
  assert h == dtype and {*others} <= {jnp.dtype(jnp.float32)}
  assert after == args[1] and gradient == args


@ROWS
def test_initial_weights_and_states_can_be_donated(row, key):
  params = row.cell.init(key, D, H)
  args = params, row.cell.initial_state(params, (B,))
  double = partial(jax.tree.map, lambda leaf: 2 * leaf)
  expected = double(args)
  found = jax.jit(double, donate_argnums=0)(args)
  assert worst(found, expected) == 0
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(args))


@ROWS
def test_init_has_unit_scale_orthogonal_recurrence_and_zero_biases(row, key):
  hidden, size = 32, 500
  params = row.cell.init(key, size, hidden)
  gates = params.w_x.shape[1] // hidden
  w_h = np.asarray(getattr(params, "w_h", np.zeros((0, 1, gates))))
  for head in w_h.reshape(-1, *w_h.shape[-2:]):  # the matrix, or one a head
    for block in np.split(head, gates, axis=1):
      assert np.abs(block @ block.T - np.eye(len(block))).max() < 1e-5
  for block in np.split(np.asarray(params.w_x), gates, axis=1):
    assert abs(block.std() * size**0.5 - 1) < 0.05
  vectors = {k: v for k, v in params._asdict().items() if v.ndim == 1}
  gains = [vectors.pop(k) for k in list(vectors) if k.startswith("gain")]
  assert all((gain == 1).all() for gain in gains)
  vectors.pop("nu", None)  # the decays of `lru`, which are random
  biases = np.concatenate(list(vectors.values()))
  forget = np.zeros_like(biases)
  if row.forget is not None:
    forget[row.forget * hidden : (row.forget + 1) * hidden] = 1
  assert (biases == forget).all()
  assert all(not leaf.any() for leaf in row.cell.initial_state(params, (B,)))


@pytest.mark.exhaustive
@ROWS
def test_no_two_blocks_of_the_initial_weights_are_one_draw(row, key):
  """Gates, heads, rounds and matrices: n numbers correlate by 1 / √n."""
  blocks = defaultdict(list)
  for leaf in row.cell.init(key, 32, 32):
    for matrix in leaf.reshape(-1, *leaf.shape[-2:]) if leaf.ndim > 1 else ():
      rows, columns = matrix.shape
      for block in np.split(matrix, columns // min(rows, columns), axis=1):
        blocks[block.shape].append(block.ravel())
  for drawn in blocks.values():
    others = np.corrcoef(drawn) - np.eye(len(drawn))
    assert np.abs(others).max() < 5 / drawn[0].size ** 0.5


@ROWS
@pytest.mark.parametrize("shape", [(B, D + 1), (B + 1, D), (D,), (T, B, D)])
def test_inputs_of_another_shape_are_an_error(row, shape, key):
  params, state, _ = one_step_arguments(row.cell, key)
  message = (
    rf"x must be inputs \[{B}, {D}\], got \({', '.join(map(str, shape))}"
  )
  with pytest.raises(ValueError, match=message):
    row.cell.step(params, state, jnp.ones(shape))


@ROWS
def test_tokens_of_another_shape_are_an_error(row, key):
  params, state, _ = one_step_arguments(row.cell, key)
  with pytest.raises(ValueError, match=rf"x must be integer tokens \[{B}\], g"):
    row.cell.step(params, state, jnp.zeros((B, D), int))


@pytest.mark.exhaustive
@pytest.mark.parametrize("projection", [1, 2, 5, 9])
def test_a_projection_can_have_any_size(projection, key):
  cell = projected_lstm
  shapes = cell.init(key, D, H, jnp.float64, projection_size=projection)
  params = normal_like(key, shapes)
  state = normal_like(key, cell.initial_state(params, (B,)))
  xs = normal_like(key, np.zeros((T, B, D)))
  a, b = (
    jax.jit(
      jax.grad(weighed(partial(unroll, cell, adjoint=adjoint), key), (0, 1, 2))
    )(params, state, xs)
    for adjoint in (Explicit(), Autodiff())
  )
  assert a[1].h.shape == (B, projection) and a[1].c.shape == (B, H)
  assert worst(a, b) < 1e-12


def test_a_projection_of_size_zero_is_an_error(key):
  with pytest.raises(ValueError, match="projection_size must be an integer ≥"):
    projected_lstm.init(key, D, H, projection_size=0)


def test_a_projection_is_orthonormal_and_by_default_of_half_the_units(key):
  w_r = np.asarray(projected_lstm.init(key, D, 5).w_r)
  assert w_r.shape == (5, 3)
  assert np.abs(w_r.T @ w_r - np.eye(3)).max() < 1e-5


def test_variants_without_their_additions_are_the_lstm(key):
  """Peepholes or rounds of zero, and the identity as projection."""
  params, state, xs = arguments(lstm, key)
  expected = unroll(lstm, params, state, xs)
  blind = peephole_lstm.PeepholeLSTMParams(*params, jnp.zeros(3 * H))
  assert worst(unroll(peephole_lstm, blind, state, xs), expected) < 1e-14
  zeros = jnp.zeros((3, H, D)), jnp.zeros((2, D, H))
  unmodulated = mogrifier_lstm.MogrifierLSTMParams(*params, *zeros)
  found = unroll(mogrifier_lstm, unmodulated, state, xs)
  assert worst(found, expected) < 1e-14
  projected = projected_lstm.ProjectedLSTMParams(*params, jnp.eye(H))
  assert worst(unroll(projected_lstm, projected, state, xs), expected) < 1e-14


def test_a_coupled_lstm_equals_an_lstm_with_tied_gates(key):
  """i = 1 − f = σ(−a_f): its input gate has negated forget-gate weights."""
  params, state, xs = arguments(coupled_lstm, key)
  i = jax.tree.map(lambda w: -w[..., :H], params)
  tied = lstm.LSTMParams(
    *(jnp.concatenate(both, -1) for both in zip(i, params, strict=True))
  )
  state = lstm.LSTMState(*state)
  expected = unroll(lstm, tied, state, xs)
  assert worst(unroll(coupled_lstm, params, state, xs), expected) < 1e-13


def test_layer_norm_is_invariant_to_the_scale_of_weights(key):
  """N(k u) = N(u), except for ε under the root."""
  params, state, xs = arguments(layernorm_lstm, key)
  scaled = params._replace(w_x=1e6 * params.w_x, w_h=1e6 * params.w_h)
  larger = scaled._replace(w_x=10 * scaled.w_x, w_h=10 * scaled.w_h)
  a, b = (unroll(layernorm_lstm, p, state, xs) for p in (scaled, larger))
  assert worst(a, b) < 1e-9
  plain = lstm.LSTMParams(scaled.w_x, scaled.w_h, scaled.b)
  assert worst(a, unroll(lstm, plain, state, xs)) > 1e-2


@ROWS
@pytest.mark.parametrize(
  ("sizes", "name", "got"),
  [
    ((0, H), "input_size", "0"),
    ((D, 0), "hidden_size", "0"),
    ((4.0, H), "input_size", "4.0"),
    ((D, "6"), "hidden_size", "'6'"),
  ],
)
def test_sizes_that_are_no_integers_from_1_are_an_error(
  row, sizes, name, got, key
):
  message = f"^{name} must be an integer ≥ 1, got {got}$"
  with pytest.raises(ValueError, match=message):
    row.cell.init(key, *sizes)


@ROWS
@pytest.mark.parametrize(
  ("dtype", "name"),
  [(jnp.int32, "int32"), (jnp.complex64, "complex64"), ("half2", "'half2'")],
)
def test_weights_of_a_dtype_without_floats_are_an_error(row, dtype, name, key):
  message = f"^dtype must be a dtype of floats, .*, got {name}$"
  with pytest.raises(ValueError, match=message):
    row.cell.init(key, D, H, dtype)


def test_the_first_decays_of_an_lru_are_spread_between_0_and_1(key):
  """λ² is uniform: half of the λ are above √½, a tenth above √0.9."""
  nu = lru.init(key, 1, 10_000).nu
  rounded = lru.init(key, 1, 10_000, jnp.bfloat16).nu
  assert (rounded == nu.astype(jnp.bfloat16)).all()  # drawn in float32
  decays = np.exp(-np.exp(nu))
  assert decays.min() > 0 and 0.998 < decays.max() < 0.999
  for share in (0.1, 0.5):
    assert abs((decays > (1 - share) ** 0.5).mean() - share) < 0.02


def test_a_minimal_lstm_whose_gates_both_underflow_is_finite(key):
  """f / (f + i) of two gates of e⁻²⁰⁰, which are 0 in float32, is ½."""
  params = min_lstm.init(key, D, H)
  params = jax.tree.map(jnp.zeros_like, params)
  params = params._replace(b=params.b.at[: 2 * H].set(-200))
  state = jax.tree.map(jnp.ones_like, min_lstm.initial_state(params, (B,)))

  def f(params, state):
    return min_lstm.step(params, state, jnp.ones((B, D), jnp.float32)).h.sum()

  value, gradient = jax.value_and_grad(f, (0, 1))(params, state)
  assert value == B * H / 2
  assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("nu", [-200.0, 200.0])
def test_an_lru_of_extreme_decays_has_a_finite_gradient(nu, key):
  """λ is 1 or 0, and γ 0 or 1."""
  params = lru.init(key, D, H)
  params = params._replace(nu=jnp.full_like(params.nu, nu))
  state = jax.tree.map(jnp.ones_like, lru.initial_state(params, (B,)))

  def f(params):
    return lru.step(params, state, jnp.ones((B, D), jnp.float32)).h.sum()

  gradient = jax.grad(f)(params)
  assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
  assert not gradient.nu.any()
