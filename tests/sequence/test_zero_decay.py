"""A linear recurrence some of whose decays λ are exactly 0."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import Autodiff, Explicit, unroll
from lstm_jax.cells.affine import as_row, total
from lstm_jax.cells.cell import one_step
from lstm_jax.cells.platform import traced_for
from lstm_jax.cells.rnn import RNNState
from lstm_jax.sequence.linear import linear_scan
from tests.draws import B, D, H, T, weighed, worst
from tests.sequence.test_other_cells import CellOfFunctions


class LeakyParams(NamedTuple):
  w_x: jax.Array  # [D, D], whose shape tells `unroll` D
  decay: jax.Array  # [D]


def leaky_cell():
  """Return a user's cell: h' = λ ⊙ h + x, with λ a weight."""

  def initial_state(params, batch_shape=()):
    return RNNState(jnp.zeros((*batch_shape, len(params.decay))))

  def recur(params, state, ax):
    decay = as_row(params.decay, ax)
    return RNNState(decay * state.h + ax), ax, (state.h,)

  def recur_backward(params, ax, residuals, d_state):
    (dh_next,) = d_state
    decay = as_row(params.decay, ax)
    return RNNState(dh_next * decay), dh_next, dh_next * residuals[0]

  def parameter_gradients(params, x, h, residuals, da, ddecay):
    return LeakyParams(jnp.zeros_like(params.w_x), total(ddecay)), da

  def project(params, x):
    return x

  parts = project, recur, recur_backward, parameter_gradients
  steps = one_step(initial_state, *parts)
  return CellOfFunctions(
    None,  # init: the tests make the weights
    initial_state,
    *parts,
    *steps,
    takes_tokens=False,
    linear_recurrence=True,
  )


@pytest.mark.exhaustive
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_decay_of_zero_has_its_second_order_gradient(device, key):
  """Where λ is 0, `linear_scan` must drop a state only if it is not finite."""
  cell = leaky_cell()
  draw = np.random.default_rng(0).normal
  params = LeakyParams(jnp.zeros((D, D)), jnp.array([0.0, 0.5, 0.0, 1.0]))
  state, xs = RNNState(jnp.asarray(draw(size=(B, D)))), draw(size=(T, B, D))

  def second(adjoint):
    def first(params):
      f = weighed(partial(unroll, cell, adjoint=adjoint), key)
      return (jax.grad(f)(params, state, jnp.asarray(xs)).decay ** 2).sum()

    return jax.grad(first)(params).decay

  expected = second(Autodiff())
  with traced_for(device):
    found = second(Explicit())
  assert (expected != 0).all()
  assert worst(found, expected) < 1e-12 * abs(expected).max()


@pytest.mark.everyday(1)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("reverse", [False, True])
def test_decays_of_zero_have_the_gradient_of_a_loop(device, reverse):
  """dλ is the state before times the cotangent after, also where λ is 0."""
  draw = np.random.default_rng(0)
  decay = draw.uniform(0.3, 0.9, (15, B, H))
  decay[draw.integers(15, size=(2, B)), np.arange(B)] = 0
  arrays = decay, draw.normal(size=(15, B, H)), draw.normal(size=(B, H))

  def by_loop(decay, increment, state):
    states = [state]
    for t in range(15)[:: -1 if reverse else 1]:
      states.append(decay[t] * states[-1] + increment[t])
    return jnp.stack(states[1:])[:: -1 if reverse else 1]

  def gradients(scan):
    return jax.jit(jax.grad(lambda *xs: (scan(*xs) ** 2).sum(), (0, 1, 2)))

  arrays = tuple(map(jnp.asarray, arrays))
  expected = gradients(by_loop)(*arrays)
  with traced_for(device):
    found = gradients(partial(linear_scan, reverse=reverse))(*arrays)
  assert worst(found, expected) < 1e-12
