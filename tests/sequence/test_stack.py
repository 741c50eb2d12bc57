import jax
import jax.numpy as jnp
import pytest

from lstm_jax import (
  Directions,
  lstm,
  regularize,
  unroll,
  unroll_both,
  unroll_stack,
)
from lstm_jax.sequence import init_stack, initial_stack_state
from tests.contract import CELLS
from tests.draws import B, D, H, T, normal_like, weighed, worst


def arguments(cell, key):
  """Return three layers, each of another size, and what they read."""
  params = init_stack(cell, key, D, (H, 7, 2), dtype=jnp.float64)
  states = initial_stack_state(cell, params, (B,))
  xs = jnp.zeros((T, B, D), jnp.float64)
  return normal_like(key, (params, states, xs))


@CELLS
def test_a_stack_is_its_layers_by_hand(cell, key):
  def by_hand(params, states, xs):
    last = []
    for layer, state in zip(params, states, strict=True):
      state, xs = unroll(cell, layer, state, xs, vjp="autodiff")
      last.append(state)
    return tuple(last), xs

  def stacked(params, states, xs):
    return unroll_stack(cell, params, states, xs)

  args = arguments(cell, key)
  a, b = (
    jax.jit(jax.value_and_grad(weighed(f, key), (0, 1, 2)))(*args)
    for f in (stacked, by_hand)
  )
  size = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(b))
  assert size < 100  # Gaussian weights in three layers: gradients of 30
  assert worst(a, b) < 1e-12 * max(size, 1)


@pytest.mark.parametrize("both", [False, True], ids=["one", "both"])
def test_each_layer_has_its_own_zoneout_and_state_dropout(both, key):
  params = init_stack(lstm, key, D, (H, 2), bidirectional=both, dtype=float)
  states = initial_stack_state(lstm, params, (B,))
  xs = normal_like(key, jnp.zeros((T, B, D)))

  def drawn(seed, state):
    key_h, key_c = jax.random.split(jax.random.key(seed))
    rates = lstm.LSTMState(0.3, 0.5)
    zoned = regularize.zoneout(key_c, state, T, rates)
    return zoned, regularize.factors(key_h, state.h.shape, 0.4, float)

  if both:
    pairs = [map(drawn, (2 * k, 2 * k + 1), s) for k, s in enumerate(states)]
    kept, dropped = zip(
      *[map(lambda *d: Directions(*d), *pair) for pair in pairs], strict=True
    )
  else:
    kept, dropped = zip(*map(drawn, range(2), states), strict=True)
  read = unroll_both if both else unroll
  low, hs = read(
    lstm, params[0], states[0], xs, zoneout=kept[0], state_dropout=dropped[0]
  )
  top, hs = read(lstm, params[1], states[1], hs, zoneout=kept[1])
  found = unroll_stack(
    lstm,
    params,
    states,
    xs,
    zoneout=kept,
    state_dropout=(dropped[0], None),
    residuals="recompute",
  )
  assert worst(found, ((low, top), hs)) == 0
  plain = unroll_stack(lstm, params, states, xs)
  assert worst(found, plain) > 1e-3
  with pytest.raises(ValueError, match="zoneout must have one element a layer"):
    unroll_stack(lstm, params, states, xs, zoneout=kept[:1])


@CELLS
def test_a_stack_needs_layers_and_a_state_for_each(cell, key):
  params, states, xs = arguments(cell, key)
  with pytest.raises(ValueError, match=r"at least one layer .* 0 layers and 3"):
    unroll_stack(cell, (), states, xs)
  with pytest.raises(ValueError, match="one state a layer, got 3 layers and 2"):
    unroll_stack(cell, params, states[:2], xs)
