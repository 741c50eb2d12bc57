"""Second-order gradients, forward mode, vmap and checkpoint of `unroll`."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lstm_jax import Autodiff, Explicit, Step, gru, lstm, min_gru, unroll
from lstm_jax.sequence.in_place import MOST_UNROLLED
from tests.contract import CELLS, EXHAUSTIVE, REPRESENTATIVE_CELLS
from tests.draws import B, H, T, arguments, largest, normal_like, weighed, worst
from tests.gradients import value_and_gradient
from tests.sequence.options import FEATURES

ADJOINTS = Explicit(), Explicit("recompute"), Explicit(chunk=2), Step()


@REPRESENTATIVE_CELLS
def test_vmap_over_parameters_equals_a_loop(cell, key):
  params, *others = arguments(cell, key)
  many = [params, normal_like(jax.random.key(1), params)]
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *many)
  f = jax.grad(weighed(partial(unroll, cell), key), (0, 1, 2))
  alone = [jax.jit(f)(one, *others) for one in many]
  expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone)
  over_params = jax.jit(jax.vmap(f, (0, None, None)))
  assert worst(over_params(stacked, *others), expected) < 1e-12


@REPRESENTATIVE_CELLS
def test_checkpoint_changes_no_gradient(cell, key):
  args = arguments(cell, key)
  f = weighed(jax.checkpoint(partial(unroll, cell)), key)
  found = jax.jit(jax.value_and_grad(f, (0, 1, 2)))(*args)
  assert worst(found, value_and_gradient(cell, args)) < 1e-12


@pytest.mark.everyday(1)
@CELLS
def test_second_order_gradients_equal_autodiff(cell, key):
  args = arguments(cell, key, steps=3, batch=(2,))

  def second(adjoint):
    first = jax.grad(
      weighed(partial(unroll, cell, adjoint=adjoint), key), (0, 1, 2)
    )
    return jax.jit(jax.grad(weighed(first, key), (0, 1, 2)))(*args)

  expected = second(Autodiff())
  size = largest(expected)
  for adjoint in (Explicit(), Step()):
    assert worst(second(adjoint), expected) < 1e-12 * size, adjoint


@REPRESENTATIVE_CELLS
def test_forward_mode_works_under_autodiff(cell, key):
  args = arguments(cell, key)
  f = weighed(partial(unroll, cell, adjoint=Autodiff()), key)
  tangents = normal_like(jax.random.key(1), args)
  _, slope = jax.jit(partial(jax.jvp, f))(args, tangents)
  gradients = jax.jit(jax.grad(f, (0, 1, 2)))(*args)
  products = jax.tree.map(lambda g, t: np.vdot(g, t), gradients, tangents)
  assert abs(slope - sum(jax.tree.leaves(products))) < 1e-11
  _, linear = jax.linearize(f, *args)
  assert abs(linear(*tangents) - slope) < 1e-11


FORWARD_MODES = {
  "jvp": lambda f, x: jax.jvp(f, (x,), (x,)),
  "jvp of jit": lambda f, x: jax.jvp(jax.jit(f), (x,), (x,)),
  "jit of jvp": lambda f, x: jax.jit(lambda x: jax.jvp(f, (x,), (x,)))(x),
  "linearize": lambda f, x: jax.linearize(f, x)[1](x),
  "jacfwd": lambda f, x: jax.jacfwd(f)(x),
  "jit of jacfwd": lambda f, x: jax.jit(jax.jacfwd(f))(x),
}


@pytest.mark.everyday(3)
@pytest.mark.parametrize("mode", FORWARD_MODES)
@pytest.mark.parametrize("adjoint", [Explicit(), Step()], ids=str)
def test_forward_mode_of_explicit_gradients_is_an_error_with_advice(
  mode, adjoint, key
):
  params, state, xs = arguments(lstm, key)
  with pytest.raises(
    TypeError, match=r"no forward mode .*pass adjoint=Autodiff"
  ):
    FORWARD_MODES[mode](
      lambda xs: unroll(lstm, params, state, xs, adjoint=adjoint)[1], xs
    )
  with pytest.raises(TypeError, match=r"no forward mode .*differentiate forw"):
    FORWARD_MODES[mode](lambda x: lstm.step(params, state, x).h, xs[0])


def derivative_of_gradient(f, gradient_in, tangent_in, args, tangents):
  """Return the derivative of a gradient, each in one argument alone."""

  def gradient(x):
    changed = [x if k == tangent_in else arg for k, arg in enumerate(args)]
    return jax.grad(f, gradient_in)(*changed)

  return jax.jvp(gradient, (args[tangent_in],), (tangents[tangent_in],))[1]


@pytest.mark.everyday(2)
@pytest.mark.parametrize("adjoint", [*ADJOINTS, None], ids=str)
def test_forward_mode_over_the_gradient_may_be_in_another_argument(
  adjoint, key
):
  """No array that reverse mode differentiates is one of forward mode."""
  args = arguments(lstm, key, batch=(2,))
  if adjoint is None:  # one step
    args = *args[:2], args[2][0]
    run, expected_run = lstm.step, lambda *args: lstm.forward(*args)[0]
  else:
    run = partial(unroll, lstm, adjoint=adjoint)
    expected_run = partial(unroll, lstm, adjoint=Autodiff())
  tangents = normal_like(jax.random.key(1), args)
  for gradient_in, tangent_in in ((0, 2), (2, 1), (1, 0)):
    found, expected = (
      jax.jit(
        partial(
          derivative_of_gradient, weighed(f, key), gradient_in, tangent_in
        )
      )(args, tangents)
      for f in (run, expected_run)
    )
    assert largest(expected)
    assert worst(found, expected) < 1e-12


def test_a_gradient_leaks_no_tracers(key):
  args = arguments(lstm, key)
  with jax.checking_leaks():
    jax.grad(weighed(partial(unroll, lstm), key), (0, 1, 2))(*args)


@EXHAUSTIVE
@REPRESENTATIVE_CELLS
def test_the_hessian_equals_that_of_autodiff(cell, key):
  """`jax.hessian` is forward mode over reverse mode.

  Outside of `jax.jit`, the backward pass is a program of its own (`compiled`).
  The `vmap` of `jax.jacrev` maps it before forward mode differentiates it.
  """
  params, state, xs = arguments(cell, key, steps=T, batch=(2,))
  assert T > MOST_UNROLLED  # else there is no loop

  def hessian(adjoint):
    run = weighed(
      lambda x: unroll(cell, params, state, x, adjoint=adjoint), key
    )
    return jax.hessian(run)

  expected = jax.jit(hessian(Autodiff()))(xs)
  for adjoint in (Explicit(), Step()):
    assert worst(jax.jit(hessian(adjoint))(xs), expected) < 1e-11, adjoint
  assert worst(hessian(Explicit())(xs), expected) < 1e-11


def product_by_transpose(f, args, tangents):
  """Return the Jacobian of f times the tangents: the transpose of its VJP."""
  outputs, vjp = jax.vjp(f, *args)
  return jax.linear_transpose(vjp, outputs)(tangents)[0]


@pytest.mark.everyday(1)
@CELLS
def test_the_transpose_of_a_backward_is_forward_mode(cell, key):
  args = arguments(cell, key, steps=T, batch=(B,))
  tangents = normal_like(jax.random.key(1), args)
  assert T > MOST_UNROLLED  # else there is no loop
  run = partial(unroll, cell, **FEATURES["all"](cell))
  product = jax.jit(partial(jax.jvp, partial(run, adjoint=Autodiff())))
  expected = product(args, tangents)[1]
  for adjoint in ADJOINTS:
    product = partial(product_by_transpose, partial(run, adjoint=adjoint))
    found = jax.jit(product)(args, tangents)
    assert worst(found, expected) < 1e-12, adjoint


def test_the_transpose_needs_no_array_more_for_each_step(key):
  args = arguments(lstm, key, steps=200, batch=(8,), size=32, hidden=32)

  def reserved(adjoint):
    run = partial(unroll, lstm, adjoint=adjoint)
    product = jax.jit(partial(product_by_transpose, run))
    compiled = product.lower(args, args).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  # 1.9 times; with an array more for each step, 4.3 times.
  assert reserved(Explicit()) < 2.5 * reserved(Step())


@pytest.mark.parametrize("cell", [gru, min_gru])
def test_a_mapped_backward_can_be_transposed(cell, key):
  params, state, xs = arguments(cell, key, steps=T, batch=(2,))
  hs, vjp = jax.vjp(lambda x: unroll(cell, params, state, x)[1], xs)
  mapped = jax.vmap(lambda d_hs: vjp(d_hs)[0])
  many = jnp.stack([xs, xs + 1])
  found = jax.linear_transpose(mapped, jnp.stack([hs, hs]))(many)[0]
  alone = jax.linear_transpose(lambda d_hs: vjp(d_hs)[0], hs)
  expected = jnp.stack([alone(x)[0] for x in many])
  assert worst(found, expected) < 1e-12


@pytest.mark.everyday(1)
@pytest.mark.parametrize("cell", [gru, min_gru])
def test_a_backward_can_be_the_matrix_of_a_linear_solve(cell, key):
  """`lax.custom_linear_solve` transposes it, and so does its gradient."""
  params, state, xs = arguments(cell, key, batch=(), size=H)

  def solve(matvec, b):
    columns = jax.vmap(matvec)(jnp.eye(b.size).reshape(-1, *b.shape))
    matrix = columns.reshape(b.size, b.size).T
    return jnp.linalg.solve(matrix, b.ravel()).reshape(b.shape)

  def solution(params, b, adjoint):
    f = partial(unroll, cell, params, state, adjoint=adjoint)
    _, vjp = jax.vjp(lambda x: f(x)[1], xs)

    def matvec(v):
      return v + vjp(v)[0] / 2

    if adjoint == Autodiff():
      return solve(matvec, b)
    return lax.custom_linear_solve(matvec, b, solve, transpose_solve=solve)

  def gradient(adjoint):
    f = weighed(partial(solution, adjoint=adjoint), key)
    return jax.jit(jax.value_and_grad(f, (0, 1)))(params, xs)

  assert worst(gradient(Explicit()), gradient(Autodiff())) < 1e-12
