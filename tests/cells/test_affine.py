"""The affine map x W + b of vectors and of tokens, and its gradient.

JAX differentiates `affine`; `linear` has the hand-derived gradient.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax.cells import affine
from tests.compiling import dtypes
from tests.draws import B, D, H, T, normal_like, weighed, worst


def draw_weights(key, rows):
  """Return random (w [rows, H], b [H])."""
  shapes = (rows, H), (H,)
  return normal_like(key, tuple(np.zeros(s, jnp.float64) for s in shapes))


@pytest.mark.everyday(1)
@pytest.mark.parametrize("leading", [(), (B,), (T, B), (1, 1)])
def test_linear_has_the_gradient_of_affine(leading, key):
  w, b = draw_weights(key, D)
  x = jax.random.normal(key, (*leading, D), jnp.float64)
  gradients = [
    jax.grad(weighed(f, key), (0, 1, 2))(x, w, b)
    for f in (affine.linear, affine.affine)
  ]
  assert worst(*gradients) < 1e-12


@pytest.mark.everyday(1)
@pytest.mark.parametrize("tokens", [False, True])
def test_the_gradient_of_linear_has_a_forward_mode(tokens, key):
  w, b = draw_weights(key, D)
  x = jax.random.normal(key, (B, D), jnp.float64)
  x = jnp.arange(B) % D if tokens else x
  tangents = draw_weights(jax.random.key(1), D)
  # The cube makes the gradient depend on w and b.
  derivatives = [
    jax.jvp(
      jax.grad(weighed(lambda w, b, f=f: f(x, w, b) ** 3, key), (0, 1)),
      (w, b),
      tangents,
    )
    for f in (affine.linear, affine.affine)
  ]
  assert worst(*derivatives) < 1e-12


@pytest.mark.everyday(1)
# Fewer rows than the T·B tokens: db is computed from dW. More: from da.
@pytest.mark.parametrize("rows", [D, T * B + 1])
def test_tokens_equal_one_hot_rows_in_a_small_and_a_large_table(rows, key):
  w, b = draw_weights(key, rows)
  tokens = jax.random.randint(key, (T, B), 0, rows).at[0, 0].set(rows - 1)
  tokens = tokens.at[1].set(2)  # a token at several positions
  one_hot = jax.nn.one_hot(tokens, rows, dtype=jnp.float64)
  gradients = [
    jax.value_and_grad(weighed(f, key), (0, 1))(w, b)
    for f in (
      lambda w, b: affine.linear(tokens, w, b),
      lambda w, b: affine.affine(one_hot, w, b),
    )
  ]
  assert worst(*gradients) < 1e-12


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint8])
def test_narrow_integers_index_a_table_larger_than_their_range(dtype, key):
  w, b = draw_weights(key, 300)
  tokens = jnp.array([0, 5, 127], jnp.int32)
  gradients = [
    jax.value_and_grad(
      weighed(lambda w, b, x=x: affine.linear(x, w, b), key), (0, 1)
    )(w, b)
    for x in (tokens, tokens.astype(dtype))
  ]
  assert worst(*gradients) == 0


def test_bfloat16_products_accumulate_in_float32(key):
  x = jnp.ones((4097,), jnp.bfloat16)  # rounded to bfloat16, the sum is 4128
  w = jnp.full((4097, 1), 1 + 2**-7, jnp.bfloat16)
  assert affine.product(x, w).dtype == jnp.float32
  assert affine.product(x, w)[0] == 4097 * (1 + 2**-7)


@pytest.mark.parametrize("tokens", [False, True])
def test_gradients_of_bfloat16_weights_are_summed_in_float32(tokens):
  """In bfloat16, a scatter of ones stops at 256; a product gives 1000."""
  w, b = jnp.zeros((1, 1), jnp.bfloat16), jnp.zeros(1, jnp.bfloat16)
  x = jnp.zeros(999, int) if tokens else jnp.ones((999, 1), jnp.bfloat16)
  a = affine.affine(x, w, b)
  _, dw, db = affine.affine_backward(x, w, jnp.ones_like(a))
  assert {a.dtype, dw.dtype, db.dtype} == {jnp.dtype(jnp.float32)}
  assert dw == 999 and db == 999


def test_linear_multiplies_in_the_compute_dtype(key):
  x, w, b = jax.tree.map(
    lambda x: x.astype(jnp.float32),
    normal_like(key, (np.zeros((B, D)), np.zeros((D, H)), np.zeros(H))),
  )

  def loss(x, w, b):
    return affine.linear(x, w, b, jnp.bfloat16).sum()

  for f in (loss, jax.value_and_grad(loss, (0, 1, 2))):
    found = dtypes(f, x, w, b)["dot_general"]
    assert found == {("bfloat16", "bfloat16", "float32")}


@pytest.mark.everyday(1)
@pytest.mark.parametrize("rows", [1, 2, 3, 9])  # few: up to half of W's 5 rows
def test_product_transposed_is_right_for_few_and_for_many_rows(rows, key):
  keys = jax.random.split(key)
  x = jax.random.normal(keys[0], (rows, 7))
  w = jax.random.normal(keys[1], (5, 7))
  assert worst(affine.product_transposed(x, w), x @ w.T) < 1e-12


def test_large_unsigned_tokens_read_the_last_row_and_have_no_gradient():
  w = jnp.arange(4.0).reshape(4, 1)
  tokens = jnp.array([4, 2**31, 2**32 - 2, 2**32 - 1], jnp.uint32)
  assert (affine.select_or_multiply(tokens, w) == 3).all()
  _, dw, _ = affine.affine_backward(tokens, w, jnp.ones((4, 1)))
  assert not dw.any()


@pytest.mark.exhaustive
def test_the_gradient_of_tokens_takes_a_wider_cotangent(key):
  """A float64 cotangent with float32 weights, as a float64 state gives."""
  w, da = normal_like(key, (np.zeros((D, H), np.float32), np.zeros((B, H))))
  tokens = jnp.array([0, 3, 3])
  _, found, _ = affine.affine_backward(tokens, w, da)
  rows = jnp.eye(D, dtype=w.dtype)[tokens]
  _, expected, _ = affine.affine_backward(rows, w, da.astype(w.dtype))
  assert worst(found, expected) < 1e-6
