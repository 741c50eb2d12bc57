"""Masks, lengths and resets of `unroll`: what they hide and refuse."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lstm_jax import Autodiff, Explicit, Step, lstm, unroll
from tests.contract import CELLS, REPRESENTATIVE_CELLS, REPRESENTATIVES, TABLE
from tests.draws import B, D, H, T, arguments, normal_like, worst
from tests.gradients import value_and_gradient
from tests.sequence.options import FEATURES, LENGTHS, MASK, RESET


def loop(cell, params, state, xs, mask, reset, zeros, kept=None, factors=None):
  """Return the last states and outputs, by a loop over rows and time steps.

  Args:
    cell: the cell.
    params: its weights.
    state: [B, ...].
    xs: [T, B, D].
    mask: [T, B].
    reset: [T, B].
    zeros: the zero state of one row.
    kept: which units zoneout keeps, a state of [T, B, ...].
    factors: of the dropout of h, [T, B, H].
  """
  step = jax.jit(cell.step)
  last, outputs = [], np.zeros((T, *state.h.shape))
  for b in range(B):
    s = jax.tree.map(lambda leaf: leaf[b], state)  # noqa: B023
    for t in range(T):
      if not mask[t, b]:
        continue
      if reset[t, b]:
        s = zeros
      dropped = s if factors is None else s._replace(h=s.h * factors[t, b])
      new = step(params, dropped, xs[t, b])
      if kept is not None:
        at = jax.tree.map(lambda k: k[t, b], kept)  # noqa: B023
        new = jax.tree.map(jnp.where, at, s, new)
      s = new
      outputs[t, b] = s.h
    last.append(s)
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *last), outputs


@CELLS
def test_masks_lengths_and_resets_equal_a_loop_over_steps(cell, key):
  params, state, xs = arguments(cell, key)
  mask = MASK & (np.arange(T)[:, None] < LENGTHS)
  zeros = jax.tree.map(jnp.zeros_like, jax.tree.map(lambda s: s[0], state))
  expected = loop(cell, params, state, xs, mask, RESET, zeros)
  found = unroll(
    cell, params, state, xs, mask=MASK, lengths=LENGTHS, reset=RESET
  )
  assert worst(found, expected) < 1e-12


@REPRESENTATIVE_CELLS
def test_all_features_but_reverse_equal_a_loop_over_steps(cell, key):
  params, state, xs = arguments(cell, key)
  options = FEATURES["all"](cell) | {"reverse": False}
  mask = MASK & (np.arange(T)[:, None] < LENGTHS)
  zeros = cell.initial_state(params, ())
  kept, factors = options["zoneout"], options["state_dropout"].astype(float)
  assert factors.shape[:2] == (T, B) and kept.h.shape[:2] == (T, B)
  expected = loop(cell, params, state, xs, mask, RESET, zeros, kept, factors)
  assert worst(unroll(cell, params, state, xs, **options), expected) < 1e-12


@REPRESENTATIVE_CELLS
def test_lengths_equal_a_mask(cell, key):
  args = arguments(cell, key)
  mask = np.arange(T)[:, None] < LENGTHS
  a = value_and_gradient(cell, args, lengths=LENGTHS)
  assert worst(a, value_and_gradient(cell, args, mask=mask)) == 0
  both = value_and_gradient(cell, args, lengths=LENGTHS, mask=MASK)
  assert worst(both, value_and_gradient(cell, args, mask=MASK & mask)) == 0


@pytest.mark.parametrize("batch", [(), (2, B)], ids=str)
def test_lengths_may_have_any_number_of_axes(batch, key):
  args = arguments(lstm, key, batch=batch)
  lengths = np.arange(2, 2 + np.prod(batch, dtype=int)).reshape(batch) % T
  mask = np.stack([t < lengths for t in range(T)])
  found = unroll(lstm, *args, lengths=lengths)
  assert worst(found, unroll(lstm, *args, mask=mask)) == 0
  assert worst(found, unroll(lstm, *args)) > 1e-3


def test_lengths_may_have_a_dtype_that_cannot_count_the_steps(key):
  params, state, _ = arguments(lstm, key)
  xs = jax.random.normal(key, (200, B, D))
  lengths = np.array([100, 127, 3])
  expected = unroll(lstm, params, state, xs, lengths=lengths)
  for dtype in (np.int8, np.uint8):
    found = unroll(lstm, params, state, xs, lengths=lengths.astype(dtype))
    assert worst(found, expected) == 0


def test_lengths_outside_of_the_sequence_count_as_0_and_as_all_of_it(key):
  args = arguments(lstm, key)
  for options in ({}, {"reverse": True}):
    expected = unroll(lstm, *args, lengths=np.array([0, T, 2]), **options)
    for lengths in (
      np.array([-3, T + 2, 2]),
      np.array([3 - 2**32, 2**32 + 3, 2]),  # 3 and 3 in 32 bits
      np.array([0, 2**32 - 1, 2], np.uint32),  # −1 as an int32
    ):
      found = unroll(lstm, *args, lengths=lengths, **options)
      assert worst(found, expected) == 0


def test_without_x64_too_a_length_may_be_any_integer(key):
  args = jax.tree.map(jnp.float32, arguments(lstm, key))
  with jax.enable_x64(False):
    expected = unroll(lstm, *args, lengths=[0, 0, T])
    for least, most in ((3 - 2**32, 2**32 + 3), (-(2**63), 2**63 - 1)):
      lengths = np.array([-1, least, most])
      assert worst(unroll(lstm, *args, lengths=lengths), expected) == 0
    for lengths in (
      np.array([0, 0, 2**64 - 1], np.uint64),
      [-(2**70), np.int64(-1), 2**63],
    ):
      assert worst(unroll(lstm, *args, lengths=lengths), expected) == 0
    traced = jax.jit(lambda a, b: unroll(lstm, *args, lengths=[a, 0, b]))
    assert worst(traced(0, T), expected) == 0


def test_lengths_that_are_masked_or_ragged_are_refused(key):
  args = arguments(lstm, key)
  for lengths in (np.ma.array([0, 1, 2], mask=[0, 1, 0]), [[0], [1, 2], [0]]):
    with pytest.raises(ValueError, match=r"^lengths must be integers "):
      unroll(lstm, *args, lengths=lengths)


def test_a_state_of_integers_is_refused(key):
  params, state, xs = arguments(lstm, key)
  whole = state._replace(h=np.zeros(state.h.shape, int))
  with pytest.raises(ValueError, match=r"state\.h must be floats, got int64"):
    unroll(lstm, params, whole, xs)


@REPRESENTATIVE_CELLS
def test_a_row_of_length_zero_keeps_its_state(cell, key):
  params, state, xs = arguments(cell, key)
  last, hs = unroll(cell, params, state, xs, lengths=np.zeros(B, int))
  assert worst(last, state) == 0 and not hs.any()


@REPRESENTATIVE_CELLS
def test_each_row_is_reversed_within_its_own_length(cell, key):
  params, state, xs = arguments(cell, key)
  last, hs = unroll(cell, params, state, xs, lengths=LENGTHS, reverse=True)
  for b, n in enumerate(LENGTHS):
    row = jax.tree.map(lambda leaf: leaf[b], (last, state))  # noqa: B023
    if n == 0:
      assert worst(*row) == 0 and not hs[:, b].any()
      continue
    expected = unroll(cell, params, row[1], xs[:n, b][::-1])
    assert worst((row[0], hs[:n, b][::-1]), expected) < 1e-12
    assert not hs[n:, b].any()


@REPRESENTATIVE_CELLS
@pytest.mark.parametrize("adjoint", [Explicit(), Step(), Autodiff()], ids=str)
def test_masked_inputs_reach_no_output_or_gradient(cell, adjoint, key):
  params, state, xs = arguments(cell, key)
  options = {"mask": MASK, "adjoint": adjoint}
  clean = value_and_gradient(cell, (params, state, xs), **options)
  for value in (np.nan, np.inf, 1e300):
    dirty = jnp.where(MASK[..., None], xs, value)
    found = value_and_gradient(cell, (params, state, dirty), **options)
    assert worst(found, clean) == 0
    _, (_, _, d_xs) = found
    assert not d_xs[~MASK].any()


def test_masked_tokens_reach_no_output_or_gradient(key):
  params, state, _ = arguments(lstm, key)
  tokens = jax.random.randint(key, (T, B), 0, D)
  dirty = jnp.where(MASK, tokens, -(2**30))
  a, b = (
    value_and_gradient(lstm, (params, state, x), mask=MASK)
    for x in (tokens, dirty)
  )
  assert worst(a, b) == 0


@REPRESENTATIVE_CELLS
def test_a_reset_separates_two_sequences(cell, key):
  params, state, xs = arguments(cell, key)
  reset = np.zeros((T, B), bool)
  reset[2] = True
  last, hs = unroll(cell, params, state, xs, reset=reset)
  _, before = unroll(cell, params, state, xs[:2])
  zeros = cell.initial_state(params, (B,))
  expected, after = unroll(cell, params, zeros, xs[2:])
  assert worst((last, hs), (expected, jnp.concatenate([before, after]))) < 1e-12
  _, (_, d_state, _) = value_and_gradient(
    cell, (params, state, xs), reset=np.ones((T, B), bool)
  )
  assert all(not leaf.any() for leaf in d_state)


@REPRESENTATIVE_CELLS
def test_batch_major_equals_time_major_with_axes_exchanged(cell, key):
  params, state, xs = arguments(cell, key)
  last, hs = unroll(cell, params, state, xs, mask=MASK, reset=RESET)
  found = unroll(
    cell,
    params,
    state,
    xs.swapaxes(0, 1),
    mask=MASK.T,
    reset=RESET.T,
    time_major=False,
  )
  assert worst(found, (last, hs.swapaxes(0, 1))) == 0


@given(
  st.sampled_from(REPRESENTATIVES),
  st.lists(st.booleans(), min_size=T * B, max_size=T * B),
  st.lists(st.booleans(), min_size=T * B, max_size=T * B),
)
def test_any_masks_and_resets_have_the_gradient_of_autodiff(name, mask, reset):
  cell = TABLE[name].cell
  args = arguments(cell, jax.random.key(0))
  mask, reset = (np.reshape(m, (T, B)) for m in (mask, reset))
  a, b = (
    value_and_gradient(cell, args, adjoint=adjoint, mask=mask, reset=reset)
    for adjoint in (Explicit(), Autodiff())
  )
  assert worst(a, b) < 1e-12


def test_error_messages_name_what_does_not_fit(key):
  params, state, xs = arguments(lstm, key)
  run = partial(unroll, lstm, params, state, xs)
  # T, B, D, H are 5, 3, 4, 6 in the messages.
  order = "; inputs [B, T, D] need time_major=False, and [T, B, D] need True"
  for name, value, message in (
    ("mask", MASK.astype(float), "be bool [5, 3], got float64 (5, 3)"),
    ("reset", RESET.T, f"be bool [5, 3], got bool (3, 5){order}"),
    ("lengths", np.arange(T), f"be integers [3], got int64 (5,){order}"),
    ("lengths", np.ones(B), "be integers [3], got float64 (3,)"),
    ("zoneout", {"h": True, "c": True}, "be of type LSTMState, got dict"),
    *(
      ("state_dropout", np.ones(shape), f"broadcast to [5, 3, 6], got {shape}")
      for shape in ((T, T, B, H), (T, B, H, 1))
    ),
  ):
    with pytest.raises(ValueError) as error:
      run(**{name: value})
    assert str(error.value) == f"{name} must {message}"
  message = r"^zoneout\.h must broadcast to \[5, 3, 6\], got \(5, 3, 4\)$"
  with pytest.raises(ValueError, match=message):
    run(zoneout=normal_like(key, type(state)(xs, xs)))
  message = r"^zoneout\.c must broadcast to \[5, 3, 6\], got None$"
  with pytest.raises(ValueError, match=message):
    run(zoneout=lstm.LSTMState(0.1, None))
  message = r"^zoneout\.c must broadcast to \[5, 3, 6\], got str: "
  with pytest.raises(ValueError, match=message):
    run(zoneout=lstm.LSTMState(0.1, "0.1"))
  message = (
    "^state_dropout must be an array of factors, such as regularize.factors "
    "returns, got one number; a rate is not a factor$"
  )
  for rate in (0.1, np.float64(0.1), jnp.float64(0.1)):
    with pytest.raises(ValueError, match=message):
      run(state_dropout=rate)
  message = r"^state_dropout must broadcast to \[5, 3, 6\], got str: "
  with pytest.raises(ValueError, match=message):
    run(state_dropout="0.1")
  with pytest.raises(ValueError, match=r"^zoneout\.h must be real, got com"):
    run(zoneout=lstm.LSTMState(0.3j, 0.2))


def test_the_lengths_of_an_empty_batch_may_be_an_empty_list(key):
  params, state, xs = arguments(lstm, key, batch=(0,))
  _, hs = unroll(lstm, params, state, xs, lengths=[])
  assert hs.shape == (T, 0, H)
