"""Dropout, DropConnect and zoneout: what is drawn, and with which rate."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import Directions, gru, lstm, regularize, rnn, slstm, unroll
from tests.draws import B, D, H, T, arguments, worst

RATE = 0.3


def test_dropout_keeps_the_expectation_and_drops_at_the_rate(key):
  x = jnp.full((200, 500), 2.0)
  dropped = np.asarray(regularize.dropout(key, x, RATE))
  assert set(np.unique(dropped)) == {0.0, 2.0 / (1 - RATE)}
  # 100,000 draws: the share's standard deviation is 0.0015, and 5 are allowed.
  assert abs((dropped == 0).mean() - RATE) < 5 * 0.0015
  assert abs(dropped.mean() - 2) < 5 * 0.0015 * 2 / (1 - RATE)


def test_locked_dropout_is_the_same_at_every_step(key):
  x = jnp.ones((T, B, H))
  dropped = regularize.locked_dropout(key, x, RATE)
  assert (dropped == dropped[:1]).all()
  assert not (dropped[0] == dropped[0, :1]).all()  # but not in every row
  free = regularize.dropout(key, x, RATE)
  assert not (free == free[:1]).all()


def test_locked_dropout_keeps_the_expectation_and_drops_at_the_rate(key):
  x = jnp.full((2, 200, 500), 2.0)
  dropped = np.asarray(regularize.locked_dropout(key, x, RATE))[0]
  assert set(np.unique(dropped)) == {0.0, 2.0 / (1 - RATE)}
  # 100,000 draws: the share's standard deviation is 0.0015, and 5 are allowed.
  assert abs((dropped == 0).mean() - RATE) < 5 * 0.0015


@pytest.mark.everyday(1)
@pytest.mark.parametrize("cell", [lstm, slstm], ids=["lstm", "slstm"])
def test_drop_connect_drops_recurrent_weights_only(cell, key):
  params, _, _ = arguments(cell, key)
  dropped = regularize.drop_connect(key, params, RATE)
  assert worst(dropped[::2], params[::2]) == 0  # w_x and b
  zero = dropped.w_h == 0
  assert 0 < zero.mean() < 1 and not (zero == zero[:1]).all()
  assert worst(dropped.w_h, jnp.where(zero, 0, params.w_h / (1 - RATE))) < 1e-12


def test_drop_connect_refuses_recurrent_weights_in_a_vector(key):
  params = rnn.init(key, D, H)
  message = "^drop_connect needs a cell with a matrix w_h, got RNNParams$"
  with pytest.raises(ValueError, match=message):
    regularize.drop_connect(key, params._replace(w_h=params.b), RATE)


def test_drop_connect_has_no_gradient_for_dropped_weights(key):
  params, state, xs = arguments(lstm, key)

  def loss(params):
    return unroll(lstm, regularize.drop_connect(key, params, RATE), state, xs)[
      1
    ].sum()

  gradient = jax.grad(loss)(params).w_h
  dropped = regularize.drop_connect(key, params, RATE).w_h == 0
  assert ((gradient == 0) == dropped).all()


def test_zoneout_draws_at_each_rate_and_step(key):
  state = lstm.LSTMState(jnp.zeros((40, 50)), jnp.zeros((40, 50)))
  kept = regularize.zoneout(key, state, 30, lstm.LSTMState(0.1, 0.5))
  for found, rate in zip(kept, (0.1, 0.5), strict=True):
    assert found.shape == (30, 40, 50) and found.dtype == bool
    # The share of 30 · 40 · 50 draws; 5 standard deviations are allowed.
    assert abs(found.mean() - rate) < 5 * (rate * (1 - rate) / 60_000) ** 0.5
    assert not (found == found[:1]).all()
  kept = regularize.zoneout(key, state, 30, lstm.LSTMState(0.5, 0.5))
  # Of two independent draws, half of the units are equal.
  assert abs((kept.h == kept.c).mean() - 0.5) < 5 * 0.5 / 60_000**0.5


@pytest.mark.exhaustive
def test_zoneout_in_expectation_is_the_mean_over_draws_of_one_step(key):
  params, state, xs = arguments(lstm, key, batch=())
  rates = lstm.LSTMState(0.2, 0.4)
  mean, _ = unroll(lstm, params, state, xs[:1], zoneout=rates)
  draw = jax.vmap(lambda k: regularize.zoneout(k, state, 1, rates))
  drawn = draw(jax.random.split(key, 20_000))
  each = jax.vmap(
    lambda keep: unroll(lstm, params, state, xs[:1], zoneout=keep)[0]
  )(drawn)
  for found, expected in zip(each, mean, strict=True):
    deviation = found.std(0) / 20_000**0.5
    assert (abs(found.mean(0) - expected) < 5 * deviation + 1e-12).all()


@pytest.mark.parametrize(
  "draw",
  [
    lambda k, r: regularize.dropout(k, jnp.ones((T, B)), r),
    lambda k, r: regularize.locked_dropout(k, jnp.ones((T, B)), r),
    lambda k, r: regularize.factors(k, (T, B), r),
    lambda k, r: regularize.drop_connect(k, lstm.init(k, D, H), r).w_h,
    lambda k, r: (
      regularize.zoneout(
        k, lstm.LSTMState(*[jnp.ones((B, H))] * 2), T, lstm.LSTMState(r, r)
      ).h
    ),
  ],
)
def test_equal_keys_draw_the_same_and_rates_are_checked(draw, key):
  assert (draw(key, RATE) == draw(key, RATE)).all()
  assert not (draw(key, RATE) == draw(jax.random.key(1), RATE)).all()
  for rate in (-0.1, 1.0, float("nan"), None, "0.1", np.complex64(0.5)):
    message = r"^a rate must be a number in \[0, 1\), got "
    message += re.escape(str(rate)) + "$"
    with pytest.raises(ValueError, match=message):
      draw(key, rate)


def test_a_rate_near_one_leaves_no_nan_in_16_bits(key):
  for rate in (0.9999, 1 - 1e-8):  # 1e-8 is 0 in float16
    found = regularize.factors(key, (64,), rate, jnp.float16)
    assert found.dtype == jnp.float16 and not jnp.isnan(found).any()
    assert not found[~jax.random.bernoulli(key, 1 - rate, (64,))].any()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.float32])
def test_factors_are_1_over_1_minus_the_rate_rounded_once(dtype, key):
  for rate in (0.15, 0.3, 0.45, 0.85):
    found = regularize.factors(key, (64,), rate, dtype)
    nearest = float(np.asarray(1 / (1 - rate), dtype))
    assert set(found.tolist()) == {0, nearest}, rate


def test_locked_dropout_needs_a_time_axis(key):
  for rate in (0.0, RATE):
    with pytest.raises(
      ValueError, match=r"^xs must be \[T, \.\.\.\], got a sc"
    ):
      regularize.locked_dropout(key, jnp.ones(()), rate)


def test_a_rate_of_zero_changes_nothing(key):
  x = jnp.ones((T, B, H))
  assert regularize.dropout(key, x, 0.0) is x
  assert regularize.locked_dropout(key, x, 0.0) is x
  params, state, _ = arguments(lstm, key)
  assert regularize.drop_connect(key, params, 0.0).w_h is params.w_h
  assert (regularize.factors(key, (B, H), 0.0) == 1).all()
  kept = regularize.zoneout(key, state, T, lstm.LSTMState(0.0, 0.0))
  assert not kept.h.any() and not kept.c.any()


def test_the_rates_of_zoneout_must_have_the_type_of_the_state(key):
  state = gru.initial_state(gru.init(key, D, H), (B,))
  for rates in (lstm.LSTMState(0.1, 0.2), rnn.RNNState(0.1)):
    message = f"^rates must be of type GRUState, got {type(rates).__name__}$"
    with pytest.raises(ValueError, match=message):
      regularize.zoneout(key, state, T, rates)


@pytest.mark.parametrize("state", [None, (1.0, 2.0)])
def test_zoneout_is_drawn_for_the_state_of_a_cell(state, key):
  message = f"^state must be that of a cell.*, got {type(state).__name__}$"
  with pytest.raises(ValueError, match=message):
    regularize.zoneout(key, state, T, lstm.LSTMState(0.1, 0.2))


def test_zoneout_is_drawn_for_one_direction_at_a_time(key):
  state = lstm.initial_state(lstm.init(key, D, H), (B,))
  message = r"^state\.forward must be an array, got LSTMState$"
  with pytest.raises(ValueError, match=message):
    regularize.zoneout(key, Directions(state, state), T, Directions(0.1, 0.1))


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_a_rate_may_be_a_narrow_number(dtype, key):
  rate = dtype(0.0625)  # exact
  shape = (40, 50)
  found = regularize.factors(key, shape, rate)
  assert (found == regularize.factors(key, shape, 0.0625)).all()
  state = rnn.initial_state(rnn.init(key, 1, 50), (1,))
  found, expected = (
    regularize.zoneout(key, state, 40, type(state)(r)) for r in (rate, 0.0625)
  )
  assert (found.h == expected.h).all()
