import jax
import pytest


@pytest.fixture(autouse=True)
def standard_promotion():
  """optax multiplies floats by integer counts, which strict mode refuses."""
  with jax.numpy_dtype_promotion("standard"):
    yield
