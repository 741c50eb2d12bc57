"""Masks, resets, zoneout, state dropout, direction and chunks of `unroll`."""

import re
from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lstm_jax import Autodiff, Explicit, Step, lstm, unroll
from lstm_jax.sequence.primal import ScanOptions
from lstm_jax.sequence.scan import scan_sequence
from tests.contract import REPRESENTATIVE_CELLS, TABLE, each_cell
from tests.draws import B, D, H, T, arguments, largest, weighed, worst
from tests.gradients import value_and_gradient
from tests.sequence.options import FEATURES, MASK, RESET

EXHAUSTIVE = pytest.mark.exhaustive


# All features but `reverse` wrap a cell, and all only call its functions. So
# for cells other than the LSTM it is enough to test all features together, and
# zoneout by rates, as at evaluation: "all" has zoneout by a mask.
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
  """The programs are equal, as with `chunk=None`: a small T·B is one chunk."""
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


@REPRESENTATIVE_CELLS
def test_a_feature_that_is_off_costs_nothing(cell, key):
  """Without options, and with a small T·B, `unroll` is lowered to the scan."""
  args = arguments(cell, key)

  def program(run):
    # Arguments, since as constants they may be written in another order.
    def gradient(args, cotangents):
      return jax.vjp(run, *args)[1](cotangents)

    outputs = jax.eval_shape(run, *args)
    text = jax.jit(gradient).lower(args, outputs).as_text().removesuffix("}\n")
    # JAX 0.10 may write a function of its own, such as `clip`, several times.
    return {*re.sub(r"@(\w+?)_\d+\b", r"@\1", text).split("  func.func ")}

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
    "implementation": None,
  }
  assert off.keys() == unroll.__kwdefaults__.keys()
  assert program(partial(unroll, cell)) == bare
  assert program(partial(unroll, cell, **off)) == bare
  on = {
    "mask": np.ones((T, B), bool),
    "lengths": np.full(B, T),
    "reset": np.zeros((T, B), bool),
    "zoneout": type(args[1])(*(False for _ in args[1])),
    "state_dropout": jnp.ones(1),
  }
  assert on.keys() | {"reverse"} == FEATURES["all"](cell).keys()
  left = {"time_major", "adjoint", "compute_dtype", "implementation"}
  assert off.keys() - left == on.keys() | {"reverse"}  # a new option: add it
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


@pytest.mark.exhaustive
@REPRESENTATIVE_CELLS
def test_second_order_gradients_of_all_features_equal_autodiff(cell, key):
  args, options = arguments(cell, key), FEATURES["all"](cell)

  def second(adjoint):
    f = partial(unroll, cell, adjoint=adjoint, **options)
    first = jax.grad(weighed(f, key), (0, 1, 2))
    return jax.jit(jax.grad(weighed(first, key), (0, 1, 2)))(*args)

  expected = second(adjoint=Autodiff())
  size = largest(expected)
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
def test_bfloat16_products_of_each_feature_have_a_small_error(cell, feature):
  key = jax.random.key(1)  # with key 0, a layer norm divides by a small number
  # Divided by 8, so that no gate saturates.
  exact = jax.tree.map(lambda x: np.asarray(x) / 8, arguments(cell, key))
  args = jax.tree.map(np.float32, exact)
  options = FEATURES[feature](cell)
  options["compute_dtype"] = jnp.bfloat16
  _, found = value_and_gradient(cell, args, **options)
  options["compute_dtype"] = None
  _, expected = value_and_gradient(cell, exact, **options)
  errors = []
  for primal, a, b in zip(
    *map(jax.tree.leaves, (args, found, expected)), strict=True
  ):
    assert a.dtype == primal.dtype
    a, b = np.asarray(a), np.asarray(b)
    errors.append(np.linalg.norm(a - b) / np.linalg.norm(b))
  assert 1e-3 < np.max(errors) < 2e-2  # with float32 products: 1e-6


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
    lambda x: np.asarray(x, dtype),
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
  scale = max(1, *(np.abs(x).max() for x in jax.tree.leaves(expected)))
  # A layer norm that divides by a small number magnifies float32's rounding.
  tolerance = 1e-12 if dtype == jnp.float64 else 2e-4
  assert worst(found, expected) < tolerance * scale
