"""A scan over chunks of time steps: C at a time, and fewer in the last chunk.

The loop slices the arrays [T, ...] of a sequence. It does not scan over arrays
[T / C, C, ...], because XLA in jax 0.10 copies those if C is 1.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Chunks(NamedTuple):
  """What was computed in each chunk of a sequence."""

  whole: Any  # in the chunks of C steps, [T // C, ...]
  rest: Any  # in the last T mod C steps; None if there are none

  def part(self, index: int) -> "Chunks":
    """Return the chunks of y[index], where every y is a tuple."""
    rest = None if self.rest is None else self.rest[index]
    return Chunks(self.whole[index], rest)


NOTHING = Chunks((), ())


def scan_chunks(
  f: Callable,
  carry: Any,
  sequences: tuple,
  chunk: int,
  *,
  reverse: bool = False,
  saved: Chunks = NOTHING,
) -> tuple[Any, Chunks]:
  """Scan f over the chunks of a sequence.

  Args:
    f: (carry, *sequences, *saved) -> (carry, y), called for each chunk. Its
      `sequences` are the chunk's time steps, [C, ...]; the last chunk has T mod
      C time steps, unless C divides T. Its `saved` are the elements of y, a
      tuple, that the earlier scan returned for this chunk.
    carry: the carry before the chunk that is taken first.
    sequences: trees of arrays [T, ...].
    chunk: C ≤ T; T may be symbolic if it is a multiple of C.
    reverse: True to scan from the last chunk to the first.
    saved: y of an earlier scan over the same chunks, or NOTHING.

  Returns:
    (carry after the chunk that is taken last, y of every chunk).
  """
  steps = jax.tree.leaves(sequences)[0].shape[0]
  num_rest = steps % chunk if isinstance(steps, int) else 0

  def body(carry, inputs):
    index, saved = inputs
    cut = partial(
      lax.dynamic_slice_in_dim, start_index=index * chunk, slice_size=chunk
    )
    return f(carry, *jax.tree.map(cut, sequences), *saved)

  def scan_whole(carry):
    inputs = jnp.arange(steps // chunk), saved.whole
    return lax.scan(body, carry, inputs, reverse=reverse)

  def run_rest(carry):
    if not num_rest:
      return carry, None
    rest = jax.tree.map(lambda x: x[steps - num_rest :], sequences)
    return f(carry, *rest, *saved.rest)

  if reverse:
    carry, rest = run_rest(carry)
    carry, whole = scan_whole(carry)
  else:
    carry, whole = scan_whole(carry)
    carry, rest = run_rest(carry)
  return carry, Chunks(whole, rest)


def joined(chunks: Chunks) -> Any:
  """Join the arrays [C, ...] of all chunks to [T, ...]; None stays None."""
  whole, rest = chunks
  if whole is None:
    return None
  whole = whole.reshape(whole.shape[0] * whole.shape[1], *whole.shape[2:])
  return whole if rest is None else jnp.concatenate([whole, rest])
