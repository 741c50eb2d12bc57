"""A case of one layer that is too large for a kernel."""

import numpy as np
import pytest

from experiments.benchmarks.gpu.layers import Layer
from lstm_jax.cells.platform import traced_for
from tests.interpreting import NEEDS_KERNELS


@NEEDS_KERNELS
@pytest.mark.parametrize("peer", ["kernel bfloat16", "kernel"])
def test_a_size_without_a_kernel_is_skipped_and_is_no_failure(peer):
  case = Layer("lstm", 1024, 2, 8, (peer,))
  with traced_for("cuda"):
    prepared = case.prepare(frozenset())
  result = prepared.finish({"expected": lambda *args: np.nan}, {})
  assert result.failures == [] and result.rows == []
  assert "takes H up to " in result.skipped[peer]
