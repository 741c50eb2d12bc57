import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax.cells import initializers, lstm, projected_lstm
from lstm_jax.cells.initializers import orthonormal_columns

SHAPES = pytest.mark.parametrize("shape", [(200, 200), (300, 97), (64, 5)])


@SHAPES
@pytest.mark.parametrize(
  ("dtype", "tolerance"), [(jnp.float64, 1e-11), (jnp.float32, 1e-5)]
)
def test_orthonormal_columns_are_the_q_of_the_qr_decomposition(
  shape, dtype, tolerance, key
):
  a = jax.random.normal(key, shape, dtype)
  q, r = np.linalg.qr(np.asarray(a, np.float64))
  expected = q * np.sign(np.diagonal(r))
  found = np.asarray(orthonormal_columns(a))
  assert found.dtype == dtype
  assert np.abs(found - expected).max() < tolerance
  assert np.abs(found.T @ found - np.eye(shape[1])).max() < tolerance


def test_columns_that_nearly_depend_on_others_become_orthonormal(key):
  """The last column of a square matrix may have any condition number."""
  a = jax.random.normal(key, (128, 128), jnp.float32)
  a = a.at[:, -1].set(a[:, 0] + 1e-5 * a[:, -1])
  q = np.asarray(orthonormal_columns(a))
  assert np.abs(q.T @ q - np.eye(128)).max() < 1e-5


@pytest.mark.parametrize("cell", [lstm, projected_lstm])
def test_large_recurrent_weights_are_those_of_small_ones_without_a_large_qr(
  cell, key, monkeypatch
):
  small = cell.init(key, 3, 64)
  monkeypatch.setattr(initializers, "LARGE", 16)
  large = cell.init(key, 3, 64)
  for a, b in zip(small, large, strict=True):
    assert np.abs(np.asarray(a) - np.asarray(b)).max() < 1e-5
  program = str(jax.make_jaxpr(lambda key: cell.init(key, 3, 64))(key))
  columns = re.findall(r":f32\[\d+,(\d+)\] \S+ = qr\[", program)
  assert columns and all(int(count) <= 2 for count in columns)


def test_members_of_an_ensemble_have_orthogonal_large_weights(key, monkeypatch):
  monkeypatch.setattr(initializers, "LARGE", 16)
  keys = jax.random.split(key, 2)
  params = jax.vmap(lambda k: lstm.init(k, 3, 32))(keys)
  for one, k in zip(params.w_h, keys, strict=True):
    assert np.abs(np.asarray(one - lstm.init(k, 3, 32).w_h)).max() < 1e-6
