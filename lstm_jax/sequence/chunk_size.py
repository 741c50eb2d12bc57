"""When a CPU takes a sequence by chunks of time steps, and of how many.

The products x W_x of all inputs, T·B·G·H numbers for G gates, are written once
and read again step by step, and so are the cotangents daₜ of the gates'
pre-activations. Where they are larger than the cache, a chunk at a time is
faster: `scan_in_cache` multiplies the inputs of a chunk right before its steps,
and a chunk's da right after its backward, for the weights' gradients. All
residuals are saved, as without chunks. A chunk of at most 4 steps needs no loop
(`in_place`). For outputs alone, chunks are faster only in a linear recurrence.

Chunks are taken for more than 8,192 rows T·B and 12 MiB of arrays saved for the
backward. Each but the last has at least 1,024 rows (`even_chunk`). All
gradients then take (2 cores, Zen 5, jax 0.12.0.1)

  gru   H 128, T 128, B 1024    368 ms instead of 490
  gru   H 128, T 32, B 4096     417 ms instead of 495
  rnn   H 128, T 128, B 1024    150 ms instead of 186
  lstm  H 128, T 64, B 1024     242 ms instead of 268
  lstm  H 256, T 1024, B 32     457 ms instead of 491

With 8,192 rows chunks are slower: lstm H 512, T 64, B 128, 321 ms instead of
310. They are also slower where at most 12 MiB are saved, because the arrays of
each chunk are copied to those of the sequence and back (2 cores, Zen 4, jax
0.12.0.1):

  gru   D 8, H 32, T 200, B 64    10.4 ms instead of 8.6
  lstm  D = H 32, T 1000, B 16    18.8 ms instead of 15.1
  rnn   D = H 64, T 512, B 32     20.3 ms instead of 14.6

With jax 0.10, chunks are slower also for larger sequences of narrow layers,
which are cut into chunks nonetheless (gru, D = H 16, T 1024, B 256: 180 ms
instead of 129).

A cell with a linear recurrence reads and writes its arrays several times for
each product, and chunks are faster from 6 MiB of x W_x on:

  min_gru  H 256, T 256, B 32   31 ms instead of 38; outputs alone 10, not 23
  min_gru  H 1024, T 128, B 32  139 ms instead of 163
  lru      H 256, T 256, B 32   13 ms instead of 22
"""

import math
from collections.abc import Callable
from operator import itemgetter
from typing import Any

import jax

from lstm_jax.cells.cell import Cell, Params, State
from lstm_jax.cells.platform import is_cpu
from lstm_jax.sequence.linear import is_linear
from lstm_jax.sequence.scan import MANY_ROWS, num_rows

MANY_BYTES = 12 * 2**20  # saved for the backward
MANY_BYTES_OF_LINEAR = 6 * 2**20  # of x W_x
FULL_SPEED_ROWS = 1024  # rows with which a matrix product is at full speed
SYMBOLIC_CHUNK = 32  # C where T or B is symbolic: 1,024 rows at B 32


def is_large(
  cell: Cell, params: Params, state: State, xs: jax.Array, extras: tuple
) -> bool:
  """Return whether a sequence is faster by chunks.

  The result is False on devices other than a CPU, and if T or B is symbolic.

  Args:
    cell: the cell.
    params: the weights.
    state: the state before the first step.
    xs: inputs [T, ..., D] or tokens [T, ...].
    extras: further arguments of a wrapped cell's steps, each [T, ...].
  """

  def saved_by_one_step(params, state, xs, extras):
    x, extra = jax.tree.map(itemgetter(0), (xs, extras))
    ax = cell.project(params, x)
    return state.h, *cell.recur(params, state, ax, *extra)[1:]

  rows = num_rows(state, xs)
  if rows is None or not is_cpu():
    return False
  if is_linear(cell):
    return _num_bytes(cell.project, params, xs) > MANY_BYTES_OF_LINEAR
  if rows <= MANY_ROWS:
    return False
  one = _num_bytes(saved_by_one_step, params, state, xs, extras)
  return xs.shape[0] * one > MANY_BYTES


def default_chunk(state: State, xs: jax.Array) -> int:
  """Return C, the fewest time steps that make 1,024 rows C·B.

  It is 32 if T or B is symbolic.

  Args:
    state: the state before the first step.
    xs: inputs [T, ..., D] or tokens [T, ...].
  """
  if num_rows(state, xs) is None:
    return SYMBOLIC_CHUNK
  batch = math.prod(state.h.shape[:-1])
  return math.ceil(FULL_SPEED_ROWS / max(1, batch))


def even_chunk(state: State, xs: jax.Array) -> int:
  """Return the least C from `default_chunk` on, below twice it, that divides T.

  If no such C is below T, return `default_chunk`. A shorter last chunk costs
  time and memory. Neither T nor B may be symbolic. The arguments are those of
  `default_chunk`.
  """
  fewest, steps = default_chunk(state, xs), xs.shape[0]
  chunks = range(fewest, min(2 * fewest, steps))
  return next((c for c in chunks if steps % c == 0), fewest)


def _num_bytes(f: Callable, *inputs: Any) -> int:
  """Return the size of the arrays that f returns."""
  leaves = jax.tree.leaves(jax.eval_shape(f, *inputs))
  return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
