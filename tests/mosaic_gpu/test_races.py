"""No race is found while the kernels are interpreted.

The interpreter sees races between loads, stores and copies. It does not see
those through the operands of a product, nor a missing fence.
"""

import jax.numpy as jnp
import pytest

from lstm_jax.mosaic_gpu import exchange
from tests.interpreting import INTERPRETED, interpreted
from tests.mosaic_gpu.layers import ALL_CELLS, CELLS, draw, results

pytestmark = [INTERPRETED, pytest.mark.usefixtures("threads")]

PRODUCTS = {"compute_dtype": jnp.bfloat16}
TWO = {"lstm": 128, "gru": 128, "rnn": 128}  # two warpgroups, in bfloat16
CLUSTER = {"lstm": 192, "gru": 192, "rnn": 320}


def races_found(name, hidden):
  from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks

  arguments = draw(CELLS[name], steps=3, hidden=hidden)
  with interpreted(detect_races=True):
    results("mosaic_gpu", CELLS[name], arguments, **PRODUCTS)
  return gpu_callbacks.get_races().races_found


@ALL_CELLS
@pytest.mark.parametrize("sizes", [TWO, CLUSTER], ids=["block", "cluster"])
def test_no_race_is_found(name, sizes):
  assert not races_found(name, sizes[name])
