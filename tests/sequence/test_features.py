"""Masks, resets, zoneout, state dropout, direction and chunks of `unroll`."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lstm_jax import Autodiff, Explicit, Step, lstm, unroll
from lstm_jax.cells.cell import output_size
from lstm_jax.sequence import regularize, wrappers
from lstm_jax.sequence.primal import ScanOptions
from lstm_jax.sequence.scan import scan_sequence
from lstm_jax.testing import gradcheck, plant, terms
from tests.contract import (
  CELLS,
  REPRESENTATIVE_CELLS,
  REPRESENTATIVES,
  TABLE,
  each_cell,
)
from tests.draws import B, D, H, T, arguments, normal_like, weighed, worst
from tests.gradients import value_and_gradient

EXHAUSTIVE = pytest.mark.exhaustive
DRAW = np.random.default_rng(3)
MASK = DRAW.random((T, B)) < 0.6
RESET = DRAW.random((T, B)) < 0.4
LENGTHS = np.array([T, 0, 2])


def zoneout_mask(cell):
  state = cell.initial_state(cell.init(jax.random.key(0), D, H), (B,))
  rates = type(state)(*(0.3 for _ in state))
  return regularize.zoneout(jax.random.key(1), state, T, rates)


def zoneout_rates(cell):
  state = cell.initial_state(cell.init(jax.random.key(0), D, H), (B,))
  return type(state)(*(0.25 for _ in state))


def dropout_factors(cell, *axes):
  size = output_size(cell, cell.init(jax.random.key(0), D, H))
  return regularize.factors(jax.random.key(2), (*axes, size), 0.5)


FEATURES = {
  "mask": lambda cell: {"mask": MASK},
  "lengths": lambda cell: {"lengths": LENGTHS},
  "reset": lambda cell: {"reset": RESET},
  "reverse": lambda cell: {"reverse": True},
  "zoneout": lambda cell: {"zoneout": zoneout_mask(cell)},
  "expected zoneout": lambda cell: {"zoneout": zoneout_rates(cell)},
  "state dropout": lambda cell: {"state_dropout": dropout_factors(cell, B)},
  "all": lambda cell: {
    "mask": MASK,
    "lengths": LENGTHS,
    "reset": RESET,
    "reverse": True,
    "zoneout": zoneout_mask(cell),
    "state_dropout": dropout_factors(cell, T, B),
  },
}
# The wrappers only call a cell's functions: for cells other than the LSTM, the
# features together are enough, and zoneout by rates, as at evaluation.
TOGETHER = "expected zoneout", "all"
EACH = each_cell("feature", FEATURES, others=TOGETHER)


@pytest.mark.everyday(2)
@EACH
def test_every_adjoint_has_the_gradient_of_autodiff(cell, feature, key):
  args, options = arguments(cell, key), FEATURES[feature](cell)
  a, b, c = (
    value_and_gradient(cell, args, adjoint=adjoint, **options)
    for adjoint in (Explicit(), Step(), Autodiff())
  )
  assert worst(a, c) < 1e-12
  assert worst(b, c) < 1e-12


@pytest.mark.everyday(3)
@each_cell(
  ("feature", "chunk"),
  [*product(["reset", "reverse", "all"], [1, 2])],
  others=[("all", 2)],
)
def test_chunks_change_nothing(cell, feature, chunk, key):
  args, options = arguments(cell, key), FEATURES[feature](cell)
  expected = value_and_gradient(cell, args, **options)
  found = value_and_gradient(
    cell, args, adjoint=Explicit(chunk=chunk), **options
  )
  assert worst(found, expected) < 1e-12


@pytest.mark.everyday(1)
@each_cell(
  ("feature", "chunk"),
  [*product(FEATURES, [2, T])],
  others=[("all", 2)],
  everyday=[("all", 2), ("all", T)],
)
def test_recomputing_changes_nothing(cell, feature, chunk, key):
  args, options = arguments(cell, key), FEATURES[feature](cell)
  expected = value_and_gradient(cell, args, **options)
  adjoint = Explicit("recompute", chunk)
  found = value_and_gradient(cell, args, adjoint=adjoint, **options)
  assert worst(found, expected) < 1e-12


@REPRESENTATIVE_CELLS
@pytest.mark.parametrize("residuals", ["gates", "recompute"])
def test_a_chunk_longer_than_the_sequence_is_the_sequence(cell, residuals, key):
  """`chunk=None` is too, with so few rows: the programs are equal."""
  args, options = arguments(cell, key), FEATURES["all"](cell)

  def program(chunk, residuals=residuals):
    adjoint = Explicit(residuals, chunk)
    f = weighed(partial(unroll, cell, adjoint=adjoint, **options), key)
    return str(jax.make_jaxpr(jax.grad(f, (0, 1, 2)))(*args))

  whole = program(T)
  assert program(T + 1) == whole
  assert program(None) == whole
  assert program(2) != whole
  assert (program(T, "gates") == whole) == (residuals == "gates")


@pytest.mark.everyday(1)
@pytest.mark.parametrize("feature", ["reverse", "all"])
@pytest.mark.parametrize("residuals", ["gates", "recompute"])
@pytest.mark.parametrize("chunk", [None, 2])
def test_the_features_work_on_tokens(feature, residuals, chunk, key):
  params, state, _ = arguments(lstm, key)
  args = params, state, jax.random.randint(key, (T, B), 0, D)
  options = FEATURES[feature](lstm)
  adjoint = Explicit(residuals, chunk)
  a = value_and_gradient(lstm, args, adjoint=adjoint, **options)
  b = value_and_gradient(lstm, args, adjoint=Autodiff(), **options)
  assert worst(a, b) < 1e-12


def loop(cell, params, state, xs, mask, reset, zeros, kept=None, factors=None):
  """Return the last states and outputs, by a loop over rows and time steps.

  Args:
    cell: the cell.
    params: its weights.
    state: [B, ...].
    xs: [T, B, D].
    mask: [T, B].
    reset: [T, B].
    zeros: a state of one row.
    kept: which units zoneout keeps, a state of [T, B, ...].
    factors: of the dropout of h, [T, B, H].
  """
  last, outputs = [], np.zeros((T, *state.h.shape))
  for b in range(B):
    s = jax.tree.map(lambda leaf: leaf[b], state)  # noqa: B023
    for t in range(T):
      if not mask[t, b]:
        continue
      if reset[t, b]:
        s = zeros
      dropped = s if factors is None else s._replace(h=s.h * factors[t, b])
      new = cell.step(params, dropped, xs[t, b])
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
def test_all_features_together_equal_a_loop_over_steps(cell, key):
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
    assert not found[1][2][~MASK].any()


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
  d_state = value_and_gradient(
    cell, (params, state, xs), reset=np.ones((T, B), bool)
  )[1][1]
  assert all(not leaf.any() for leaf in d_state)


@REPRESENTATIVE_CELLS
def test_a_feature_that_is_off_costs_nothing(cell, key):
  """By default, `unroll` compiles to the bare scan over the whole sequence."""
  args = arguments(cell, key)

  def program(run):
    f = jax.grad(weighed(run, key), (0, 1, 2))
    return jax.jit(f).lower(*args).as_text()

  bare = program(lambda *args: scan_sequence(cell, ScanOptions(), *args, ()))
  off = {
    "mask": None,
    "lengths": None,
    "reset": None,
    "zoneout": None,
    "state_dropout": None,
    "time_major": True,
    "reverse": False,
    "adjoint": Explicit(residuals="gates", chunk=None),
    "compute_dtype": None,
  }
  assert program(partial(unroll, cell)) == bare
  assert program(partial(unroll, cell, **off)) == bare
  on = {
    "mask": np.ones((T, B), bool),
    "lengths": np.full(B, T),
    "reset": np.zeros((T, B), bool),
    "zoneout": type(args[1])(*(False for _ in args[1])),
    "state_dropout": jnp.ones(1),
  }
  for name, value in on.items():
    assert program(partial(unroll, cell, **{name: value})) != bare, name


@REPRESENTATIVE_CELLS
def test_features_that_change_nothing_agree_to_rounding(cell, key):
  args = arguments(cell, key)
  plain = value_and_gradient(cell, args)
  no_zoneout = type(args[1])(*(False for _ in args[1]))
  for options in (
    {"mask": np.ones((T, B), bool)},
    {"lengths": np.full(B, T)},
    {"reset": np.zeros((T, B), bool)},
    {"zoneout": no_zoneout},
    {"state_dropout": jnp.ones(1)},
    {"adjoint": Explicit(chunk=T)},
  ):
    found = value_and_gradient(cell, args, **options)
    assert worst(found, plain) < 1e-14 * H


@REPRESENTATIVE_CELLS
def test_zoneout_of_everything_leaves_the_state_unchanged(cell, key):
  params, state, xs = arguments(cell, key)
  every = type(state)(*(True for _ in state))
  last, hs = unroll(cell, params, state, xs, zoneout=every)
  assert worst(last, state) == 0
  assert worst(hs, jnp.stack([state.h] * T)) == 0


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


@pytest.mark.exhaustive
@REPRESENTATIVE_CELLS
def test_second_order_gradients_equal_autodiff(cell, key):
  args, options = arguments(cell, key), FEATURES["all"](cell)

  def second(adjoint):
    f = partial(unroll, cell, adjoint=adjoint, **options)
    first = jax.grad(weighed(f, key), (0, 1, 2))
    return jax.jit(jax.grad(weighed(first, key), (0, 1, 2)))(*args)

  expected = second(adjoint=Autodiff())
  size = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
  assert worst(second(adjoint=Explicit(chunk=2)), expected) < 1e-12 * size
  found = second(adjoint=Explicit("recompute", 2))
  assert worst(found, expected) < 1e-12 * size


@REPRESENTATIVE_CELLS
def test_vmap_over_all_arguments_equals_a_loop(cell, key):
  """vmap over weights, states, inputs and masks together."""
  many = [arguments(cell, k) for k in jax.random.split(key, 2)]
  masks = jnp.stack([MASK, ~MASK])
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *many)

  scalar = weighed(
    lambda mask, *args: unroll(cell, *args, mask=mask, reset=RESET), key
  )
  f = jax.grad(scalar, (1, 2, 3))

  alone = [jax.jit(f)(mask, *a) for mask, a in zip(masks, many, strict=True)]
  expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone)
  assert worst(jax.jit(jax.vmap(f))(masks, *stacked), expected) < 1e-12


@pytest.mark.everyday(3)
@EACH
def test_bfloat16_products_have_a_small_error_and_keep_dtypes(cell, feature):
  key = jax.random.key(1)  # with key 0, a layer norm divides by a small number
  exact = jax.tree.map(lambda x: x / 8, arguments(cell, key))
  args = jax.tree.map(lambda x: x.astype(jnp.float32), exact)
  options = FEATURES[feature](cell)
  options["compute_dtype"] = jnp.bfloat16
  _, found = value_and_gradient(cell, args, **options)
  options["compute_dtype"] = None
  _, expected = value_and_gradient(cell, exact, **options)
  for primal, a, b in zip(
    *map(jax.tree.leaves, (args, found, expected)), strict=True
  ):
    assert a.dtype == primal.dtype
    a, b = np.asarray(a), np.asarray(b)
    assert np.linalg.norm(a - b) < 2e-2 * np.linalg.norm(b)


@given(
  st.sampled_from(REPRESENTATIVES),
  st.lists(st.booleans(), min_size=T * B, max_size=T * B),
  st.lists(st.booleans(), min_size=T * B, max_size=T * B),
)
def test_any_pattern_of_masks_and_resets(name, mask, reset):
  cell = TABLE[name].cell
  args = arguments(cell, jax.random.key(0))
  mask, reset = (np.reshape(m, (T, B)) for m in (mask, reset))
  a, b = (
    value_and_gradient(cell, args, adjoint=adjoint, mask=mask, reset=reset)
    for adjoint in (Explicit(), Autodiff())
  )
  assert worst(a, b) < 1e-12


@EXHAUSTIVE
@settings(max_examples=40)
@given(st.data())
def test_any_combination_has_the_gradient_of_autodiff(data):
  """Cells, sizes, dtypes, directions, masks, lengths, resets and adjoints."""
  draw = data.draw
  cell = TABLE[draw(st.sampled_from(list(TABLE)), "cell")].cell
  steps, batch, size, hidden = draw(st.tuples(*[st.integers(1, 4)] * 4))
  key = jax.random.key(draw(st.integers(0, 99), "seed"))
  dtype = draw(st.sampled_from([jnp.float32, jnp.float64]), "dtype")
  params, state, xs = jax.tree.map(
    lambda x: x.astype(dtype),
    arguments(cell, key, steps=steps, batch=(batch,), size=size, hidden=hidden),
  )

  def flags(name):
    row = st.lists(st.booleans(), min_size=batch, max_size=batch)
    rows = st.lists(row, min_size=steps, max_size=steps)
    drawn = draw(st.none() | rows, name)
    return None if drawn is None else np.array(drawn)

  lengths = st.lists(st.integers(0, steps), min_size=batch, max_size=batch)
  lengths = draw(st.none() | lengths, "lengths")
  options = {
    "mask": flags("mask"),
    "reset": flags("reset"),
    "lengths": None if lengths is None else np.array(lengths),
    "reverse": draw(st.booleans(), "reverse"),
  }
  adjoint = Explicit(
    residuals=draw(st.sampled_from(["gates", "recompute"]), "residuals"),
    chunk=draw(st.none() | st.integers(1, 5), "chunk"),
  )
  args = params, state, xs
  found = value_and_gradient(cell, args, adjoint=adjoint, **options)
  expected = value_and_gradient(cell, args, adjoint=Autodiff(), **options)
  scale = max(1, *(float(abs(x).max()) for x in jax.tree.leaves(expected)))
  # A layer norm that divides by a small number magnifies float32's rounding.
  tolerance = 1e-12 if dtype == jnp.float64 else 2e-4
  assert worst(found, expected) < tolerance * scale


@REPRESENTATIVE_CELLS
def test_the_step_of_each_wrapper_has_the_gradient_of_autodiff(cell, key):
  """Each by itself, as it is used without `unroll`."""
  args, options = arguments(cell, key), FEATURES["all"](cell)
  extras = {
    "masked": MASK[0],
    "resettable": RESET[1],
    "zoneout": jax.tree.map(lambda k: k[1], options["zoneout"]),
    "state_dropout": options["state_dropout"][1],
  }
  for flags in (MASK[0], RESET[1]):
    assert 0 < flags.sum() < len(flags)

  def run(step, extra, args):
    params, state, xs = args
    state = step(params, state, xs[0], extra)  # the state before is not zero
    return step(params, state, xs[1], extra)

  for name, extra in extras.items():
    wrapped = getattr(wrappers, name)(cell)
    assert wrapped.takes_tokens == cell.takes_tokens
    report = gradcheck(
      partial(run, wrapped.step, extra),
      partial(run, lambda *a, w=wrapped: w.forward(*a)[0], extra),
      args,
      key,
      max_coordinates=0,
      num_directions=0,
    )
    assert (
      np.max([t.explicit_autodiff.relative for t in report.tensors]) < 1e-12
    )


@pytest.mark.everyday(2)
@pytest.mark.parametrize("term", terms(wrappers))
def test_every_error_planted_in_the_wrappers_is_caught(term, key):
  planted = plant(wrappers, term)
  args, options = arguments(lstm, key), FEATURES["all"](lstm)
  rates, factors = options["zoneout"], options["state_dropout"]

  def run(wraps, adjoint, params, state, xs):
    cell = wraps.saving_h(lstm)
    cell = wraps.masked(
      wraps.resettable(wraps.zoneout(wraps.state_dropout(cell)))
    )
    step = cell.step if adjoint == "step" else lambda *a: cell.forward(*a)[0]
    for t in range(T):
      rate = jax.tree.map(lambda k: k[t], rates)  # noqa: B023
      state = step(params, state, xs[t], MASK[t], RESET[t], rate, factors[t])
    return state

  def gradient(wraps, adjoint):
    f = weighed(partial(run, wraps, adjoint), key)
    with jax.disable_jit():  # each term would have a program of its own
      return jax.grad(f, (0, 1, 2))(*args)

  expected = gradient(wrappers, "autodiff")
  assert worst(gradient(planted, "step"), expected) > 1e-4
  assert worst(gradient(wrappers, "step"), expected) < 1e-12


def test_the_shares_of_a_zoneout_step_may_be_numbers(key):
  params, state, xs = arguments(lstm, key)
  step = wrappers.zoneout(lstm).step

  def results(shares):
    f = weighed(lambda *args: step(*args, shares), key)
    return jax.value_and_grad(f, (0, 1, 2))(params, state, xs[0])

  rates = zoneout_rates(lstm)
  expected = results(jax.tree.map(jnp.asarray, rates))
  assert worst(results(rates), expected) == 0


def test_error_messages_name_what_does_not_fit(key):
  params, state, xs = arguments(lstm, key)
  run = partial(unroll, lstm, params, state, xs)
  with pytest.raises(ValueError, match=r"mask must be bool \[5, 3\], got flo"):
    run(mask=MASK.astype(float))
  with pytest.raises(ValueError, match=r"reset must be bool \[5, 3\], got boo"):
    run(reset=RESET.T)
  with pytest.raises(ValueError, match=r"lengths must be integers \[3\], got"):
    run(lengths=np.arange(T))
  with pytest.raises(ValueError, match=r"lengths must be integers \[3\], got"):
    run(lengths=np.ones(B))
  with pytest.raises(
    ValueError, match="zoneout must be of type LSTMState, got dict"
  ):
    run(zoneout={"h": True, "c": True})
  with pytest.raises(
    ValueError, match=r"zoneout\.h must broadcast to \[5, 3, 6\]"
  ):
    run(zoneout=normal_like(key, type(state)(xs, xs)))
  for shape in ((T, T, B, H), (T, B, H, 1)):
    with pytest.raises(ValueError, match=r"state_dropout must broadcast to"):
      run(state_dropout=jnp.ones(shape))
  message = (
    "^state_dropout must be an array of factors, such as regularize.factors "
    "returns, got one number; a rate is not a factor$"
  )
  for rate in (0.1, np.float64(0.1), jnp.float64(0.1)):
    with pytest.raises(ValueError, match=message):
      run(state_dropout=rate)


@pytest.mark.parametrize("adjoint", [Explicit(), Step(), Autodiff()], ids=str)
def test_no_gradient_flows_to_zoneout_and_state_dropout(adjoint, key):
  params, state, xs = arguments(lstm, key)

  def loss(rates, factor):
    options = {"zoneout": rates, "state_dropout": factor, "adjoint": adjoint}
    return unroll(lstm, params, state, xs, **options)[1].sum()

  rates, factor = jax.tree.map(lambda x: 0.3 + 0 * x, state), jnp.full(H, 0.7)
  gradient = jax.jit(jax.grad(loss, (0, 1)))(rates, factor)
  assert not any(leaf.any() for leaf in jax.tree.leaves(gradient))
