"""A message says what was expected and what came, where users go wrong."""

import jax
import jax.numpy as jnp
import pytest

from lstm_jax import (
  Directions,
  gru,
  lstm,
  peephole_lstm,
  rnn,
  unroll,
  unroll_both,
  unroll_stack,
)
from lstm_jax.sequence import state_cotangents
from lstm_jax.testing import plant
from tests.draws import B, D, H, T

KEY = jax.random.key(0)
XS = jnp.ones((T, B, D), jnp.float32)
ORDER = (
  r"; inputs \[B, T, D\] need time_major=False, and \[T, B, D\] need True$"
)


@pytest.mark.parametrize("cell", [lstm, gru, peephole_lstm])
@pytest.mark.parametrize("other", [lstm, gru, rnn, peephole_lstm])
def test_params_of_another_cell_are_named(cell, other):
  params, state = cell.init(KEY, D, H), cell.initial_state
  weights = other.init(KEY, D, H)
  if cell is other:
    assert unroll(cell, weights, None, XS)[1].shape == (T, B, H)
    return
  expected, found = type(params).__name__, type(weights).__name__
  message = rf"^params must be {expected}, got {found}\b"
  calls = (
    lambda: unroll(cell, weights, None, XS),
    lambda: cell.step(weights, state(params, (B,)), XS[0]),
    lambda: state_cotangents(
      cell, weights, state(params, (B,)), XS, state(params, (B,))
    ),
  )
  for call in calls:
    with pytest.raises(ValueError, match=message):
      call()


def test_batch_first_arguments_name_time_major():
  params = lstm.init(KEY, D, H)
  batch_first = jnp.swapaxes(XS, 0, 1)
  state = lstm.initial_state(params, (B,))
  message = r"^xs must be inputs \[3, 3, 4\], got \(3, 5, 4\)" + ORDER
  with pytest.raises(ValueError, match=message):
    unroll(lstm, params, state, batch_first)
  lengths = jnp.full(B, T)
  message = r"^lengths must be integers \[5\], got int\d+ \(3,\)" + ORDER
  with pytest.raises(ValueError, match=message):
    unroll(lstm, params, None, batch_first, lengths=lengths)
  mask = jnp.ones((B, T), bool)
  message = r"^mask must be bool \[5, 3\], got bool \(3, 5\)" + ORDER
  with pytest.raises(ValueError, match=message):
    unroll(lstm, params, None, XS, mask=mask)
  _, hs = unroll(
    lstm, params, state, batch_first, lengths=lengths, time_major=False
  )
  assert hs.shape == (B, T, H)


@pytest.mark.parametrize("xs", [XS[:, 0], XS[:D, 0], jnp.ones(T, jnp.int32)])
def test_batch_first_needs_a_batch(xs):
  params = lstm.init(KEY, D, H)
  calls = (
    lambda: unroll(lstm, params, None, xs, time_major=False),
    lambda: unroll_stack(lstm, [params], None, xs, time_major=False),
    lambda: unroll_both(
      lstm, Directions(params, params), None, xs, time_major=False
    ),
  )
  for call in calls:
    with pytest.raises(
      ValueError, match=r"time_major=False needs xs with a ba"
    ):
      call()


def test_lists_are_arrays():
  params = lstm.init(KEY, D, H)
  _, hs = unroll(lstm, params, None, XS.tolist())
  assert (hs == unroll(lstm, params, None, XS)[1]).all()
  state = lstm.initial_state(params)
  assert lstm.step(params, state, [1.0] * D).h.shape == (H,)


def test_a_planted_cell_takes_the_weights_and_states_of_its_original():
  params = lstm.init(KEY, D, H)
  state = lstm.initial_state(params, (B,))
  _, hs = unroll(lstm, params, state, XS)
  last, planted = unroll(plant(lstm, "dc"), params, state, XS)
  assert (planted == hs).all()
  assert type(last) is lstm.LSTMState
