import jax
import pytest


@pytest.fixture(autouse=True)
def standard_promotion():
  """Allow optax's decay**count, a float to the power of an integer."""
  with jax.numpy_dtype_promotion("standard"):
    yield
