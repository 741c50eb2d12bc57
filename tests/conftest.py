import gc
import os
from importlib.metadata import version

# Compiling is most of what the tests do, and they time nothing: have XLA
# optimise less, which changes results by rounding only. XLA_FLAGS="" runs the
# tests on what a user's program compiles to; .ci/run does both.
flags = "--xla_backend_optimization_level=0"
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):
  flags += (
    " --xla_cpu_use_fusion_emitters=false"  # later ones know no such flag
  )
os.environ.setdefault("XLA_FLAGS", flags)

import jax
import pytest
from hypothesis import settings

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_default_matmul_precision", "highest")

settings.register_profile("everyday", max_examples=20, deadline=None)
settings.load_profile("everyday")


@pytest.fixture
def key():
  return jax.random.key(0)


@pytest.fixture
def collected():
  """Collect what a failed read of orbax leaves: coroutines, which complain.

  A test that uses it ignores PytestUnraisableExceptionWarning.
  """
  yield
  gc.collect()
