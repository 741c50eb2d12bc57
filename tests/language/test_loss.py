import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lstm_jax.language import cross_entropy, loss
from tests.draws import B, T, normal_like, weighed, worst

V = 7  # in tests.draws, T is 5 and B 3


def arguments(key):
  logits = normal_like(key, np.zeros((T, B, V), jnp.float64))
  return logits, jax.random.randint(key, (T, B), 0, V)


def test_the_gradient_is_that_of_autodiff_and_of_optax(key):
  logits, targets = arguments(key)

  def gradient(f):
    scalar = weighed(lambda y: f(y, targets), key)
    return jax.value_and_grad(scalar)(logits)

  explicit = gradient(cross_entropy)
  autodiff = gradient(lambda y, t: loss.forward(y, t)[0])
  theirs = gradient(optax.softmax_cross_entropy_with_integer_labels)
  assert worst(explicit, autodiff) < 1e-12
  assert worst(explicit, theirs) < 1e-12


def distributions(key):
  """Return distributions over the V tokens [T, B, V]; one is one-hot."""
  q = jax.nn.softmax(normal_like(key, np.zeros((T, B, V), jnp.float64)))
  return q.at[1, 2].set(jax.nn.one_hot(3, V, dtype=q.dtype))


def test_distributions_are_targets_too_with_the_gradient_of_optax(key):
  logits, _ = arguments(key)
  q = distributions(jax.random.fold_in(key, 1))

  def gradient(f):
    scalar = weighed(lambda y: f(y, q), key)
    return jax.value_and_grad(scalar)(logits)

  explicit = gradient(cross_entropy)
  assert worst(explicit, gradient(lambda y, q: loss.forward(y, q)[0])) < 1e-12
  assert worst(explicit, gradient(optax.softmax_cross_entropy)) < 1e-12


def test_a_single_token_is_the_distribution_onehot(key):
  logits, targets = arguments(key)
  onehot = jax.nn.one_hot(targets, V, dtype=jnp.float64)
  gradients = [
    jax.value_and_grad(weighed(lambda y, q=q: cross_entropy(y, q), key))(logits)
    for q in (targets, onehot)
  ]
  assert worst(*gradients) < 1e-14


def test_distributions_are_constants(key):
  logits, _ = arguments(key)
  q = distributions(key)
  for f in (cross_entropy, lambda y, q: loss.forward(y, q)[0]):
    assert not jax.grad(lambda q, f=f: f(logits, q).sum())(q).any()


def test_distributions_of_another_shape_are_refused(key):
  logits, _ = arguments(key)
  with pytest.raises(
    ValueError, match=r"distributions must be \[5, 3, 7\], got \(5, 3\)"
  ):
    cross_entropy(logits, jnp.zeros((T, B)))


def test_second_order_gradients_of_the_loss_equal_autodiff(key):
  logits, targets = arguments(key)

  def second(f):
    first = jax.grad(weighed(lambda y: f(y, targets), key))
    return jax.grad(weighed(first, key))(logits)

  autodiff = second(lambda y, t: loss.forward(y, t)[0])
  assert worst(second(cross_entropy), autodiff) < 1e-12


@pytest.mark.everyday(1)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("size", [1e4, 1e30])
def test_the_loss_is_stable_for_any_finite_logits(size, dtype):
  logits = jnp.array([[size, -size, 0.0], [-size, -size, -size]], dtype)
  tolerance = 4 * float(jnp.finfo(dtype).eps)
  for targets, nats in (
    ([0, 1], [0, np.log(3)]),
    ([1, 2], [2 * size, np.log(3)]),
  ):
    value, pullback = jax.vjp(
      lambda y, t=targets: cross_entropy(y, jnp.array(t)), logits
    )
    (dlogits,) = pullback(jnp.ones(2, dtype))
    assert np.allclose(value, nats, rtol=tolerance, atol=0)
    third = 1 / 3
    expected = np.array([[1, 0, 0], [third, third, third]])
    expected[np.arange(2), targets] -= 1
    assert np.allclose(dlogits, expected, rtol=0, atol=tolerance)


def test_the_loss_and_gradient_of_16_bits_are_computed_in_float32(key):
  logits, targets = arguments(key)
  narrow = (10 * logits).astype(jnp.bfloat16)
  f = jax.value_and_grad(lambda y: cross_entropy(y, targets).sum())
  (nats, found), (expected_nats, expected) = (
    f(y) for y in (narrow, narrow.astype(jnp.float32))
  )
  assert nats == expected_nats and nats.dtype == jnp.float32
  assert (found == expected.astype(jnp.bfloat16)).all()


def test_targets_may_have_a_dtype_that_is_too_small_for_the_vocabulary(key):
  logits = normal_like(key, np.zeros((3, 300), jnp.float64))
  targets = np.array([1, 2, 255])
  gradients = [
    jax.grad(lambda y, t=t: cross_entropy(y, t).sum())(logits)
    for t in (targets, targets.astype(np.uint8))
  ]
  assert worst(*gradients) == 0


def test_targets_of_another_shape_are_refused(key):
  logits, targets = arguments(key)
  with pytest.raises(ValueError, match=r"targets must be \[5, 3\], got \(5,\)"):
    cross_entropy(logits, targets[:, 0])


def test_a_probability_of_zero_has_no_part_in_the_loss():
  logits = jnp.array([3e38, -3e38], jnp.float32)  # their difference overflows
  q = jnp.array([1.0, 0.0], jnp.float32)
  assert cross_entropy(logits, q) == cross_entropy(logits, jnp.array(0)) == 0


def test_a_target_that_is_no_token_has_a_loss_of_nan(key):
  logits, targets = arguments(key)
  for outside in (-1, -V, V, 2**32 + 3):  # as an int32, the last would be 3
    given = targets.at[2, 1].set(outside)
    narrow = (jnp.int8, jnp.int32) if outside <= V else ()
    for dtype in (*narrow, jnp.int64):
      nats = cross_entropy(logits, given.astype(dtype))
      assert np.isnan(nats[2, 1]) and np.isnan(nats).sum() == 1
    found = jax.grad(lambda y, t=given: jnp.nansum(cross_entropy(y, t)))(logits)
    assert np.isfinite(found).all() and not found[2, 1].any()


@pytest.mark.parametrize("dtype", [bool, complex])
def test_targets_are_integers_or_floats(dtype, key):
  logits, targets = arguments(key)
  message = rf"^targets must be integers, or floats .*, got {dtype.__name__}"
  with pytest.raises(ValueError, match=message):
    cross_entropy(logits, targets.astype(dtype))


@pytest.mark.parametrize(
  ("logits", "got"),
  [
    (np.ones((3, V), int), r"int64 \(3, 7\)"),
    (np.ones((3, V), complex), r"complex128 \(3, 7\)"),
    (np.ones((3, 0)), r"float64 \(3, 0\)"),
    (1.0, r"float64 \(\)"),
  ],
)
def test_logits_are_floats_of_at_least_one_token(logits, got):
  message = rf"^logits must be floats \[\.\.\., V\] with V ≥ 1, got {got}$"
  with pytest.raises(ValueError, match=message):
    cross_entropy(logits, np.zeros(3, int))


def test_lists_and_numbers_are_arrays():
  y = [[1.0, 2.0, 0.0], [0.0, 1.0, 0.0]]
  expected = cross_entropy(jnp.array(y), jnp.array([2, 0]))
  np.testing.assert_array_equal(cross_entropy(y, [2, 0]), expected)
  assert cross_entropy(y[0], 2) == expected[0]
