import jax
import pytest


@pytest.fixture
def flax_promotion():
  """Let Flax add a bias [K] to an array [..., K], and mix dtypes."""
  with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
    yield
