"""Blocks of 64 hidden units × 8 sequences, in the registers of a warpgroup.

A warpgroup, 128 threads, multiplies on the tensor cores by `wgmma`, whose
result has 64 rows. All that a kernel computes is therefore transposed: hidden
units along the rows, sequences along the columns. The smallest result is a
block of 64 × 8, and a warpgroup has one for every 8 sequences.

Blocks are read from and written to the GPU's memory in two ways. Arrays that
other programs read or write, such as the projected inputs [T, B, G, H] and the
outputs [T, B, H], have the units last, and a block is transposed between
registers. Those that only the backward kernel reads are stored as blocks,
[T, B/8, H, 8]. Loads have `optimized=False`, since Mosaic GPU otherwise refuses
those that it cannot optimize.

The operands of a product lie in shared memory as `wgmma` reads them: in tiles
of 8 rows of 128 bytes, swizzled.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu

from lstm_jax.mosaic_gpu.limits import COLUMNS, UNITS

Block = jax.Array  # [64, 8], float32
Ref = Any  # a reference to memory, inside a kernel


def operand(shape: tuple[int, ...], dtype: jnp.dtype) -> Any:
  """Return shared memory [..., rows, K] for an operand of `wgmma`."""
  transforms = (
    plgpu.TilingTransform((8, 128 // dtype.itemsize)),
    plgpu.SwizzleTransform(128),
  )
  return plgpu.SMEM(shape, dtype, transforms=transforms)


def accumulators(count: int, rows: int) -> list[Any]:
  """Return accumulators of `wgmma`, each [64, rows], for `pl.run_scoped`.

  `rows` is the number of sequences, rows of [B, H]: here they are columns.
  """
  return [plgpu.ACC((UNITS, rows), jnp.float32)] * count


def columns(total: jax.Array, number: int) -> Block:
  """Return the block with this number of an accumulated product [64, rows]."""
  return total[:, number * COLUMNS : (number + 1) * COLUMNS]


def read(ref: Ref) -> Block:
  """Return a block of a ref [64, 8]."""
  block = plgpu.load(ref, layout=plgpu.Layout.WGMMA, optimized=False)
  return block.astype(jnp.float32)


def write(ref: Ref, block: Block) -> None:
  """Write a block to a ref [64, 8], in its dtype."""
  ref[...] = block.astype(ref.dtype)


def read_transposed(ref: Ref) -> Block:
  """Return a block of a float32 ref [8, 64] in the GPU's memory."""
  block = plgpu.load(
    ref.transpose((1, 0)),
    layout=plgpu.Layout.WGMMA_TRANSPOSED,
    optimized=False,
  )
  return plgpu.layout_cast(block, plgpu.Layout.WGMMA)


def write_transposed(ref: Ref, block: Block) -> None:
  """Write a block to a ref [8, 64], in its dtype."""
  block = block.astype(ref.dtype)
  block = plgpu.layout_cast(block, plgpu.Layout.WGMMA_TRANSPOSED)
  ref.transpose((1, 0))[...] = block


def read_units(ref: Ref) -> Block:
  """Return the block whose every column is a ref [64], one value per unit."""
  layout = plgpu.Layout.WGMMA.reduce(1)
  values = plgpu.load(ref, layout=layout, optimized=False)
  return lax.broadcast_in_dim(values, (UNITS, COLUMNS), (0,))


def read_columns(ref: Ref) -> Block:
  """Return the block whose every row is a ref [8], one value per sequence."""
  layout = plgpu.Layout.WGMMA.reduce(0)
  values = plgpu.load(ref, layout=layout, optimized=False)
  return lax.broadcast_in_dim(values, (UNITS, COLUMNS), (1,))


def sigmoid(a: Block) -> Block:
  """Return σ(a) = ½ + ½ tanh(a/2): a GPU has an instruction for tanh."""
  return 0.5 + 0.5 * jnp.tanh(0.5 * a)


def stored(dtype: jnp.dtype) -> jnp.dtype:
  """Return the dtype of saved gates and local gradients.

  The argument is the dtype of the products' operands. Gates lie between −1 and
  1, where float16 is 8 times as precise as bfloat16.
  """
  return jnp.dtype(jnp.float16 if dtype.itemsize == 2 else jnp.float32)


def pack_gate(y: Block) -> Block:
  """Return how a gate y = σ(a) is saved: as y, or above ½ as y − 1.

  So y and 1 − y keep all bits of a float16 where they are small. Just below 1,
  float16 has steps of 2⁻¹¹: a product of gates over time would accumulate this
  error.
  """
  # A gate of 1 becomes 1 − 2⁻²⁴, since a saved 0 means y = 0.
  return jnp.where(y > 0.5, jnp.minimum(y - 1, -(2.0**-24)), y)


def unpack_gate(packed: Block) -> Block:
  """Return the gate that `pack_gate` was given; for 1, return 1 − 2⁻²⁴."""
  return jnp.where(packed < 0, 1 + packed, packed)
