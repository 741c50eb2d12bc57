"""How the warpgroups of a layer send each other their units of a vector.

At every time step, each warpgroup computes its 64 units of h, or of da, and
then needs all H units for its matrix product. In a single thread block, each
warpgroup writes its units to shared memory, and waits at a barrier until all
have written. Two buffers take turns, so that one barrier per time step is
enough: before a warpgroup writes to a buffer again, it passes a barrier that
every warpgroup reaches only after its last read of that buffer.

In a cluster, each block copies its units to the GPU's memory, in effect to the
L2 cache. After a barrier of the cluster, it reads the units of all blocks.
"""

from typing import Any, NamedTuple

from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from lstm_jax.mosaic_gpu.limits import COLUMNS, UNITS, Plan
from lstm_jax.mosaic_gpu.registers import (
  Block,
  Ref,
  operand,
  write_transposed,
)
from lstm_jax.mosaic_gpu.thread_block import Share


def scratch(
  plan: Plan, num_sent: int, num_multiplied: int, dtype: Any
) -> dict[str, Any]:
  """Return the scratch memory of an `Exchange`, by its fields.

  Args:
    plan: how the layer is divided.
    num_sent: the number of vectors that are sent at each time step.
    num_multiplied: how many of them, from the first on, are operands of
      products.
    dtype: that of the products' operands.
  """
  if plan.cluster == 1:
    shape = (2, num_sent, plan.warpgroups, plan.rows, UNITS)
    return {
      "vectors": operand(shape, dtype),
      "all_sent": plgpu.Barrier(num_arrivals=plan.warpgroups),
    }
  return {
    "vectors": operand((num_multiplied, plan.rows, plan.units), dtype),
    "own": operand((num_sent, plan.rows, UNITS), dtype),
    "all_sent": plgpu.ClusterBarrier(collective_axes=("part",)),
    "all_read": plgpu.Barrier(num_arrivals=num_multiplied),
  }


class Exchange(NamedTuple):
  """The exchange of some vectors of H units, at every time step."""

  plan: Plan
  share: Share
  vectors: Ref  # operands of products; without a cluster, all vectors
  all_sent: Ref  # a barrier: all units of the vectors are there
  own: Ref = None  # in a cluster, the units of this block
  # In a cluster, a barrier of this block: its copies of the vectors are there.
  all_read: Ref = None

  def send(self, vectors: list[list[Block]], turn: Any, memory: Ref) -> None:
    """Send this warpgroup's units of some vectors to the others.

    Args:
      vectors: for each vector, its blocks, one for every 8 sequences.
      turn: the number of calls before this one.
      memory: an array [N, vectors, H] in the GPU's memory, to which the vectors
        are written as well; may be None without a cluster. In a cluster, it
        must not be that of the last call, which other blocks may still read.
    """
    own: Any = self.own
    if self.plan.cluster == 1:
      own = self.vectors.at[turn % 2, :, lax.axis_index("warpgroup")]
      if memory is not None:
        # Wait until the copy of two turns ago has read this buffer.
        plgpu.wait_smem_to_gmem(1, wait_read_only=True)
    for vector, blocks in enumerate(vectors):
      for j, block in enumerate(blocks):
        columns = pl.ds(j * COLUMNS, COLUMNS)
        write_transposed(own.at[vector, columns, :], block)
    plgpu.commit_smem()
    if memory is not None:
      for vector in range(len(vectors)):
        target = memory.at[:, vector, self.share.units]
        plgpu.copy_smem_to_gmem(own.at[vector], target, commit_group=False)
      plgpu.commit_smem_to_gmem_group()
    if self.plan.cluster > 1:
      plgpu.wait_smem_to_gmem(0)  # the other blocks will read it
    plgpu.barrier_arrive(self.all_sent)

  def receive(self, memory: Ref) -> None:
    """Wait for all units of the vectors that were sent last.

    Args:
      memory: that of the last `send`; unused in one thread block.
    """
    plgpu.barrier_wait(self.all_sent)
    if self.plan.cluster > 1:
      for vector in range(self.vectors.shape[0]):
        plgpu.copy_gmem_to_smem(
          memory.at[:, vector, :], self.vectors.at[vector], self.all_read
        )
      plgpu.barrier_wait(self.all_read)

  def operand(self, vector: Any, part: Any, turn: Any) -> Ref:
    """Return 64 units of a vector, [64, N], the right operand of a product.

    Args:
      vector: its index among those that were sent.
      part: the index of these units among the H / 64 of the vector.
      turn: that of the last `send`.
    """
    if self.plan.cluster == 1:
      return self.vectors.at[turn % 2, vector, part].transpose((1, 0))
    units = pl.ds(part * UNITS, UNITS)
    return self.vectors.at[vector, :, units].transpose((1, 0))
