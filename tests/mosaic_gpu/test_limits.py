"""The sizes that the kernels take, on any machine."""

import jax.numpy as jnp

from lstm_jax.mosaic_gpu import limits
from lstm_jax.sequence.implementation import COUNTS
from tests.mosaic_gpu.layers import ALL_CELLS, CELLS, CLUSTER, DTYPES, ONE_BLOCK


@ALL_CELLS
def test_the_largest_sizes_are_those_of_the_table(name):
  counts = COUNTS[CELLS[name]]
  for index, dtype in enumerate(DTYPES):
    itemsize = jnp.dtype(dtype).itemsize
    assert limits.largest(counts, itemsize) == CLUSTER[name][index]
    one = ONE_BLOCK[name][index]
    assert limits.divide(counts, one, 1, itemsize).cluster == 1
    above = limits.divide(counts, one + 1, 1, itemsize)
    assert above is None or above.cluster > 1
