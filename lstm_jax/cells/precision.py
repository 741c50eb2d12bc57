"""Dtypes: states and parameters keep their own, sums are float32 or wider.

The accumulation dtype of an array is float32, or its own where that is wider.
Sums and derivatives are computed in it. Matrix products are accumulated in it,
but their operands may be narrower (`cast_matrices`).
"""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp

Tree = TypeVar("Tree")


def check_float(name: str, dtype: Any) -> None:
  """Raise ValueError unless dtype is a float dtype of JAX, or its name."""
  try:
    found = jnp.dtype(dtype)
    # JAX has no longdouble and no swapped bytes; NumPy takes None as float64.
    valid = dtype is not None and found.isnative and found.itemsize <= 8
    valid = valid and jnp.issubdtype(found, jnp.floating)
  except (TypeError, ValueError, SyntaxError):  # NumPy parses "(2,"
    valid = False
  if not valid:
    got = getattr(dtype, "__name__", repr(dtype))
    raise ValueError(
      f"{name} must be a dtype of floats, such as bfloat16, got {got}"
    )


def accumulation_dtype(dtype: jnp.dtype) -> jnp.dtype:
  """Return float32, or dtype itself where that is wider."""
  return jnp.dtype(jnp.float32) if jnp.finfo(dtype).bits < 32 else dtype


def as_array(expected: str, values: Any) -> jax.Array:
  """Return values as a JAX array.

  Raises:
    ValueError: they cannot be one; `expected` is how the message begins.
  """
  try:
    return jnp.asarray(values)
  # Errors of a tracer that has left its function, or of XLA without memory.
  except (jax.errors.JAXTypeError, jax.errors.JaxRuntimeError):
    raise
  # For None, (None, mask), or a tensor of PyTorch that needs a gradient.
  # OverflowError is that of a Python integer.
  except (TypeError, ValueError, RuntimeError, OverflowError) as error:
    found = type(values).__name__
    raise ValueError(f"{expected}, got {found}: {error}") from error


def as_arrays(tree: Tree) -> Tree:
  """Return a tree of JAX arrays.

  Without x64, NumPy's float64 becomes float32: `jnp.zeros` would warn of it.
  """
  return jax.tree.map(
    # `asarray` takes 6 µs for each array, also for an array of JAX.
    lambda x: x if isinstance(x, jax.Array) else jnp.asarray(x),
    tree,
  )


def upcast(tree: Tree) -> Tree:
  """Return the arrays of a tree in their accumulation dtype."""
  return jax.tree.map(lambda x: x.astype(accumulation_dtype(x.dtype)), tree)


def cast_like(tree: Tree, reference: Tree) -> Tree:
  """Return a tree in the dtypes of the corresponding arrays in reference."""
  return jax.tree.map(lambda x, y: x.astype(y.dtype), tree, reference)


def cast_matrices(tree: Tree, dtype: jnp.dtype | None) -> Tree:
  """Return a tree with arrays of two or more axes in dtype; None casts none."""
  if dtype is None:
    return tree
  return jax.tree.map(lambda x: x.astype(dtype) if x.ndim > 1 else x, tree)
