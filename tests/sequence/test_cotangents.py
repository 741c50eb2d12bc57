"""The cotangent of every state of a sequence: `state_cotangents`."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import lstm, unroll
from lstm_jax.sequence import state_cotangents
from lstm_jax.sequence.linear import is_linear
from lstm_jax.testing.mutation import plant, terms
from tests.contract import CELLS, NAMES, TABLE, TOKEN_CELLS, each_cell
from tests.draws import B, D, T, arguments, normal_like, worst


@cache  # one program for the tests of a cell
def by_autodiff(cell):
  """Return a function of (params, state, xs, d_last).

  It adds zeros to each of the T + 1 states, and returns the gradient with
  respect to these zeros, by autodiff.
  """

  def loss(added, params, state, xs, d_last):
    def body(state, inputs):
      x, here = inputs
      after = cell.forward(params, state, x)[0]
      return jax.tree.map(jnp.add, after, here), None

    first = jax.tree.map(lambda s, a: s + a[0], state, added)
    rest = jax.tree.map(lambda a: a[1:], added)
    last, _ = jax.lax.scan(body, first, (xs, rest))
    products = jax.tree.map(lambda a, b: jnp.sum(a * b), last, d_last)
    return sum(jax.tree.leaves(products))

  def gradient(params, state, *others):
    nothing = jax.tree.map(lambda s: jnp.zeros((T + 1, *s.shape)), state)
    return jax.grad(loss)(nothing, params, state, *others)

  return jax.jit(gradient)


@pytest.mark.everyday(2)
@each_cell("batch", [(B,), (), (2, B)], others=[(B,)])
def test_every_cotangent_is_the_gradient_for_that_state(cell, batch, key):
  params, state, xs = arguments(cell, key, batch=batch)
  d_last = normal_like(jax.random.key(1), state)
  found = state_cotangents(cell, params, state, xs, d_last)
  assert found.h.shape == (T + 1, *state.h.shape)
  assert worst(found, by_autodiff(cell)(params, state, xs, d_last)) < 1e-12


@CELLS
def test_the_first_row_is_the_gradient_of_unroll_and_the_last_is_d_last(
  cell, key
):
  params, state, xs = arguments(cell, key)
  d_last = normal_like(jax.random.key(1), state)
  found = state_cotangents(cell, params, state, xs, d_last)

  @jax.jit
  def of_unroll(params, state, xs, d_last):
    _, vjp = jax.vjp(lambda s: unroll(cell, params, s, xs)[0], state)
    return vjp(d_last)[0]

  found = jax.tree.map(np.asarray, found)
  expected = of_unroll(params, state, xs, d_last)
  assert worst(jax.tree.map(lambda d: d[0], found), expected) < 1e-12
  assert worst(jax.tree.map(lambda d: d[-1], found), d_last) == 0


@TOKEN_CELLS
def test_tokens_have_the_cotangents_of_one_hot_rows(cell, key):
  params, state, _ = arguments(cell, key)
  d_last = normal_like(jax.random.key(1), state)
  tokens = jax.random.randint(key, (T, B), 0, D)
  rows = jax.nn.one_hot(tokens, D, dtype=jnp.float64)
  a, b = (
    state_cotangents(cell, params, state, xs, d_last) for xs in (tokens, rows)
  )
  assert worst(a, b) < 1e-12


@pytest.mark.exhaustive
@NAMES
def test_planted_errors_of_the_recurrence_are_caught(name, key):
  """Each term of the backward in `planted` is scaled by 1.01, one by one."""
  cell = TABLE[name].cell
  params, state, xs = arguments(cell, key)
  d_last = normal_like(jax.random.key(1), state)
  expected = by_autodiff(cell)(params, state, xs, d_last)
  names = "dh", "dc", "dn", "dp", "da", "dc_sum", "dn_sum"
  # A name that is assigned twice has the terms da#1 and da#2, and their parts.
  planted = [t for t in terms(cell) if t.partition("#")[0] in names]
  assert any(t.partition("#")[0] == "dh" for t in planted)
  if is_linear(cell):
    planted = ["dh"]  # da reaches dh through W_h, which these cells do not have

  def error(cell):
    with jax.disable_jit():  # each term would have a program of its own
      found = state_cotangents(cell, params, state, xs, d_last)
    return worst(found, expected)

  assert error(cell) < 1e-12
  for term in planted:
    assert error(plant(cell, term)) > 1e-4, term


def test_a_state_of_none_is_zero(key):
  params, state, xs = arguments(lstm, key)
  d_last = normal_like(jax.random.key(1), state)
  zero = lstm.initial_state(params, (B,))
  found, expected = (
    state_cotangents(lstm, params, first, xs, d_last) for first in (None, zero)
  )
  assert worst(found, expected) == 0


def test_cotangents_have_the_dtypes_of_the_state(key):
  params, state, xs = arguments(lstm, key)
  d_last = normal_like(jax.random.key(1), state)
  expected = state_cotangents(lstm, params, state, xs, d_last)
  narrow = jax.tree.map(lambda x: x.astype(jnp.float32), (state, d_last))
  with jax.numpy_dtype_promotion("standard"):
    found = state_cotangents(lstm, params, narrow[0], xs, narrow[1])
  assert {x.dtype for x in found} == {jnp.dtype(jnp.float32)}
  wide = jax.tree.map(lambda x: x.astype(float), found)
  assert worst(wide, expected) < 1e-5


def test_error_messages_name_what_does_not_fit(key):
  params, state, xs = arguments(lstm, key)
  narrow = state._replace(c=state.c.astype(jnp.float32))
  # T, B, D, H are 5, 3, 4, 6 in the messages.
  for message, changes in (
    (
      "xs must have at least one step (T ≥ 1), got (0, 3, 4)",
      {"xs": xs[:0]},
    ),
    ("xs must be inputs [5, 3, 4], got (5, 3, 3)", {"xs": xs[..., :3]}),
    ("state.c must be [3, 6], got (2, 6)", {"state": cut(state)}),
    ("d_last must be of type LSTMState, got tuple", {"d_last": tuple(state)}),
    (
      "d_last.c must be float64 [3, 6], got float64 (2, 6)",
      {"d_last": cut(state)},
    ),
    (
      "d_last.c must be float64 [3, 6], got float32 (3, 6)",
      {"d_last": narrow},
    ),
  ):
    given = {"state": state, "xs": xs, "d_last": state} | changes
    with pytest.raises(ValueError) as error:
      state_cotangents(lstm, params, **given)
    assert str(error.value) == message


def cut(state):
  return state._replace(c=state.c[:2])
