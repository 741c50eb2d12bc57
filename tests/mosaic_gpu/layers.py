"""Layers for the tests of the GPU kernels: sizes, arguments, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import gru, lstm, rnn, unroll
from tests.draws import normal_like, shapes
from tests.interpreting import interpreted

CELLS = {"lstm": lstm, "gru": gru, "rnn": rnn}
ALL_CELLS = pytest.mark.parametrize("name", CELLS)
DTYPES = jnp.bfloat16, jnp.float32
# The largest H of one thread block and of a cluster, in those dtypes.
ONE_BLOCK = {
  "lstm": (128, 64),
  "gru": (128, 128),
  "rnn": (256, 192),
}
CLUSTER = {"lstm": (384, 192), "gru": (512, 256), "rnn": (512, 512)}
T, B, D, H = 5, 5, 3, 40  # H is padded to 64, and B to 8

# In float32, the kernels and the scan sum in other orders. The interpreter's
# products have all bits of float32; those of the GPU, in TF32, have 11.
FLOAT32 = 1e-5
# In bfloat16, a product's operands have 8 bits. Two programs round differently
# where their sums differ, and the kernels save gates in float16.
BFLOAT16 = 5e-3


def draw(cell, *, steps=T, batch=(B,), size=D, hidden=H, dtype=jnp.float32):
  """Return (params, state, xs), with weights as large as those of `init`.

  The arrays of params with two axes or more are divided by the square root of
  the size of their first axis; the state and xs are standard normal.
  """
  sizes = {"steps": steps, "batch": batch, "size": size, "hidden": hidden}
  expected = shapes(cell, **sizes, dtype=dtype)
  params, state, xs = normal_like(jax.random.key(0), expected)

  def scale(x):  # larger weights would saturate the gates, and hide errors
    return x / np.sqrt(x.shape[0]).astype(dtype) if x.ndim > 1 else x

  return jax.tree.map(scale, params), state, xs


def results(implementation, cell, arguments, **options):
  """Return what `unroll` returns, and the cotangents of its arguments.

  The cotangents of the outputs and of the last state are random.

  Args:
    implementation: that of `unroll`.
    cell: the cell.
    arguments: (params, state, xs). Tokens, and a state of None, have no
      cotangent.
    **options: of `unroll`.
  """
  params, state, xs = arguments
  floats = {"params": params, "state": state}
  if jnp.issubdtype(xs.dtype, jnp.floating):
    floats["xs"] = xs
  options["implementation"] = implementation

  def run(floats):
    return unroll(cell, **{"xs": xs, **floats}, **options)

  cotangents = normal_like(jax.random.key(1), jax.eval_shape(run, floats))

  def program(floats):
    outputs, backward = jax.vjp(run, floats)
    return outputs, backward(cotangents)

  return jax.block_until_ready(jax.jit(program)(floats))


def kernel_results(cell, arguments, **options):
  """Return the `results` of the kernels, interpreted."""
  with interpreted():
    return results("mosaic_gpu", cell, arguments, **options)


def errors(found, expected):
  """Return the relative error of each array, in norm, by its place."""
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  leaves, _ = jax.tree.flatten_with_path(found)
  relative = {}
  for (path, x), y in zip(leaves, jax.tree.leaves(expected), strict=True):
    assert (x.shape, x.dtype) == (y.shape, y.dtype), path
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    scale = np.linalg.norm(y) or 1
    relative[jax.tree_util.keystr(path)] = np.linalg.norm(x - y) / scale
  return relative


def agree(found, expected, tolerance=FLOAT32):
  """Return whether each array has at most this error."""
  return all(error <= tolerance for error in errors(found, expected).values())
