"""The sizes that the kernels take; these tests run on any machine."""

import jax.numpy as jnp

from lstm_jax.mosaic_gpu import limits
from lstm_jax.sequence.implementation import COUNTS
from tests.mosaic_gpu.layers import ALL_CELLS, CELLS, CLUSTER, DTYPES, ONE_BLOCK


@ALL_CELLS
def test_the_largest_sizes_are_those_of_the_table(name):
  """The second table of `limits`."""
  counts = COUNTS[CELLS[name]]
  for index, dtype in enumerate(DTYPES):
    itemsize = jnp.dtype(dtype).itemsize
    assert limits.largest(counts, itemsize) == CLUSTER[name][index]
    one = ONE_BLOCK[name][index]
    assert limits.divide(counts, one, 1, itemsize).cluster == 1
    assert limits.divide(counts, one + 1, 1, itemsize).cluster > 1


def test_blocks_get_more_sequences_only_beyond_the_multiprocessors():
  def rows(counts, hidden, batch, itemsize=2):
    return limits.divide(counts, hidden, batch, itemsize).rows

  for hidden, cluster in ((64, 1), (192, 3)):
    assert limits.divide(limits.GRU, hidden, 1, 2).cluster == cluster
    at_once = limits.MULTIPROCESSORS // cluster
    for most in (8, 16):
      assert rows(limits.GRU, hidden, at_once * most) == most
      assert rows(limits.GRU, hidden, at_once * most + 1) == 2 * most
    assert rows(limits.GRU, hidden, 10**6) == 32
  assert rows(limits.LSTM, 64, 10**6) == 16  # there are no registers for more
  assert rows(limits.GRU, 128, 10**6, 4) == 8  # no shared memory for more


def test_shared_memory_is_that_of_the_table():
  """The first table of `limits`: the backward of a GRU, G = 3 and E = 4."""
  block = limits.Plan(units=128, rows=8, warpgroups=2, cluster=1)
  expected = 3 * 128 * 128 + 2 * 4 * 8 * 128  # G·H·H + 2·E·N·H
  assert limits.shared_bytes(limits.GRU, block, 4) == 4 * expected
  part = limits.Plan(units=192, rows=8, warpgroups=1, cluster=3)
  expected = 3 * 64 * 192 + 3 * 8 * 192 + 4 * 8 * 64  # G·U·H + G·N·H + E·N·U
  assert limits.shared_bytes(limits.GRU, part, 2) == 2 * expected
