"""`grad` of `vmap` equals JAX's own gradient, for several mapped arrays."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import Autodiff, Explicit, lstm, min_gru, slstm, unroll
from tests.draws import arguments, normal_like, weighed, worst

WHOLE, *CHUNKS = Explicit(), Explicit(chunk=2), Explicit("recompute", 2)
KEY = jax.random.key(0)


def mapped_arrays(cell, steps, batch):
  """Yield (its name, make_gradient, args) for each array that `vmap` maps.

  These are w_x of the weights, the states, xs and a mask. xs come twice: with a
  `spmd_axis_name`, JAX maps `unroll` itself, and the axis is no batch axis.

  `vmap` maps over as many values as the batch has rows. Where there are also as
  many time steps, exchanged axes raise no error: they give wrong numbers.
  """
  args = arguments(cell, KEY, steps=steps, batch=(batch,))
  arrays = *args, jax.random.bernoulli(KEY, 0.7, (steps, batch))
  leaves = jax.tree_util.tree_leaves_with_path(arrays)
  for place, (path, leaf) in enumerate(leaves):
    name = jax.tree_util.keystr(path)
    if not name.endswith((".w_h", ".b")):
      shifted = np.stack([np.roll(leaf, k) for k in range(batch)])
      values = jnp.asarray(shifted)
      map_one = partial(unroll_over, cell, arrays, place, values)
      yield name, partial(make_gradient, map_one), args
      if name == "[2]":  # xs
        map_named = partial(map_one, spmd_axis_name="data")
        yield "xs, named", partial(make_gradient, map_named), args


def unroll_over(cell, arrays, place, values, adjoint, *args, **options):
  """Return `unroll` mapped over values of one array.

  Args:
    cell: the cell.
    arrays: (params, state, xs, mask); only the mask is read.
    place: the index of that array among the leaves of `arrays`.
    values: its values, along a new first axis.
    adjoint: as in `unroll`.
    *args: (params, state, xs).
    **options: of `jax.vmap`.
  """
  leaves, structure = jax.tree.flatten((*args, arrays[-1]))

  def one(value):
    replaced = [*leaves[:place], value, *leaves[place + 1 :]]
    *args, mask = jax.tree.unflatten(structure, replaced)
    return unroll(cell, *args, mask=mask, adjoint=adjoint)

  return jax.vmap(one, **options)(values)


def make_gradient(map_one, adjoint):
  return jax.grad(weighed(partial(map_one, adjoint), KEY), (0, 1, 2))


@cache  # autodiff's once for all adjoints
def gradients(cell, adjoint):
  """Return the gradient for each mapped array, by its name."""
  return {
    name: jax.jit(make(adjoint))(*args)
    for name, make, args in mapped_arrays(cell, 4, 4)
  }


@cache
def derivatives(cell, adjoint):
  """Return the gradient's derivatives, in forward and in reverse mode.

  There is a pair for each mapped array of the state, by its name. With one time
  step, some results, such as the gates where c is mapped, do not depend on this
  array, so that `aligned` (`sequence.batch_axes`) has to repeat them.
  """
  found = {}
  for name, make, args in mapped_arrays(cell, 1, 2):
    if name.startswith("[1]"):  # the state
      gradient = make(adjoint)
      forward = partial(jax.jvp, gradient)
      reverse = jax.grad(weighed(gradient, KEY), (0, 1, 2))
      both = jax.jit(lambda a, t, f=forward, r=reverse: (f(a, t)[1], r(*a)))
      found[name] = both(args, normal_like(jax.random.key(1), args))
  return found


def error(found, expected):
  """Return the largest difference, over max(1, the largest expected value)."""
  size = max(np.abs(x).max() for x in jax.tree.leaves(expected))
  return worst(found, expected) / max(size, 1)


@pytest.mark.everyday(1)
@pytest.mark.parametrize("adjoint", CHUNKS, ids=str)
@pytest.mark.parametrize("cell", [lstm, min_gru], ids=["lstm", "min_gru"])
def test_grad_of_vmap_over_chunks_equals_autodiff(cell, adjoint):
  expected = gradients(cell, Autodiff())
  for name, found in gradients(cell, adjoint).items():
    assert error(found, expected[name]) < 1e-12, name


@pytest.mark.exhaustive
@pytest.mark.parametrize("adjoint", [WHOLE, CHUNKS[1]], ids=str)
@pytest.mark.parametrize("cell", [lstm, slstm], ids=["lstm", "slstm"])
def test_derivatives_of_grad_of_vmap_equal_autodiff(cell, adjoint):
  expected = derivatives(cell, Autodiff())
  for name, found in derivatives(cell, adjoint).items():
    assert error(found, expected[name]) < 1e-12, name
