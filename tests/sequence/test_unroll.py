"""`unroll` of every cell: gradients, dtypes, and what its program computes."""

import re
from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.extend.core import jaxprs_in_params

from lstm_jax import Autodiff, Explicit, Step, gru_reset_before, lru, unroll
from lstm_jax.sequence import scan
from tests.contract import (
  CELLS,
  EXHAUSTIVE,
  REPRESENTATIVE_CELLS,
  TABLE,
  TOKEN_CELLS,
  each_cell,
)
from tests.draws import B, D, H, T, arguments, weighed, worst
from tests.gradients import value_and_gradient


@pytest.mark.everyday(4)
@each_cell(
  ("steps", "batch"),
  [*product([T, 1], [(B,), (), (2, B)])],
  others=[(T, (B,)), (T, ()), (1, (2, B))],
)
def test_all_adjoints_give_the_same_gradient(cell, steps, batch, key):
  args = arguments(cell, key, steps=steps, batch=batch)
  autodiff = value_and_gradient(cell, args, adjoint=Autodiff())
  assert worst(value_and_gradient(cell, args, adjoint=Step()), autodiff) < 1e-12
  assert worst(value_and_gradient(cell, args), autodiff) < 1e-12


@TOKEN_CELLS
def test_all_adjoints_give_the_same_gradient_on_tokens(cell, key):
  params, state, _ = arguments(cell, key)
  tokens = jax.random.randint(key, (T, B), 0, D)
  a, b, c = (
    value_and_gradient(cell, (params, state, tokens), adjoint=adjoint)
    for adjoint in (Explicit(), Step(), Autodiff())
  )
  assert worst(a, c) < 1e-12
  assert worst(b, c) < 1e-12


@EXHAUSTIVE
@settings(max_examples=10)
@given(
  st.sampled_from(list(TABLE)),
  st.tuples(*[st.integers(1, 4)] * 4),
  st.integers(0, 2**31),
)
def test_any_sizes_have_the_gradient_of_autodiff(name, sizes, seed):
  cell, (steps, batch, size, hidden) = TABLE[name].cell, sizes
  key = jax.random.key(seed)
  args = arguments(
    cell, key, steps=steps, batch=(batch,), size=size, hidden=hidden
  )
  a, b = (
    value_and_gradient(cell, args, adjoint=adjoint)
    for adjoint in (Explicit(), Autodiff())
  )
  assert worst(a, b) < 1e-12


@REPRESENTATIVE_CELLS
@pytest.mark.parametrize("only", ["hs", "state"])
def test_each_output_alone_has_the_gradient_of_autodiff(cell, only, key):
  args = arguments(cell, key)

  def gradient_of_one(adjoint):
    def f(*args):
      state, hs = unroll(cell, *args, adjoint=adjoint)
      return hs if only == "hs" else state

    return jax.jit(jax.grad(weighed(f, key), (0, 1, 2)))(*args)

  assert worst(gradient_of_one(Explicit()), gradient_of_one(Autodiff())) < 1e-12


@CELLS
def test_unroll_equals_the_loop_of_its_docstring(cell, key):
  params, state, xs = arguments(cell, key)
  found = unroll(cell, params, state, xs)
  step, hs = jax.jit(cell.step), []
  for x in xs:
    state = step(params, state, x)
    hs.append(state.h)
  assert worst(found, (state, jnp.stack(hs))) < 1e-12


@REPRESENTATIVE_CELLS
@pytest.mark.parametrize("cut", [1, 3])
def test_unrolling_in_two_parts_changes_nothing(cell, cut, key):
  args = arguments(cell, key)

  def in_parts(params, state, xs):
    state, first = unroll(cell, params, state, xs[:cut])
    state, rest = unroll(cell, params, state, xs[cut:])
    return state, jnp.concatenate([first, rest])

  whole = value_and_gradient(cell, args)
  f = jax.value_and_grad(weighed(in_parts, key), (0, 1, 2))
  assert worst(jax.jit(f)(*args), whole) < 1e-12


@CELLS
def test_rows_of_a_batch_do_not_mix(cell, key):
  params, state, xs = arguments(cell, key)
  _, hs = unroll(cell, params, state, xs)
  for row in range(B):
    alone = jax.tree.map(lambda leaf: leaf[row], state)  # noqa: B023
    _, expected = unroll(cell, params, alone, xs[:, row])
    assert worst(hs[:, row], expected) < 1e-12


@pytest.mark.everyday(2)
@CELLS
@pytest.mark.parametrize(
  ("dtype", "tolerance"), [(jnp.float32, 2e-5), (jnp.bfloat16, 0.15)]
)
def test_low_precision_keeps_dtypes_and_stays_near_float64(
  cell, dtype, tolerance, key
):
  """Errors relative to the largest entry; bfloat16 has 8 significant bits."""
  # With key 0, a gradient of layernorm_lstm in bfloat16 has an error of 0.17,
  # by autodiff too.
  args = arguments(cell, jax.random.key(1))
  exact = value_and_gradient(cell, args)[1]
  low = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), dtype), args)
  f = weighed(
    lambda *args: jax.tree.map(
      lambda leaf: leaf.astype(jnp.float64), unroll(cell, *args)
    ),
    key,
  )
  found = jax.jit(jax.grad(f, (0, 1, 2)))(*low)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True):
    assert a.dtype == dtype
    assert worst(np.asarray(a, float), b) < tolerance * np.abs(b).max()


@pytest.mark.parametrize("name", TABLE)
def test_the_saved_array_sizes_match_the_docstring(name, key):
  """The table of `scan`: elements per unit and time step, such as `gru 6`."""
  module = name.removeprefix("relu_")  # another activation saves the same
  pattern = rf"\b{module} (\d+)( \+ P/H)?(?: \+ (\d+) D/H)?"
  ((count, projection, inputs),) = re.findall(pattern, scan.__doc__)
  params, state, xs = arguments(TABLE[name].cell, key)
  forward = partial(scan.forward, TABLE[name].cell, scan.ScanOptions())
  _, saved = jax.eval_shape(forward, params, state, xs, ())
  leaves = jax.tree.leaves((saved.gates, saved.hs_and_residuals))
  # Without the scales of layer normalization, [T, B, 1].
  sizes = [leaf.size for leaf in leaves if leaf.shape[-1] > 1]
  expected = int(count) * H + (state.h.shape[-1] if projection else 0)
  expected += int(inputs or 0) * D
  assert sum(sizes) == expected * T * B


@TOKEN_CELLS
def test_the_scans_contain_no_product_with_the_inputs(cell, key):
  """The scans multiply rows [B, ...] by w_h and w_r, and by nothing else.

  Shapes are compared with sorted axes, since a weight may be transposed. If it
  has an axis of heads, so have the rows. A cell that takes no tokens need not
  read x through x W_x alone, and is left out.
  """
  args = arguments(cell, key)
  f = jax.grad(weighed(partial(unroll, cell), key), (0, 1, 2))
  shapes = set()

  def visit(jaxpr, inside):
    for equation in jaxpr.eqns:
      if equation.primitive.name == "dot_general" and inside:
        operands = (tuple(sorted(v.aval.shape)) for v in equation.invars)
        shapes.add(frozenset(operands))
      for inner in jaxprs_in_params(equation.params):
        visit(inner, inside or equation.primitive.name == "scan")

  visit(jax.make_jaxpr(f)(*args).jaxpr, False)
  recurrent = [w for k, w in args[0]._asdict().items() if k in ("w_h", "w_r")]
  if cell is gru_reset_before:  # one product for r and z, and one for n
    recurrent = jnp.split(args[0].w_h, [2 * H], axis=-1)
  assert shapes == {
    frozenset({tuple(sorted((B, *w.shape[:-2], size))), tuple(sorted(w.shape))})
    for w in recurrent
    for size in w.shape[-2:]
  }


ADJOINTS = [
  Explicit(),
  Explicit(chunk=2),
  Explicit("recompute"),
  Explicit("recompute", 2),
  Step(),
  Autodiff(),
]


@pytest.mark.everyday(3)
@each_cell(
  ("adjoint", "tokens"),
  [*product(ADJOINTS, [False, True])],
  others=[(Explicit(), False), (Step(), False)],
)
def test_an_empty_batch_has_empty_outputs_and_zero_gradients(
  cell, tokens, adjoint, key
):
  params, state, xs = arguments(cell, key, batch=(0,))
  if tokens and not getattr(cell, "takes_tokens", False):
    pytest.skip("the cell takes no tokens")
  if tokens:
    xs = jnp.zeros((T, 0), int)
  _, hs = unroll(cell, params, state, xs, adjoint=adjoint)
  assert hs.shape == (T, *state.h.shape)
  args = params, state, xs
  value, gradients = value_and_gradient(cell, args, adjoint=adjoint)
  zeros = args[: len(gradients)]
  assert value == 0
  assert jax.tree.map(jnp.shape, gradients) == jax.tree.map(jnp.shape, zeros)
  assert not any(map(np.any, jax.tree.leaves(gradients)))


@pytest.mark.everyday(2)
@CELLS
@pytest.mark.parametrize("narrow", ["params", "state", "xs"])
def test_float32_and_float64_mix(cell, narrow, key):
  params, state, xs = arguments(cell, key)
  args = {"params": params, "state": state, "xs": xs}
  args[narrow] = jax.tree.map(
    lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float32), args[narrow]
  )
  with jax.numpy_dtype_promotion("standard"):
    a, b = (
      value_and_gradient(cell, tuple(args.values()), adjoint=adjoint)
      for adjoint in (Explicit(), Autodiff())
    )
  types = jax.tree.map(lambda leaf: leaf.dtype, tuple(args.values()))
  assert jax.tree.map(lambda leaf: leaf.dtype, a[1]) == types
  assert worst(a, b) < 1e-4  # T roundings to float32


@pytest.mark.everyday(1)
@CELLS
def test_bfloat16_products_have_a_small_error_and_keep_dtypes(cell, key):
  exact = arguments(cell, key, steps=31, hidden=48)
  exact = jax.tree.map(lambda x: np.asarray(x) / 8, exact)  # none saturates
  args = jax.tree.map(np.float32, exact)
  f = weighed(partial(unroll, cell, compute_dtype=jnp.bfloat16), key)
  gradients = jax.jit(jax.grad(f, (0, 1, 2)))(*args)
  _, references = value_and_gradient(cell, exact, adjoint=Autodiff())
  errors = []
  for primal, a, b in zip(
    *map(jax.tree.leaves, (args, gradients, references)), strict=True
  ):
    assert a.dtype == primal.dtype
    a, b = np.asarray(a), np.asarray(b)
    errors.append(np.linalg.norm(a - b) / np.linalg.norm(b))
  assert np.max(errors) < 2e-2  # float32: 1e-6; one bfloat16 rounding: 4e-3
  # An LRU's db and dh pass through no product.
  assert (max(errors) if cell is lru else min(errors)) > 1e-5
