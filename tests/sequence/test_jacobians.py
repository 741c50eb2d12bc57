"""Jacobians by `jacrev`, whose rows share the gates of one forward."""

from functools import cache
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import Autodiff, Explicit, gru, lstm, unroll
from lstm_jax.cells.platform import traced_for
from tests.contract import each_cell
from tests.draws import arguments, normal_like, worst
from tests.sequence.options import OPTIONS

# The Jacobian of a function of (params, state, xs), as users may ask for it;
# `others` are three more states.
NESTINGS = {
  "plain": lambda f: lambda others, *args: jax.jacrev(f, (0, 1, 2))(*args),
  "jit": lambda f: (
    lambda others, *args: jax.jacrev(jax.jit(f), (0, 1, 2))(*args)
  ),
  "for each state": lambda f: (
    lambda others, params, state, xs: jax.vmap(
      lambda state: jax.jacrev(f, (0, 1))(params, state, xs)
    )(others)
  ),
  "state by state": lambda f: (
    lambda others, params, state, xs: jax.jacrev(
      lambda others: jax.vmap(lambda state: f(params, state, xs))(others)
    )(others)
  ),
  "second order": lambda f: (
    lambda others, params, state, xs: jax.hessian(
      lambda state: jnp.sin(f(params, state, xs)).sum()
    )(state)
  ),
}


def jacobian(cell, nesting, options, adjoint):
  key = jax.random.key(0)
  args = arguments(cell, key)
  others = normal_like(
    key, jax.tree.map(lambda s: np.zeros((3, *s.shape)), args[1])
  )

  def outputs(*args):
    return unroll(cell, *args, adjoint=adjoint, **OPTIONS[options])[1].sum(1)

  return jax.jit(NESTINGS[nesting](outputs))(others, *args)


@cache  # once for both platforms
def by_autodiff(cell, nesting, options):
  return jacobian(cell, nesting, options, Autodiff())


@pytest.mark.everyday(2)
@each_cell(
  ("nesting", "options", "platform"),
  [*product(NESTINGS, ["plain", "masked"], ["cpu", "cuda"])],
  others=[("plain", "plain", "cpu")],
)
def test_a_jacobian_equals_that_of_autodiff(cell, nesting, options, platform):
  with traced_for(platform):
    found = jacobian(cell, nesting, options, Explicit())
  assert worst(found, by_autodiff(cell, nesting, options)) < 1e-12


@pytest.mark.parametrize("cell", [lstm, gru])
def test_the_rows_of_a_jacobian_share_the_gates(cell, key):
  """A copy of the gates for each row would need 17 times as much or more."""
  params = cell.init(key, 8, 32)
  state = cell.initial_state(params, (1,))
  xs = jax.random.normal(key, (200, 1, 8))

  def reserved(adjoint, compiled=lambda f: f):
    def last(state):
      return unroll(cell, params, state, xs, adjoint=adjoint)[0].h[0]

    program = jax.jit(jax.jacrev(compiled(last))).lower(state).compile()
    return program.memory_analysis().temp_size_in_bytes

  autodiff = reserved(Autodiff())
  assert reserved(Explicit()) < autodiff
  assert reserved(Explicit(), jax.jit) < autodiff


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("cell", [lstm, gru])
def test_the_gates_of_each_first_state_take_the_place_of_its_x_w_x(
  cell, nested, key
):
  """The rows share x W_x, but have gates of their own."""
  rows, steps, batch, hidden = 8, 200, 4, 32
  params = cell.init(key, 8, hidden)
  state = cell.initial_state(params, (batch,))
  xs = jax.random.normal(key, (steps, batch, 8))

  def gradient(state):
    def loss(state):
      return (unroll(cell, params, state, xs)[1] ** 2).sum()

    return jax.grad(loss)(state)

  states = jax.tree.map(lambda s: jnp.stack(rows * [s]), state)
  mapped = jax.vmap(gradient)
  if nested:
    states = jax.tree.map(lambda s: s.reshape(2, -1, *s.shape[1:]), states)
    mapped = jax.vmap(mapped)
  compiled = jax.jit(mapped).lower(states).compile()
  size = 4 * rows * steps * batch * hidden  # bytes
  # 7 times; with x W_x beside the gates, 9 (GRU) or 10.
  assert compiled.memory_analysis().temp_size_in_bytes < 8 * size
