"""Random arguments and cotangents for the tests, none of them zero."""

import jax
import jax.numpy as jnp
import numpy as np

T, B, D, H = 5, 3, 4, 6  # all different


def normal_like(key, tree):
  """Return a tree of Gaussian arrays with the shapes and dtypes of another."""
  return _draw(_seed(key), tree)


def arguments(cell, key, *, steps=T, batch=(B,), size=D, hidden=H):
  """Return (params, state, xs) in float64, all of them `gaussian`."""

  def shapes(key):
    params = cell.init(key, size, hidden, jnp.float64)
    xs = jnp.zeros((steps, *batch, size), jnp.float64)
    return params, cell.initial_state(params, batch), xs

  return gaussian(key, cell, jax.eval_shape(shapes, key))


def gaussian(key, cell, tree):
  """Return a tree of Gaussian arrays with the shapes and dtypes of another.

  Their standard deviation is 1, and ¼ for a cell with ReLU: its states have no
  bound, and would grow with every step.
  """
  bound = getattr(cell.recur, "keywords", {}).values()  # of a made cell
  scale = 0.25 if "relu" in str([*bound]) else 1.0
  return jax.tree.map(lambda x: scale * x, normal_like(key, tree))


def weighed(f, key):
  """Return f reduced to a scalar by a random cotangent on every output."""
  seed = _seed(key)

  def scalar(*args):
    outputs = f(*args)
    cotangents = _draw(seed, outputs)
    products = jax.tree.map(lambda a, b: jnp.sum(a * b), outputs, cotangents)
    return sum(jax.tree.leaves(products))

  return scalar


def worst(a, b):
  """Return the largest absolute difference between two trees of arrays."""
  assert jax.tree.map(jnp.shape, a) == jax.tree.map(jnp.shape, b)
  differences = jax.tree.map(lambda x, y: float(np.abs(x - y).max()), a, b)
  return max(jax.tree.leaves(differences))


def _seed(key):
  return np.asarray(jax.random.key_data(key))


def _draw(seed, tree):
  # NumPy's generator, since JAX's would be compiled into every function tested.
  draw = np.random.default_rng(seed).standard_normal
  return jax.tree.map(
    lambda leaf: jnp.asarray(draw(leaf.shape), leaf.dtype), tree
  )
