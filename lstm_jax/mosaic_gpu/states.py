"""A cell's state in registers, with masked steps and resets.

A state is a list of trees of blocks, one tree for each 8 sequences of the
thread block. A block is transposed, [64 units, 8 sequences], so that its
columns are rows of an array [B, H]. The flag of a sequence at a time step is
one of `MASKED`, `STEP` and `RESET`, stored in a float32 array [T, B]; a masked
step does not reset. Without a mask and resets, the flags are None, and cost
nothing.
"""

from typing import Any

import jax
import jax.numpy as jnp

from lstm_jax.mosaic_gpu.registers import (
  Block,
  Ref,
  read_columns,
  read_transposed,
  write_transposed,
)
from lstm_jax.mosaic_gpu.thread_block import Share

State = list[Any]  # trees of blocks
Flags = list[Block] | None

MASKED = 0.0  # the step leaves the state unchanged
STEP = 1.0
RESET = 2.0  # the step starts from the zero state


def read_state(refs: Any, share: Share) -> State:
  """Return a warpgroup's units of a tree of refs [B, H]."""

  def read(columns):
    place = columns, share.units
    blocks = jax.tree.map(lambda ref: read_transposed(ref.at[place]), refs)
    # Under shard_map, the type of an array that a kernel reads says that it
    # varies over the mesh; the type of a computed array does not. The loop over
    # time needs one type for all states, so the first state is computed as
    # well: it is multiplied by 1.
    return jax.tree.map(lambda block: block * 1.0, blocks)

  return [read(columns) for columns in share.columns]


def write_state(refs: Any, state: State, share: Share) -> None:
  """Write a warpgroup's units to a tree of refs [B, H]."""
  for columns, blocks in zip(share.columns, state, strict=True):
    places = jax.tree.map(lambda ref, c=columns: ref.at[c, share.units], refs)
    jax.tree.map(write_transposed, places, blocks)


def read_flags(flags: Ref | None, t: Any, share: Share) -> Flags:
  """Return the flags of time step t, from a ref [T, B] or None."""
  if flags is None:
    return None
  return [read_columns(flags.at[t, columns]) for columns in share.columns]


def unless_reset(state: State, flags: Flags) -> State:
  """Return the state, or zeros where the step resets."""
  if flags is None:
    return state
  return [
    _select(flag != RESET, blocks, jax.tree.map(jnp.zeros_like, blocks))
    for blocks, flag in zip(state, flags, strict=True)
  ]


def unless_masked(state: State, other: State, flags: Flags) -> State:
  """Return the state, or the other state where the step is masked."""
  if flags is None:
    return state
  return [
    _select(flag != MASKED, blocks, others)
    for blocks, others, flag in zip(state, other, flags, strict=True)
  ]


def _select(condition: Block, blocks: Any, others: Any) -> Any:
  return jax.tree.map(
    lambda block, other: jnp.where(condition, block, other), blocks, others
  )
