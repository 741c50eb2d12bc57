"""`grad` of `vmap`, whichever array is mapped: as JAX's own gradient."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

from lstm_jax import Autodiff, Explicit, lstm, min_gru, slstm, unroll
from tests.draws import arguments, normal_like, weighed, worst

WHOLE, *CHUNKS = Explicit(), Explicit(chunk=2), Explicit("recompute", 2)


def mapped_arrays(cell, key, steps, batch):
  """Yield (its name, make_gradient, args) for each array that `vmap` maps.

  These are w_x of the weights, the states, xs and a mask.

  There are as many mapped values as rows of the batch: where these are as many
  as the time steps too, no shape shows that axes were exchanged.
  """
  args = arguments(cell, key, steps=steps, batch=(batch,))
  arrays = *args, jax.random.bernoulli(key, 0.7, (steps, batch))
  leaves = jax.tree_util.tree_leaves_with_path(arrays)
  for place, (path, leaf) in enumerate(leaves):
    name = jax.tree_util.keystr(path)
    if not name.endswith((".w_h", ".b")):
      shifted = [jnp.roll(leaf, k) for k in range(batch)]
      map_one = partial(unroll_over, cell, arrays, place, jnp.stack(shifted))
      yield name, partial(make_gradient, map_one, key), args


def unroll_over(cell, arrays, place, values, adjoint, *args):
  """Return `unroll` of args and a mask, for each value of one of the arrays."""
  leaves, structure = jax.tree.flatten((*args, arrays[-1]))

  def one(value):
    replaced = [*leaves[:place], value, *leaves[place + 1 :]]
    *args, mask = jax.tree.unflatten(structure, replaced)
    return unroll(cell, *args, mask=mask, adjoint=adjoint)

  return jax.vmap(one)(values)


def make_gradient(map_one, key, adjoint):
  return jax.grad(weighed(partial(map_one, adjoint), key), (0, 1, 2))


def derivatives(gradient, args, key):
  """Return a gradient's derivatives, in forward and in reverse mode."""
  tangents = normal_like(jax.random.key(1), args)
  reverse = jax.grad(weighed(gradient, key), (0, 1, 2))

  def both(*args):
    return jax.jvp(gradient, args, tangents)[1], reverse(*args)

  return jax.jit(both)(*args)


def error(found, expected):
  """Return the largest difference, relative to the largest expected value."""
  size = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(expected))
  return worst(found, expected) / max(size, 1)


@pytest.mark.everyday(1)
@pytest.mark.parametrize("adjoint", CHUNKS, ids=str)
@pytest.mark.parametrize("cell", [lstm, min_gru], ids=["lstm", "min_gru"])
def test_grad_of_vmap_over_chunks_equals_autodiff(cell, adjoint, key):
  for name, gradient, args in mapped_arrays(cell, key, 4, 4):
    expected = jax.jit(gradient(Autodiff()))(*args)
    assert error(jax.jit(gradient(adjoint))(*args), expected) < 1e-12, name


@pytest.mark.exhaustive
@pytest.mark.parametrize("adjoint", [WHOLE, CHUNKS[0]], ids=str)
@pytest.mark.parametrize("cell", [lstm, slstm], ids=["lstm", "slstm"])
def test_derivatives_of_grad_of_vmap_equal_autodiff(cell, adjoint, key):
  """With one time step, some results do not depend on the mapped state."""
  for name, gradient, args in mapped_arrays(cell, key, 1, 2):
    if name.startswith("[1]"):  # the state
      expected, found = (
        derivatives(gradient(each), args, key) for each in (Autodiff(), adjoint)
      )
      assert error(found, expected) < 1e-12, name
