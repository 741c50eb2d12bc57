"""In a step, a state of None is the zero state."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import gru, lstm
from lstm_jax.cells.cell import one_step
from lstm_jax.sequence import wrappers
from tests.contract import CELLS, TOKEN_CELLS
from tests.draws import B, D, H, arguments, weighed, worst


def assert_none_is_zero(cell, key, params, zeros, x, *extras):
  """Check that None and a state of zeros give the same value and gradient.

  This checks `step`, and `forward`, which JAX differentiates.
  """
  steps = cell.step, lambda *args: cell.forward(*args)[0]
  losses = [weighed(lambda p, s, f=f: f(p, s, x, *extras), key) for f in steps]

  @jax.jit
  def gradients(*args):
    return [jax.value_and_grad(loss)(*args) for loss in losses]

  found = gradients(params, None)
  # They are two programs, which XLA may round differently: jax 0.12.1 does.
  assert worst(found, gradients(params, zeros)) < 1e-15
  for _, gradient in found:
    assert any(np.any(leaf) for leaf in gradient)


@pytest.mark.everyday(1)
@CELLS
@pytest.mark.parametrize("batch", [(), (B,)])
def test_no_state_is_the_zero_state(cell, batch, key):
  params, _, xs = arguments(cell, key, batch=batch)
  zeros = cell.initial_state(params, batch)
  assert_none_is_zero(cell, key, params, zeros, xs[0])


@pytest.mark.everyday(1)
@TOKEN_CELLS
def test_no_state_is_the_zero_state_for_tokens(cell, key):
  params, *_ = arguments(cell, key)
  tokens = jnp.array([D - 1, 0, 2])
  zeros = cell.initial_state(params, tokens.shape)
  assert_none_is_zero(cell, key, params, zeros, tokens)


@pytest.mark.everyday(1)
@pytest.mark.parametrize(
  ("wrapper", "extra"),
  [
    ("masked", np.array([True, False, True])),
    ("resettable", np.array([True, False, True])),
    ("zoneout", lstm.LSTMState(np.full((1, H), 0.1), np.full((1, H), 0.2))),
    ("state_dropout", np.full((1, H), 0.5)),
  ],
)
def test_no_state_is_the_zero_state_of_a_wrapped_cell(wrapper, extra, key):
  params, _, xs = arguments(lstm, key)
  zeros = lstm.initial_state(params, (B,))
  wrapped = getattr(wrappers, wrapper)(lstm)
  assert_none_is_zero(wrapped, key, params, zeros, xs[0], extra)


def test_a_step_without_a_state_checks_its_other_arguments(key):
  params, _, xs = arguments(lstm, key)
  for weights, x, message in (
    (gru.init(key, D, H), xs[0], "^params must be LSTMParams, got GRUParams$"),
    (params._replace(w_h=params.b), xs[0], "^weights do not fit each other"),
    (params, xs[0, 0, 0], rf"^x must be inputs \[{D}\], got \(\)"),
  ):
    with pytest.raises(ValueError, match=message):
      lstm.step(weights, None, x)


def test_initial_state_gets_arrays_in_place_of_numbers():
  class Params(NamedTuple):
    w_x: jax.Array
    scale: Any  # may be a number

  class State(NamedTuple):
    h: jax.Array

  def initial_state(params, batch_shape):
    shape = *batch_shape, params.w_x.shape[1]
    return State(jnp.zeros(shape, params.scale.dtype))

  def recur(params, state, ax):
    return State(params.scale * state.h + ax), ax, ()

  forward, _, step = one_step(
    initial_state, lambda params, x: x @ params.w_x, recur, None, None
  )
  params, x = Params(jnp.ones((D, H)), 0.5), jnp.ones((B, D))
  for state in (None, State(jnp.zeros((B, H)))):
    for after in (step(params, state, x), forward(params, state, x)[0]):
      assert (after.h == D).all()
