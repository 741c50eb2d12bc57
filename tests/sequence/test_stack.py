import jax
import jax.numpy as jnp
import pytest

from lstm_jax import unroll, unroll_stack
from lstm_jax.sequence import init_stack, initial_stack_state
from tests.contract import TABLE
from tests.draws import B, D, H, T, normal_like, weighed, worst

CELLS = pytest.mark.parametrize(
  "cell", [row.cell for row in TABLE.values()], ids=TABLE.keys()
)


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


@CELLS
def test_a_stack_needs_layers_and_a_state_for_each(cell, key):
  params, states, xs = arguments(cell, key)
  with pytest.raises(ValueError, match=r"at least one layer .* 0 layers and 3"):
    unroll_stack(cell, (), states, xs)
  with pytest.raises(ValueError, match="one state a layer, got 3 layers and 2"):
    unroll_stack(cell, params, states[:2], xs)
