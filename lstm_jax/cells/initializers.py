"""Initial weights of the cells, drawn for each gate separately.

Input weights are LeCun normal (standard deviation 1/√D): if the inputs have
unit variance, so has x W_x, for any input size D. Recurrent weights are
orthogonal: products of orthogonal matrices preserve the norm of a vector, such
as a gradient that goes back through time (Saxe, McClelland and Ganguli, 2014).
Flax's cells have the same defaults. Each gate is drawn by itself: the rows of
one orthogonal [H, G·H] matrix would make the recurrent weights of a gate √G
times smaller.

An orthogonal matrix is made by a QR decomposition. On the CPU it runs in
threads of OpenBLAS that wait for each other in busy loops. Where other
processes use the cores, large matrices take many times as long; with
OPENBLAS_NUM_THREADS=1 in the environment they are faster.
"""

from typing import Any

import jax
import jax.numpy as jnp

from lstm_jax.cells.checks import check_count
from lstm_jax.cells.precision import accumulation_dtype, check_float


def gate_weights(
  key: jax.Array,
  input_size: int,
  hidden_size: int,
  gates: int,
  dtype,
  forget: int | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Return w_x [D, gates·H], w_h [H, gates·H] and b [gates·H] of a cell.

  b is 0, but 1 for the gate of index `forget`, counted from 0.
  """
  input_size, hidden_size = check_init(input_size, hidden_size, dtype)
  key_x, key_h = jax.random.split(key)
  w_x = input_weights(key_x, input_size, hidden_size, gates, dtype)
  w_h = recurrent_weights(key_h, hidden_size, hidden_size, gates, dtype)
  return w_x, w_h, gate_biases(hidden_size, gates, dtype, forget)


def input_weights(
  key: jax.Array, input_size: int, hidden_size: int, gates: int, dtype
) -> jax.Array:
  """Return w_x, [D, gates·H], LeCun normal."""
  draw = jax.nn.initializers.lecun_normal()
  return _per_gate(draw, key, (input_size, hidden_size), gates, dtype)


def recurrent_weights(
  key: jax.Array, output_size: int, hidden_size: int, gates: int, dtype
) -> jax.Array:
  """Return w_h, [P, gates·H], each gate's [P, H] block orthogonal.

  P is the size of the output h, and H that of each gate; they differ in
  `projected_lstm`. A block that is not square has orthonormal rows or columns,
  whichever are fewer.
  """
  draw = jax.nn.initializers.orthogonal()
  return _per_gate(draw, key, (output_size, hidden_size), gates, dtype)


def gate_biases(
  hidden_size: int, gates: int, dtype, forget: int | None = None
) -> jax.Array:
  """Return b, [gates·H]: 0, but 1 for the gate of index `forget`."""
  blocks = [
    jnp.full(hidden_size, gate == forget, dtype) for gate in range(gates)
  ]
  return jnp.concatenate(blocks)


def check_init(
  input_size: Any, hidden_size: Any, dtype: Any
) -> tuple[int, int]:
  """Return the sizes as Python ints, since NumPy integers may overflow.

  Raises:
    ValueError: a size is not an integer of at least 1, or dtype is not a float
      dtype.
  """
  input_size = check_count("input_size", input_size)
  hidden_size = check_count("hidden_size", hidden_size)
  check_float("dtype", dtype)
  return input_size, hidden_size


def _per_gate(draw, key, shape, gates, dtype):
  # Drawn in float32 or wider: JAX has no QR decomposition in bfloat16.
  keys = jax.random.split(key, gates)
  blocks = [draw(k, shape, accumulation_dtype(dtype)) for k in keys]
  return jnp.concatenate(blocks, axis=1).astype(dtype)
