"""Initial weights: their scale, sizes and dtypes."""

from collections import defaultdict
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import Autodiff, Explicit, lru, projected_lstm, unroll
from tests.contract import ROWS
from tests.draws import B, D, H, T, normal_like, weighed, worst


@ROWS
def test_initial_weights_and_states_can_be_donated(row, key):
  params = row.cell.init(key, D, H)
  args = params, row.cell.initial_state(params, (B,))
  double = partial(jax.tree.map, lambda leaf: 2 * leaf)
  expected = double(args)
  found = jax.jit(double, donate_argnums=0)(args)
  assert worst(found, expected) == 0
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(args))


@ROWS
def test_init_has_unit_scale_orthogonal_recurrence_and_right_biases(row, key):
  """Biases are 0, but 1 for the gate that `row.forget` names."""
  hidden, size = 32, 500
  params = row.cell.init(key, size, hidden)
  gates = params.w_x.shape[1] // hidden
  w_h = np.asarray(getattr(params, "w_h", np.zeros((0, 1, gates))))
  for head in w_h.reshape(-1, *w_h.shape[-2:]):  # one matrix, or one per head
    for block in np.split(head, gates, axis=1):
      assert np.abs(block @ block.T - np.eye(len(block))).max() < 1e-5
  for block in np.split(np.asarray(params.w_x), gates, axis=1):
    assert abs(block.std() * size**0.5 - 1) < 0.05
  vectors = {k: v for k, v in params._asdict().items() if v.ndim == 1}
  gains = [vectors.pop(k) for k in list(vectors) if k.startswith("gain")]
  assert all((gain == 1).all() for gain in gains)
  vectors.pop("nu", None)  # the decays of `lru`, which are random
  biases = np.concatenate(list(vectors.values()))
  forget = np.zeros_like(biases)
  if row.forget is not None:
    forget[row.forget * hidden : (row.forget + 1) * hidden] = 1
  assert (biases == forget).all()
  assert all(not leaf.any() for leaf in row.cell.initial_state(params, (B,)))


@ROWS
def test_weights_of_float64_are_drawn_in_float64(row, key):
  for leaf in map(np.asarray, jax.tree.leaves(row.cell.init(key, D, H, "f8"))):
    is_random = len(np.unique(leaf)) > 2  # not a bias or a gain
    assert (leaf != leaf.astype("f4")).any() == is_random


@ROWS
def test_the_dtype_may_be_float_which_is_float32_without_x64(row, key):
  """Without a warning, which is an error in tests."""
  with jax.enable_x64(False):
    params = jax.eval_shape(lambda: row.cell.init(key, D, H, float))
  assert {leaf.dtype for leaf in params} == {jnp.dtype(jnp.float32)}


@ROWS
def test_the_batch_shape_of_a_state_is_a_tuple(row, key):
  """A batch size alone, as Haiku takes it, is an error."""
  params = jax.eval_shape(lambda: row.cell.init(key, D, H))
  message = rf"^batch_shape must be a tuple of sizes, .* \(4,\), got {B}$"
  with pytest.raises(ValueError, match=message):
    row.cell.initial_state(params, B)


@pytest.mark.exhaustive
@ROWS
def test_no_two_blocks_of_the_initial_weights_are_one_draw(row, key):
  """Blocks are gates, heads, rounds and matrices.

  Two independent draws of n numbers have a correlation of about 1 / √n.
  """
  blocks = defaultdict(list)
  for leaf in row.cell.init(key, 32, 32):
    for matrix in leaf.reshape(-1, *leaf.shape[-2:]) if leaf.ndim > 1 else ():
      rows, columns = matrix.shape
      for block in np.split(matrix, columns // min(rows, columns), axis=1):
        blocks[block.shape].append(block.ravel())
  for drawn in blocks.values():
    others = np.corrcoef(drawn) - np.eye(len(drawn))
    assert np.abs(others).max() < 5 / drawn[0].size ** 0.5


@pytest.mark.exhaustive
@pytest.mark.parametrize("projection", [1, 2, 5, 9])
def test_a_projection_can_have_any_size(projection, key):
  cell = projected_lstm
  shapes = cell.init(key, D, H, jnp.float64, projection_size=projection)
  zeros = shapes, cell.initial_state(shapes, (B,)), np.zeros((T, B, D))
  params, state, xs = normal_like(key, zeros)
  a, b = (
    jax.jit(
      jax.grad(weighed(partial(unroll, cell, adjoint=adjoint), key), (0, 1, 2))
    )(params, state, xs)
    for adjoint in (Explicit(), Autodiff())
  )
  assert a[1].h.shape == (B, projection) and a[1].c.shape == (B, H)
  assert worst(a, b) < 1e-12


def test_a_projection_of_size_zero_is_an_error(key):
  message = "^projection_size must be an integer ≥ 1, got 0$"
  with pytest.raises(ValueError, match=message):
    projected_lstm.init(key, D, H, projection_size=0)


def test_a_projection_is_orthonormal_and_by_default_of_half_the_units(key):
  w_r = np.asarray(projected_lstm.init(key, D, 5).w_r)
  assert w_r.shape == (5, 3)
  assert np.abs(w_r.T @ w_r - np.eye(3)).max() < 1e-5


@ROWS
@pytest.mark.parametrize(
  ("sizes", "name", "got"),
  [
    ((0, H), "input_size", "0"),
    ((D, 0), "hidden_size", "0"),
    ((4.0, H), "input_size", "4.0"),
    ((D, "6"), "hidden_size", "'6'"),
    ((D, True), "hidden_size", "True"),
  ],
)
def test_sizes_that_are_not_positive_integers_are_an_error(
  row, sizes, name, got, key
):
  message = f"^{name} must be an integer ≥ 1, got {got}$"
  with pytest.raises(ValueError, match=message):
    row.cell.init(key, *sizes)


@ROWS
@pytest.mark.parametrize(
  ("dtype", "name"),
  [
    (jnp.int32, "int32"),
    (jnp.complex64, "complex64"),
    ("half2", "'half2'"),
    (None, "None"),
    (">f4", "'>f4'"),
    (np.longdouble, "longdouble"),
  ],
)
def test_a_dtype_that_is_none_of_the_floats_of_jax_is_an_error(
  row, dtype, name, key
):
  message = f"^dtype must be a dtype of floats, .*, got {name}$"
  with pytest.raises(ValueError, match=message):
    row.cell.init(key, D, H, dtype)


def test_the_initial_decays_of_an_lru_are_spread_between_0_and_1(key):
  """λ² is uniform up to 0.999²: half the λ are above √½, a tenth above √0.9."""
  nu = lru.init(key, 1, 10_000).nu
  rounded = lru.init(key, 1, 10_000, jnp.bfloat16).nu
  assert (rounded == nu.astype(jnp.bfloat16)).all()  # drawn in float32
  decays = np.exp(-np.exp(nu))
  assert decays.min() > 0 and 0.998 < decays.max() < 0.999
  for share in (0.1, 0.5):
    assert abs((decays > (1 - share) ** 0.5).mean() - share) < 0.02


def test_no_initial_decay_of_an_lru_is_0_whatever_is_drawn(key, monkeypatch):
  def least(key, shape, dtype, minval, maxval):
    return jnp.full(shape, minval, dtype)

  monkeypatch.setattr(jax.random, "uniform", least)
  nu = lru.init(key, D, H, jnp.float64).nu
  # λ² is drawn from 1e-6 on.
  assert worst(np.exp(-np.exp(nu)), np.full(H, 1e-3)) < 1e-15


@ROWS
@pytest.mark.parametrize("size", [np.int8(100), np.uint8(200)])
def test_sizes_may_be_narrow_integers_of_numpy(row, size, key):
  found = jax.eval_shape(lambda key: row.cell.init(key, D, size), key)
  exact = jax.eval_shape(lambda key: row.cell.init(key, D, int(size)), key)
  assert found == exact
  found = jax.eval_shape(lambda key: row.cell.init(key, size, H), key)
  exact = jax.eval_shape(lambda key: row.cell.init(key, int(size), H), key)
  assert found == exact
