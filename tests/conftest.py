import os

# Compiling is most of what the tests do, and they time nothing: have XLA
# optimise less. Results agree to rounding.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

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
