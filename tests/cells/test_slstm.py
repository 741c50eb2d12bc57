"""sLSTM: its heads, its exponential gates and their scale, and ties."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import slstm, unroll
from tests.contract import EXHAUSTIVE
from tests.draws import B, D, H, T, arguments, normal_like, weighed, worst


def shifted(params, addend):
  """Return params with an addend for every pre-activation of the input gate."""
  i, f, g, o = jnp.split(params.b, 4)
  return params._replace(b=jnp.concatenate([i + addend, f, g, o]))


@pytest.mark.parametrize("num_heads", [pytest.param(2, marks=EXHAUSTIVE), 6])
def test_heads_are_blocks_of_one_matrix(num_heads, key):
  params, state, xs = arguments(slstm, key)
  size = H // num_heads
  w_h = normal_like(key, np.zeros((num_heads, size, 4 * size)))
  whole = np.zeros((1, H, 4, H))
  for n, block in enumerate(np.asarray(w_h)):
    units = slice(n * size, (n + 1) * size)
    whole[0, units, :, units] = block.reshape(size, 4, size)
  whole = jnp.asarray(whole.reshape(1, H, 4 * H))
  found, expected = (
    unroll(slstm, params._replace(w_h=w), state, xs) for w in (w_h, whole)
  )
  assert worst(found, expected) < 1e-12


def test_the_default_is_the_largest_number_of_heads_up_to_4(key):
  for hidden, heads in ((128, 4), (6, 3), (10, 2), (5, 1), (1, 1)):
    params = jax.eval_shape(partial(slstm.init, key, D, hidden))
    assert params.w_h.shape[0] == heads
  assert slstm.init(key, D, 10, num_heads=5).w_h.shape == (5, 2, 8)


@pytest.mark.exhaustive
def test_bfloat16_is_computed_at_any_batch_size(key):
  """XLA for CPUs cannot multiply matrices of some layouts in bfloat16."""

  def run(dtype, batch):
    params = slstm.init(key, 16, 64, dtype)
    xs = normal_like(key, np.zeros((T, batch, 16), np.float32)).astype(dtype)

    def outputs(params, xs):
      return unroll(slstm, params, None, xs)[1].astype("f")

    f = jax.jit(jax.grad(weighed(outputs, key), (0, 1)))
    return [np.asarray(x, np.float32) for x in jax.tree.leaves(f(params, xs))]

  for batch in (1, 3, 16):
    rounded, exact = run(jnp.bfloat16, batch), run(jnp.float32, batch)
    for a, b in zip(rounded, exact, strict=True):
      assert np.linalg.norm(a - b) < 0.05 * np.linalg.norm(b)


@pytest.mark.parametrize(
  ("num_heads", "expected"),
  [
    (4, "divide hidden_size, got 4 and 6"),
    (0, "be an integer ≥ 1, got 0"),
    (-2, "be an integer ≥ 1, got -2"),
    (2.0, "be an integer ≥ 1, got 2.0"),
    ("2", "be an integer ≥ 1, got '2'"),
  ],
)
def test_an_invalid_number_of_heads_is_an_error(num_heads, expected, key):
  with pytest.raises(ValueError, match=f"^num_heads must {expected}$"):
    slstm.init(key, D, 6, num_heads=num_heads)


@pytest.mark.parametrize(
  ("addend", "dtype"),
  [
    (-200, jnp.float32),
    *(
      pytest.param(addend, dtype, marks=EXHAUSTIVE)
      for addend in (-1e4, 200, 1e4)
      for dtype in (jnp.float32, jnp.float64)
    ),
  ],
)
def test_a_constant_in_the_input_gate_changes_nothing_from_zero(
  addend, dtype, key
):
  """From the zero state, it multiplies exp(m) c and exp(m) n by one number."""
  params, _, xs = arguments(slstm, key)
  params, xs = jax.tree.map(lambda x: x.astype(dtype), (params, xs))

  def hs(params, xs):
    return unroll(slstm, params, None, xs)[1]

  f = jax.jit(jax.value_and_grad(weighed(hs, key), (0, 1)))
  found, expected = f(shifted(params, addend), xs), f(params, xs)
  # Sums of the addend and a number around 1 are rounded.
  assert worst(found, expected) < 2 * abs(addend) * jnp.finfo(dtype).eps
  assert jnp.abs(expected[1][1]).max() > 0.1


def test_an_empty_memory_takes_the_candidate_whatever_the_gates(key):
  params, _, xs = arguments(slstm, key)
  zero = slstm.initial_state(params, (B,))
  _, _, g, o = jnp.split(slstm.project(params, xs[0]) + params.b[None], 4, -1)
  after = slstm.step(params, zero, xs[0])
  assert worst(after.h, jax.nn.sigmoid(o) * jnp.tanh(g)) < 1e-15
  assert worst(after.c, jnp.tanh(g)) < 1e-15 and (after.n == 1).all()
  before = zero._replace(m=zero.m + 1e4)  # m is ignored: nothing is stored
  assert worst(slstm.step(params, before, xs[0]), after) == 0


@pytest.mark.exhaustive
def test_at_a_tie_the_gradient_is_that_of_jax(key):
  """The tie is p = aᵢ in m' = max(p, aᵢ), with p = m + log σ(a_f).

  The loss also depends on m'.
  """
  params, state, xs = arguments(slstm, key)
  zeros = jax.tree.map(jnp.zeros_like, params)
  b_f = params.b[H : 2 * H]
  b = zeros.b.at[H : 2 * H].set(b_f)
  params = zeros._replace(b=b.at[:H].set(jax.nn.log_sigmoid(b_f)))
  state = state._replace(m=jnp.zeros_like(state.m))
  _, gates, _ = slstm.recur(params, state, jnp.zeros((B, 4 * H)))
  assert not gates[:, :H].any()  # q = p − aᵢ
  a, b = (
    jax.grad(weighed(step, key), (0, 1, 2))(params, state, xs[0])
    for step in (slstm.step, lambda *args: slstm.forward(*args)[0])
  )
  assert worst(a, b) < 1e-12
  assert jnp.abs(a[1].m).min() > 0


def test_the_memory_stays_in_its_bounds_over_a_long_sequence(key):
  """From the zero state, 1 ≤ n ≤ t and |c| ≤ n, with large pre-activations."""
  steps = 3000
  params, _, _ = arguments(slstm, key)
  params = jax.tree.map(lambda x: x.astype(jnp.float32), params)
  xs = 30 * jax.random.normal(key, (steps, B, D), jnp.float32)
  last, hs = unroll(slstm, params, None, xs)
  assert (last.n >= 1).all() and (last.n <= steps).all()
  assert (jnp.abs(last.c) <= last.n * (1 + 1e-6)).all()
  assert (jnp.abs(hs) <= 1 + 1e-6).all() and jnp.abs(hs).max() > 0.5
