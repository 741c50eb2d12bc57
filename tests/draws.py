"""Random arguments and cotangents for the tests, and differences of results."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

T, B, D, H = 5, 3, 4, 6  # all different
COTANGENTS = 1  # appended to a seed: else cotangents would equal arguments


def normal_like(key, tree):
  """Return a tree of standard normal arrays, shaped like another tree."""
  return _draw(_seed(key), tree)


def arguments(cell, key, *, steps=T, batch=(B,), size=D, hidden=H):
  """Return (params, state, xs) in float64, all of them `gaussian`.

  A normaliser n of an sLSTM is then made at least 1, as it is after any step.
  """
  sizes = {"steps": steps, "batch": batch, "size": size, "hidden": hidden}
  params, state, xs = gaussian(key, cell, shapes(cell, **sizes))
  return params, normalisable(state), xs


@cache  # a trace of `init` takes 5 ms; x64 is the same in all tests that ask
def shapes(cell, *, steps=T, batch=(B,), size=D, hidden=H, dtype=jnp.float64):
  """Return the shapes of (params, state, xs)."""

  def make(key):
    params = cell.init(key, size, hidden, dtype)
    xs = jnp.zeros((steps, *batch, size), dtype)
    return params, cell.initial_state(params, batch), xs

  return jax.eval_shape(make, jax.random.key(0))


def gaussian(key, cell, tree):
  """Return a tree of Gaussian arrays for a cell, shaped like another tree.

  Their standard deviation is 1, and ¼ for a cell with ReLU: its states have no
  bound, and would grow with every step.
  """
  # `recur` of a `MadeCell` is a `partial` with its activations as keywords.
  activations = getattr(cell.recur, "keywords", {}).values()
  scale = 0.25 if "relu" in str([*activations]) else 1.0
  return _draw(_seed(key), tree, scale)


def normalisable(state):
  """Return a state with 1 + |n| in place of n, if it has a normaliser n."""
  if not hasattr(state, "n"):
    return state
  return state._replace(n=jnp.asarray(1 + np.abs(state.n), state.n.dtype))


def weighed(f, key):
  """Return f reduced to a scalar by a random cotangent on every output."""
  seed = *_seed(key), COTANGENTS

  def scalar(*args):
    outputs = f(*args)
    cotangents = _draw(seed, outputs)
    products = jax.tree.map(lambda a, b: jnp.sum(a * b), outputs, cotangents)
    return sum(jax.tree.leaves(products))

  return scalar


def worst(a, b):
  """Return the largest absolute difference between two trees of arrays.

  It is NaN if one of the differences is: Python's max would skip it.
  """
  assert jax.tree.map(jnp.shape, a) == jax.tree.map(jnp.shape, b)

  def difference(x, y):
    if isinstance(x, jax.Array) or isinstance(y, jax.Array):
      jnp.result_type(x, y)  # raises where JAX refuses to mix their dtypes
    # By NumPy: JAX would compile the subtraction for every shape.
    return float(np.abs(np.asarray(x) - np.asarray(y)).max())

  return float(np.max(jax.tree.leaves(jax.tree.map(difference, a, b))))


def largest(tree):
  """Return the largest absolute value in a tree of arrays."""
  # By NumPy, as in `worst`.
  return max(float(np.abs(x).max()) for x in jax.tree.leaves(tree))


def _seed(key):
  return np.asarray(jax.random.key_data(key))


def _draw(seed, tree, scale=1.0):
  # NumPy's generator, since JAX's would be compiled into every function tested.
  draw = np.random.default_rng(seed).standard_normal

  def array(leaf):
    # Converted by NumPy: JAX would compile the conversion for every shape.
    drawn = (scale * draw(leaf.shape)).astype(leaf.dtype)
    return jnp.asarray(drawn, leaf.dtype)

  return jax.tree.map(array, tree)
