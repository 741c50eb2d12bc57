"""What the forward and backward kernels share: their launch, who computes what.

For every N sequences (`Plan.rows`), the grid has one thread block, or one
cluster of thread blocks. Inside a kernel, every warpgroup asks `find_share` for
its units and its sequences.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from lstm_jax.cells.mesh import vary_alike
from lstm_jax.mosaic_gpu.limits import COLUMNS, UNITS, Plan
from lstm_jax.mosaic_gpu.registers import Ref, operand


class Share(NamedTuple):
  """The part of a layer that a warpgroup computes, as slices of its arrays."""

  units: Any  # its 64 units among all H
  units_of_block: Any  # the same among those of its thread block
  sequences: Any  # the N sequences of its thread block among all B
  columns: list[Any]  # the same N sequences, 8 at a time
  tiles: list[Any]  # the indices of these groups of 8 among all B/8


def find_share(plan: Plan) -> Share:
  """Return the share of the warpgroup that calls this."""
  # The grid's "tile" is N sequences; `tiles` are its groups of 8.
  tile, warpgroup = lax.axis_index("tile"), lax.axis_index("warpgroup")
  # A block of a cluster has one warpgroup, which computes the block's part.
  part = warpgroup if plan.cluster == 1 else lax.axis_index("part")
  count = plan.rows // COLUMNS
  tiles = [tile * count + j for j in range(count)]
  return Share(
    pl.ds(part * UNITS, UNITS),
    pl.ds(warpgroup * UNITS, UNITS),
    pl.ds(tile * plan.rows, plan.rows),
    [pl.ds(j * COLUMNS, COLUMNS) for j in tiles],
    tiles,
  )


def start_loading(plan: Plan, w_h: Ref, weights: Ref, loaded: Ref) -> None:
  """Start to copy the block's rows of w_h to shared memory.

  Args:
    plan: how the layer is divided.
    w_h: [G, H, H], in the GPU's memory.
    weights: the shared memory, [G, units of the block, H].
    loaded: the barrier at which to wait for the copies.
  """

  @pl.when(lax.axis_index("warpgroup") == 0)
  def _():
    rows = w_h
    if plan.cluster > 1:
      rows = w_h.at[:, pl.ds(lax.axis_index("part") * UNITS, UNITS), :]
    # One copy for each gate: a copy has at most five axes, with the two that
    # the tiling of shared memory adds, and `vmap` adds one.
    for gate in range(weights.shape[0]):
      plgpu.copy_gmem_to_smem(rows.at[gate], weights.at[gate], loaded)


def launch(
  body: Callable,
  plan: Plan,
  out_type: tuple,
  scratch: dict[str, Any],
  w_h: jax.Array,
  *arguments: Any,
) -> Any:
  """Run a kernel on every thread block.

  Args:
    body: the kernel, a function of (w_h, *arguments, *outputs, **scratch). Each
      is a reference, or None if the argument or output is None.
    plan: how the layer is divided.
    out_type: the outputs' shapes and dtypes; the first is [T, B, ...].
    scratch: the types of the scratch memory by name, besides `weights` and
      `loaded`, which are those of `start_loading`.
    w_h: [G, H, H].
    arguments: trees of arrays.

  Returns:
    The outputs.
  """
  gates, _, units = w_h.shape
  block_units = UNITS * plan.warpgroups
  batch = jax.tree.leaves(out_type)[0].shape[1]
  kernel = plgpu.kernel(
    body,
    out_type=out_type,
    scratch_types={
      "weights": operand((gates, block_units, units), w_h.dtype),
      "loaded": plgpu.Barrier(num_arrivals=gates),
      **scratch,
    },
    # tanh by one instruction, whose error of 2⁻¹¹ is below that of bfloat16
    compiler_params=plgpu.CompilerParams(approx_math=w_h.dtype == jnp.bfloat16),
    grid=(batch // plan.rows,),
    grid_names=("tile",),
    cluster=(plan.cluster,),
    cluster_names=("part",),
    num_threads=plan.warpgroups,  # a thread of Mosaic GPU is a warpgroup
    thread_name="warpgroup",
  )
  inputs = jax.tree.map(_without_derivative, (w_h, *arguments))
  outputs = kernel(*inputs)
  # Under `shard_map`, the outputs vary over the mesh axes that the inputs do.
  return vary_alike((inputs, outputs))[-1]


@jax.custom_jvp
def _without_derivative(x: jax.Array) -> jax.Array:
  """Return x, an argument of a kernel; its derivative raises a TypeError."""
  return x


@_without_derivative.defjvp
def _raise(primals, tangents):
  raise TypeError(
    "the kernels' gradient cannot be differentiated again (grad of grad, "
    "hessian): leave implementation='mosaic_gpu' out"
  )
