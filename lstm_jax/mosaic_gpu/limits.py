"""How a layer is divided over a GPU, and how large it may be.

A thread block keeps the recurrent weights of its hidden units in shared memory
for all time steps, and works on N sequences of the batch, independently of the
blocks with other sequences. Where H is at most 256 and the weights of all H
units fit into shared memory, one block computes all units, with a warpgroup
(128 threads) for every 64. Otherwise each block computes 64 units, and the H/64
blocks with the same sequences form a cluster, which exchanges h (in the
backward, da) at every time step.

Shared memory holds the recurrent weights of a block's U units, and the vectors
that warpgroups exchange, all in the dtype of the products' operands. The table
has their number of elements. G is the number of products with h (lstm 4, gru 3,
rnn 1), and E the number of cotangents that the backward kernel stores (lstm 4,
gru 4, rnn 1).

                one block, U = H               a block of a cluster, U = 64
  forward       G·H·H + 2·N·H                  G·U·H + N·H + N·U
  backward      G·H·H + 2·E·N·H                G·U·H + G·N·H + E·N·U

With the limits below, and N = 8, the largest H is

                           lstm    gru     rnn
  one block, bfloat16      128     128     256
  one block, float32        64     128     192
  a cluster, bfloat16      384     512     512
  a cluster, float32       192     256     512
"""

import math
from typing import NamedTuple

UNITS = 64  # hidden units of a warpgroup: M of its products (wgmma)
COLUMNS = 8  # N of a product (wgmma) is a multiple of it
SHARED_BYTES = 232_448  # of a thread block, on an H100 or H200
RESERVED_BYTES = 1_024  # of SHARED_BYTES, for barriers
MULTIPROCESSORS = 132  # of an H100 or H200
MAX_CLUSTER = 8  # blocks: the largest cluster that CUDA guarantees
MAX_WARPGROUPS = 4  # of a block: 512 threads with 128 registers each


class Counts(NamedTuple):
  """Numbers of a cell that decide how its layer is divided."""

  gates: int  # G, products with h
  cotangents: int  # E, arrays that the backward stores
  max_rows: int  # the largest N for which a thread has enough registers


LSTM = Counts(gates=4, cotangents=4, max_rows=16)
GRU = Counts(gates=3, cotangents=4, max_rows=32)
RNN = Counts(gates=1, cotangents=1, max_rows=32)


class Plan(NamedTuple):
  """How a layer is divided over thread blocks."""

  units: int  # H, padded to a multiple of 64
  rows: int  # sequences of a block, N of its products: 8, 16 or 32
  warpgroups: int  # of a block, with 64 units each
  cluster: int  # blocks with the same sequences; 1 for no cluster


def divide(
  counts: Counts, hidden_size: int, batch_size: int, itemsize: int
) -> Plan | None:
  """Return how to divide a layer, or None if H is too large.

  One block is preferred to a cluster. N, the sequences of a block, is the
  smallest with which all B are computed at the same time, or else the largest
  for which a block has memory and registers.

  Args:
    counts: of the cell, such as `LSTM`.
    hidden_size: H.
    batch_size: B.
    itemsize: bytes of an operand of a product, 2 or 4.
  """
  parts = math.ceil(hidden_size / UNITS)
  for warpgroups, cluster in ((parts, 1), (1, parts)):
    if warpgroups > MAX_WARPGROUPS or cluster > MAX_CLUSTER:
      continue
    plans = [
      Plan(parts * UNITS, rows, warpgroups, cluster)
      for rows in (8, 16, 32)
      if rows <= counts.max_rows
    ]
    plans = [plan for plan in plans if _fits(counts, plan, itemsize)]
    for plan in plans:
      blocks = math.ceil(batch_size / plan.rows) * cluster
      if blocks <= MULTIPROCESSORS or plan is plans[-1]:
        return plan
  return None


def shared_bytes(counts: Counts, plan: Plan, itemsize: int) -> int:
  """Return a block's shared memory in bytes, in the kernel that needs more."""
  gates, cotangents, _ = counts
  units, rows, warpgroups, cluster = plan
  own = UNITS * warpgroups
  weights = gates * own * units
  if cluster == 1:
    forward, backward = 2 * rows * units, 2 * cotangents * rows * units
  else:
    forward = rows * (units + own)
    backward = rows * (gates * units + cotangents * own)
  return (weights + max(forward, backward)) * itemsize


def _fits(counts: Counts, plan: Plan, itemsize: int) -> bool:
  """Return whether shared memory can hold what a block needs."""
  needed = shared_bytes(counts, plan, itemsize)
  return needed <= SHARED_BYTES - RESERVED_BYTES


def largest(counts: Counts, itemsize: int) -> int:
  """Return the largest H that `divide` accepts, for operands of this size."""
  sizes = range(UNITS, MAX_CLUSTER * UNITS + 1, UNITS)
  # With B = 1: whether there is a plan does not depend on B.
  return max(n for n in sizes if divide(counts, n, 1, itemsize))
