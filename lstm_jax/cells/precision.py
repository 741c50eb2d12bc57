"""Dtypes: states and parameters keep theirs, arithmetic is float32 or wider."""

from typing import TypeVar

import jax
import jax.numpy as jnp

Tree = TypeVar("Tree")


def wider(dtype: jnp.dtype) -> jnp.dtype:
  """Return float32, or dtype itself where that is wider."""
  return jnp.dtype(jnp.float32) if jnp.finfo(dtype).bits < 32 else dtype


def wide(tree: Tree) -> Tree:
  """Return the arrays of tree in float32, or as they are where wider."""
  return jax.tree.map(lambda x: x.astype(wider(x.dtype)), tree)


def cast_like(tree: Tree, reference: Tree) -> Tree:
  """Return tree with each array in the dtype of its peer in reference."""
  return jax.tree.map(lambda x, y: x.astype(y.dtype), tree, reference)


def lower(tree: Tree, dtype: jnp.dtype | None) -> Tree:
  """Return tree with its matrices in dtype; as it is where dtype is None."""
  if dtype is None:
    return tree
  return jax.tree.map(lambda x: x.astype(dtype) if x.ndim > 1 else x, tree)
