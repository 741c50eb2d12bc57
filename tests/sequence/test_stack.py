"""Stacks of layers equal their layers one by one; what a stack refuses."""

import re
from functools import partial
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import (
  Autodiff,
  Directions,
  gru,
  init_stack,
  initial_stack_state,
  lstm,
  regularize,
  rnn,
  unroll,
  unroll_both,
  unroll_stack,
)
from tests.contract import REPRESENTATIVE_CELLS
from tests.draws import (
  B,
  D,
  H,
  T,
  gaussian,
  largest,
  normal_like,
  weighed,
  worst,
)


def arguments(cell, key):
  """Return three layers of different sizes, their states and their inputs."""
  return gaussian(key, cell, shapes(cell))


def shapes(cells):
  """Return the shapes of `arguments`, for a cell or for one per layer."""

  def make(key):
    params = init_stack(cells, key, D, (H, 7, 2), dtype=jnp.float64)
    states = initial_stack_state(cells, params, (B,))
    return params, states, jnp.zeros((T, B, D), jnp.float64)

  return jax.eval_shape(make, jax.random.key(0))


@REPRESENTATIVE_CELLS
def test_a_stack_equals_its_layers_by_hand(cell, key):
  def by_hand(params, states, xs):
    last = []
    for layer, state in zip(params, states, strict=True):
      state, xs = unroll(cell, layer, state, xs, adjoint=Autodiff())
      last.append(state)
    return tuple(last), xs

  def stacked(params, states, xs):
    return unroll_stack(cell, params, states, xs)

  args = arguments(cell, key)
  a, b = (
    jax.jit(jax.value_and_grad(weighed(f, key), (0, 1, 2)))(*args)
    for f in (stacked, by_hand)
  )
  size = largest(b)
  assert size < 100  # Gaussian weights give gradients of up to 55 (min_gru)
  assert worst(a, b) < 1e-12 * max(size, 1)


@pytest.mark.everyday(1)
@pytest.mark.parametrize("both", [False, True], ids=["one", "both"])
def test_each_layer_has_its_own_zoneout_and_state_dropout(both, key):
  params = init_stack(lstm, key, D, (H, 2), bidirectional=both, dtype=float)
  states = initial_stack_state(lstm, params, (B,))
  xs = normal_like(key, np.zeros((T, B, D)))

  def drawn(seed, state):
    key_kept, key_dropped = jax.random.split(jax.random.key(seed))
    rates = lstm.LSTMState(0.3, 0.5)
    kept = regularize.zoneout(key_kept, state, T, rates)
    return kept, regularize.factors(key_dropped, state.h.shape, 0.4, float)

  if both:
    kept, factors = [], []
    for k, state in enumerate(states):
      forward, backward = map(drawn, (2 * k, 2 * k + 1), state)
      kept.append(Directions(forward[0], backward[0]))
      factors.append(Directions(forward[1], backward[1]))
  else:
    kept, factors = zip(*map(drawn, range(2), states), strict=True)
  run = unroll_both if both else unroll
  low, hs = run(
    lstm, params[0], states[0], xs, zoneout=kept[0], state_dropout=factors[0]
  )
  top, hs = run(lstm, params[1], states[1], hs, zoneout=kept[1])
  found = unroll_stack(
    lstm,
    params,
    states,
    xs,
    zoneout=kept,
    state_dropout=(factors[0], None),
  )
  assert worst(found, ((low, top), hs)) == 0
  plain = unroll_stack(lstm, params, states, xs)
  assert worst(found, plain) > 1e-3
  message = "^zoneout must have one element per layer, got 1 for 2 layers$"
  with pytest.raises(ValueError, match=message):
    unroll_stack(lstm, params, states, xs, zoneout=kept[:1])


@REPRESENTATIVE_CELLS
def test_a_stack_needs_layers_and_a_state_for_each(cell, key):
  params, states, xs = arguments(cell, key)
  none = "^params must have at least one layer, got none$"
  with pytest.raises(ValueError, match=none):
    unroll_stack(cell, (), states, xs)
  with pytest.raises(ValueError, match=none):
    unroll_stack(cell, (), None, xs)
  with pytest.raises(ValueError, match=none):
    initial_stack_state(cell, ())
  two = "^states must have one element per layer, got 2 for 3 layers$"
  with pytest.raises(ValueError, match=two):
    unroll_stack(cell, params, states[:2], xs)


def test_what_is_given_per_layer_is_a_list_or_a_tuple(key):
  params = jax.eval_shape(lambda: init_stack(lstm, key, D, (H, 7)))
  states = jax.eval_shape(lambda: initial_stack_state(lstm, params, (2,)))
  xs = jnp.ones((T, 2, D))

  def refused(name, kind):
    one = "must be a list or tuple with one element per layer, got"
    return pytest.raises(ValueError, match=f"^{name} {one} {kind}$")

  # B is 2 here: an array [2, H] has as many rows as there are layers.
  factors = regularize.factors(key, (2, H), 0.5)
  with refused("state_dropout", type(factors).__name__):
    unroll_stack(lstm, params, None, xs, state_dropout=factors)
  with refused("zoneout", "float"):
    unroll_stack(lstm, params, None, xs, zoneout=0.1)
  with refused("states", "generator"):
    unroll_stack(lstm, params, (state for state in states), xs)
  for layers, kind in (
    (params[0], "LSTMParams"),
    (dict(enumerate(params)), "dict"),
    (iter(params), "tuple_iterator"),
    (Directions(*params), "Directions"),
  ):
    with refused("params", kind):
      unroll_stack(lstm, layers, None, xs)
    with refused("params", kind):
      initial_stack_state(lstm, layers)
  with refused("cell", "int"):
    unroll_stack(5, params, None, xs)
  with refused("cell", "dict"):
    init_stack({0: lstm, 1: gru}, key, D, H)


def test_a_stack_of_different_cells_equals_its_layers_by_hand(key):
  cells = gru, lstm, rnn
  args = normal_like(key, shapes(cells))

  def by_hand(params, states, xs):
    last = []
    for cell, layer, state in zip(cells, params, states, strict=True):
      state, xs = unroll(cell, layer, state, xs, adjoint=Autodiff())
      last.append(state)
    return tuple(last), xs

  a, b = (
    jax.jit(jax.value_and_grad(weighed(f, key), (0, 1, 2)))(*args)
    for f in (partial(unroll_stack, cells), by_hand)
  )
  assert worst(a, b) < 1e-12
  message = "^cell must have one element per layer, got 2 for 3 layers$"
  with pytest.raises(ValueError, match=message):
    unroll_stack(cells[:2], *args)


@pytest.mark.parametrize("both", [False, True], ids=["one", "both"])
@pytest.mark.parametrize("time_major", [True, False])
def test_states_of_none_are_zero_states(both, time_major, key):
  cells = lstm, gru
  params = init_stack(cells, key, D, H, bidirectional=both, dtype=float)
  states = initial_stack_state(cells, params, (B,))
  xs = normal_like(key, np.zeros((T, B, D) if time_major else (B, T, D)))
  run = partial(unroll_stack, cells, params, time_major=time_major)
  assert worst(run(None, xs=xs), run(states, xs=xs)) == 0
  if both:
    run = partial(unroll_both, lstm, params[0], time_major=time_major)
    assert worst(run(None, xs=xs), run(states[0], xs=xs)) == 0


def test_no_two_layers_or_directions_are_one_draw(key):
  # Both layers have 2H inputs: the same draw would give the same weights.
  layers = init_stack(rnn, key, 2 * H, H, num_layers=2, bidirectional=True)
  weights = [w for pair in layers for p in pair for w in (p.w_x, p.w_h)]
  # Two layers, two directions, and w_x and w_h in each.
  assert len({np.asarray(w).tobytes() for w in weights}) == 2 * 2 * 2


def test_one_hidden_size_is_that_of_every_layer(key):
  expected = init_stack(lstm, key, D, (H, H, H))
  assert worst(init_stack(lstm, key, D, H, num_layers=3), expected) == 0
  assert worst(init_stack((lstm,) * 3, key, D, H), expected) == 0
  assert worst(init_stack(lstm, key, D, [H] * 3, num_layers=3), expected) == 0
  with pytest.raises(ValueError, match="init_stack needs num_layers, or a seq"):
    init_stack(lstm, key, D, H)
  for wrong in (0, 2.0, "2", [2], np.timedelta64(2, "s")):
    message = re.escape(f"num_layers must be an integer ≥ 1, got {wrong!r}")
    with pytest.raises(ValueError, match=f"^{message}$"):
      init_stack(lstm, key, D, H, num_layers=wrong)
  with pytest.raises(
    ValueError,
    match=r"layers must be the same, got .*'num_layers': 2, 'hidden_sizes': 3",
  ):
    init_stack(lstm, key, D, (H, H, H), num_layers=2)
  with pytest.raises(ValueError, match="'hidden_sizes': 3, 'cells': 2"):
    init_stack((lstm, gru), key, D, (H, H, H))
  with pytest.raises(
    ValueError, match="hidden_size must be an integer ≥ 1, got 0"
  ):
    init_stack(lstm, key, D, (H, 0))
  for wrong, num_layers in (
    *(((6, 5.7), 2), ((True, True), 2), ("65", 2)),
    *(([[6, 5]], None), ([[6], [5]], None)),
  ):
    message = (
      f"hidden_sizes must be an integer, or one per layer, got {wrong!r}"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
      init_stack(lstm, key, D, wrong, num_layers=num_layers)


def test_an_element_that_is_no_cell_is_named(key):
  params = init_stack(lstm, key, D, (H, H))
  message = "^cell must be lstm, gru or another with a function init, got "
  for wrong, name in ((None, "NoneType"), ("lstm", "str")):
    with pytest.raises(ValueError, match=f"{message}{name}$"):
      init_stack([lstm, wrong], key, D, H)
    with pytest.raises(ValueError, match=f"got {name}, which has no initial_s"):
      initial_stack_state([lstm, wrong], params)
  without_state = SimpleNamespace(init=lstm.init, project=lstm.project)
  message = "^cell must be .* with a function initial_state, got SimpleN.*$"
  with pytest.raises(ValueError, match=message):
    init_stack(without_state, key, D, H, num_layers=1)
  message = "^params must be GRUParams, got LSTMParams$"
  with pytest.raises(ValueError, match=message):
    initial_stack_state([lstm, gru], params)


def test_a_list_of_cells_needs_no_more_functions_than_a_single_cell(key):
  class Forward(NamedTuple):
    init: object = lstm.init
    initial_state: object = lstm.initial_state
    project: object = lstm.project
    forward: object = lstm.forward

  params = init_stack(Forward(), key, D, H, num_layers=1)
  states = initial_stack_state(Forward(), params, (B,))
  xs = jnp.ones((T, B, D), jnp.float32)

  def run(cell):
    return unroll_stack(cell, params, states, xs, adjoint=Autodiff())

  assert worst(run(Forward()), run([Forward()])) == 0


def test_inputs_without_time_steps_are_refused_with_skip_and_lengths_too(key):
  params = init_stack(lstm, key, H, H, num_layers=1)
  options = {"skip": True, "lengths": np.int32(3)}
  with pytest.raises(ValueError, match=r"^xs must be inputs .*, got \(6,\)$"):
    unroll_stack(lstm, params, None, np.ones(H), **options)
