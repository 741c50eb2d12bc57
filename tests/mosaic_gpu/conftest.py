"""Threads for the interpreter of GPU kernels.

The interpreter runs each warpgroup as one CPU thread. Warpgroups wait for each
other, and so do the thread blocks of a cluster. XLA has a pool with as many of
these threads as there are cores, or devices if those are more. With fewer than
the warpgroups that run at once, all would wait for ever.
"""

from contextlib import suppress

import jax
import pytest

from tests.interpreting import NEEDS_KERNELS

THREADS = 16  # two kernels with clusters of eight thread blocks

if not NEEDS_KERNELS.args[0]:  # the condition under which tests are skipped
  # The update raises RuntimeError if another module has started JAX's devices.
  with suppress(RuntimeError):
    jax.config.update("jax_num_cpu_devices", THREADS)


@pytest.fixture
def threads():
  """Skip a test if the interpreter might wait for ever."""
  if len(jax.devices("cpu")) < THREADS:
    pytest.skip("the interpreter lacks threads: run tests/mosaic_gpu alone")


@pytest.fixture(autouse=True)
def kernels_traced_anew(traced_anew):
  """Trace each test's programs with the kernels that it has changed."""
