import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lstm_jax.cells.affine import affine
from lstm_jax.language import loss, readout
from tests.draws import B, H, normal_like, weighed, worst

T, V = 14, 7  # in tests.draws, B is 3 and H 6


def arguments(key, dtype=jnp.float64):
  shapes = (T, B, H), (H, V), (V,)
  leaves = normal_like(key, tuple(np.zeros(s, dtype) for s in shapes))
  return leaves, jax.random.randint(key, (T, B), 0, V)


def twin(hs, w, b, targets):
  """Return the same loss from all logits at once, for JAX to differentiate."""
  return loss.forward(affine(hs, w, b), targets)[0].mean()


value_and_gradient_of_twin = jax.jit(jax.value_and_grad(twin, (0, 1, 2)))


@pytest.fixture(params=[1, 3 * B * V, 5 * B * V, 10**9])
def chunks(request, monkeypatch):
  """In one group: chunks of 1, 2 (3 does not divide 14), 5, 5 and 4, or all."""
  monkeypatch.setattr(readout, "MAX_LOGITS", request.param)


@pytest.mark.everyday(2)
def test_the_gradient_is_that_of_autodiff_for_chunks_of_any_size(chunks, key):
  leaves, targets = arguments(key)

  def gradient(f):
    scalar = weighed(lambda *x: f(*x, targets), key)
    return jax.jit(jax.value_and_grad(scalar, (0, 1, 2)))(*leaves)

  assert worst(gradient(readout.linear_cross_entropy), gradient(twin)) < 1e-12
  assert abs(
    readout.linear_cross_entropy(*leaves, targets) - twin(*leaves, targets)
  ) < (1e-14 * T * B)


@pytest.mark.everyday(2)
@pytest.mark.parametrize("groups", [1, B])
def test_distributions_are_targets_too(groups, chunks, key):
  leaves, _ = arguments(key)
  q = jax.nn.softmax(normal_like(key, np.zeros((T, B, V), jnp.float64)))

  def in_groups(*leaves):
    return readout.grouped_linear_cross_entropy(*leaves, q, groups)

  found = jax.jit(jax.value_and_grad(in_groups, (0, 1, 2)))(*leaves)
  assert worst(found, value_and_gradient_of_twin(*leaves, q)) < 1e-12
  theirs = optax.softmax_cross_entropy(affine(*leaves), q).mean()
  assert abs(readout.linear_cross_entropy(*leaves, q) - theirs) < 1e-13


@pytest.mark.everyday(2)
@pytest.mark.parametrize("groups", [1, B])
def test_groups_of_the_batch_change_neither_loss_nor_gradient(
  groups, chunks, key
):
  leaves, targets = arguments(key)

  def in_groups(*leaves):
    return readout.grouped_linear_cross_entropy(*leaves, targets, groups)

  found = jax.jit(jax.value_and_grad(in_groups, (0, 1, 2)))(*leaves)
  assert worst(found, value_and_gradient_of_twin(*leaves, targets)) < 1e-12


def test_groups_in_int8_do_not_overflow(key):
  (hs, w, b), targets = arguments(key)
  # 150 sequences: more than the largest int8.
  leaves, targets = (jnp.repeat(hs, 50, axis=1), w, b), targets.repeat(50, 1)
  grouped = readout.grouped_linear_cross_entropy
  found, expected = (
    jax.eval_shape(partial(grouped, groups=groups), *leaves, targets)
    for groups in (np.int8(5), 5)
  )
  assert found == expected


def test_groups_must_divide_the_batch(key):
  leaves, targets = arguments(key)
  message = r"multiple of 2 groups, got \(14, 3, 6\)"
  with pytest.raises(ValueError, match=message):
    readout.grouped_linear_cross_entropy(*leaves, targets, 2)
  with pytest.raises(ValueError, match=r"be \[T, B, H\] .*, got \(14, 6\)"):
    readout.grouped_linear_cross_entropy(
      leaves[0][:, 0], *leaves[1:], targets[:, 0], 1
    )
  for groups in (0, -1, 3.0, None):
    message = f"^groups must be an integer ≥ 1, got {groups}$"
    with pytest.raises(ValueError, match=message):
      readout.grouped_linear_cross_entropy(*leaves, targets, groups)


def test_second_order_gradients_of_the_readout_equal_autodiff(key):
  leaves, targets = arguments(key)

  def second(f):
    first = jax.grad(weighed(lambda *x: f(*x, targets), key), (0, 1, 2))
    return jax.jit(jax.grad(weighed(first, key), (0, 1, 2)))(*leaves)

  assert worst(second(readout.linear_cross_entropy), second(twin)) < 1e-12


def test_a_wrong_gradient_is_noticed(key, monkeypatch):
  leaves, targets = arguments(key)
  right = loss.backward
  monkeypatch.setattr(loss, "backward", lambda r, d: (1.01 * right(r, d)[0], 0))
  wrong = jax.grad(readout.linear_cross_entropy)(*leaves, targets)
  assert worst(wrong, jax.grad(twin)(*leaves, targets)) > 1e-5


@pytest.mark.parametrize(
  ("steps", "size"),
  [(0, 1), (6, 6), (64, 8), (65, 13), (97, 15), (10**6 + 3, 15), (16, 8)],
)
def test_chunks_are_of_one_size_if_more_than_half_of_what_fits_divides_t(
  steps, size, monkeypatch
):
  monkeypatch.setattr(readout, "MAX_LOGITS", 15 * B * V + 1)  # 15 steps fit
  assert readout._chunk_size(steps, B, V) == size


def test_the_loss_of_many_time_steps_is_not_summed_one_by_one():
  steps = 100_003  # a prime
  hs, w = jnp.ones((steps, 1), jnp.float32), jnp.linspace(0, 1, 100)[None]
  arrays = hs, w.astype(jnp.float32), jnp.zeros(100, jnp.float32)
  nats = readout.linear_cross_entropy(*arrays, jnp.zeros(steps, int))
  exact = jax.nn.logsumexp(w)  # every target is token 0, of logit 0
  assert abs(float(nats) - float(exact)) < 1e-6 * float(exact)


@pytest.mark.parametrize("steps", [96, 97])
def test_distributions_are_not_copied(steps):
  shapes = (steps, 32, 8), (8, 10_000), (10_000,), (steps, 32, 10_000)
  arrays = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
  program = jax.jit(readout.linear_cross_entropy).lower(*arrays).compile()
  temporaries = program.memory_analysis().temp_size_in_bytes
  assert temporaries < 0.5 * 4 * math.prod(shapes[-1])


def test_the_logits_of_a_whole_batch_are_never_stored():
  shapes = (64, 32, 16), (16, 10_000), (10_000,)
  leaves = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
  targets = jax.ShapeDtypeStruct((64, 32), jnp.int32)

  def temporaries(f):
    gradient = jax.jit(jax.value_and_grad(f, (0, 1, 2)))
    compiled = gradient.lower(*leaves, targets).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  logits = 4 * 64 * 32 * 10_000
  assert temporaries(twin) > 2 * logits
  assert temporaries(readout.linear_cross_entropy) < 0.7 * logits


@pytest.mark.exhaustive
def test_gradients_of_bfloat16_products_are_near_and_keep_their_dtypes(key):
  leaves, targets = arguments(key, jnp.float32)

  def f(hs, w, b):
    return readout.linear_cross_entropy(hs, w, b, targets, jnp.bfloat16)

  gradients = jax.grad(f, (0, 1, 2))(*leaves)
  exact = jax.grad(twin, (0, 1, 2))(*leaves, targets)
  for a, b in zip(gradients, exact, strict=True):
    a, b = np.asarray(a), np.asarray(b)
    assert a.dtype == b.dtype
    # Not 0, since the operands of the products are rounded to bfloat16.
    assert 1e-5 < np.linalg.norm(a - b) / np.linalg.norm(b) < 2e-2


def test_targets_of_another_shape_are_refused(key):
  leaves, targets = arguments(key)
  with pytest.raises(ValueError, match=r"targets must be \[14, 3\], got \(14"):
    readout.linear_cross_entropy(*leaves, targets[:, 0])


@pytest.mark.everyday(1)
@pytest.mark.parametrize(
  ("dtype", "compute_dtype"),
  [("float32", "float64"), ("float16", "float32"), ("bfloat16", "float64")],
)
def test_products_may_be_wider_than_the_weights(dtype, compute_dtype, key):
  leaves, targets = arguments(key, jnp.dtype(dtype))

  def f(hs, w, b):
    wide = jnp.dtype(compute_dtype)
    return readout.linear_cross_entropy(hs, w, b, targets, wide)

  nats, found = jax.value_and_grad(f, (0, 1, 2))(*leaves)
  upcast = [leaf.astype(jnp.float64) for leaf in leaves]
  exact = jax.value_and_grad(twin, (0, 1, 2))(*upcast, targets)
  assert abs(float(nats) - float(exact[0])) < 1e-6
  for a, b, leaf in zip(found, exact[1], leaves, strict=True):
    assert a.dtype == leaf.dtype
    error = np.linalg.norm(np.asarray(a, np.float64) - b) / np.linalg.norm(b)
    assert error < jnp.finfo(dtype).eps


@pytest.mark.exhaustive
def test_small_gradients_of_float16_survive_if_the_loss_is_scaled():
  """(softmax y - q) / N alone would be below the least float16."""
  hs, b = np.ones((64, 64, 1), np.float16), np.zeros(2, np.float16)
  w, targets = np.array([[-4.6, 4.6]], np.float16), np.ones((64, 64), int)

  def gradient(dtype, scale):
    def scaled(w):
      arrays = (x.astype(dtype) for x in (hs, w, b))
      return scale * readout.linear_cross_entropy(*arrays, targets)

    return jax.grad(scaled)(jnp.asarray(w, dtype)).astype(jnp.float64) / scale

  found, exact = gradient(jnp.float16, 4096), gradient(jnp.float64, 1)
  assert abs(exact).max() < 2 * float(jnp.finfo(jnp.float16).smallest_normal)
  assert (abs(found - exact) < 1e-3 * abs(exact)).all()


def test_the_factor_of_a_float16_gradient_is_not_rounded():
  w, b = np.array([[-99, 99]], np.float16), np.zeros(2, np.float16)
  targets = np.zeros((64, 64), int)

  def scaled(hs):
    return 0.03 * readout.linear_cross_entropy(hs, w, b, targets)

  found = jax.grad(scaled)(jnp.zeros((64, 64, 1), jnp.float16))
  factor = np.float32(0.03) / 4096  # dL / N, which is subnormal in float16
  # softmax y is (½, ½), and dh = (½ − 1) · (−99) + ½ · 99, times the factor.
  assert (found == (99 * factor).astype(np.float16)).all()


def test_a_target_that_is_no_token_has_a_loss_of_nan(key):
  leaves, targets = arguments(key)
  for outside in (-1, V):
    given = targets.at[2, 1].set(outside)
    assert np.isnan(readout.linear_cross_entropy(*leaves, given))


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"hs": np.ones(H)}, r"^hs must be \[T, \.\.\., H\], got \(6,\)"),
    ({"hs": np.ones((T, B, 5))}, r"^w must be \[5, V\], V ≥ 1, got \(6, 7\)"),
    ({"hs": np.ones((T, B), int)}, "^hs must be floats, got int64"),
    ({"w": np.ones((1, H, V))}, r"^w must be \[6, V\], V ≥ 1, got \(1, 6, 7\)"),
    ({"w": np.ones((H, 0))}, r"^w must be \[6, V\], V ≥ 1, got \(6, 0\)"),
    ({"b": np.ones(1)}, r"^b must be \[7\], got \(1,\)"),
    ({"b": np.ones(V, complex)}, "^b must be floats, got complex128"),
    (
      {"targets": np.ones((T, B), bool)},
      "^targets must be integers, or .*bool",
    ),
    ({"compute_dtype": int}, "^compute_dtype must be a dtype of floats, .*int"),
  ],
)
def test_a_readout_names_the_argument_that_does_not_fit(change, message, key):
  (hs, w, b), targets = arguments(key)
  given = {"hs": hs, "w": w, "b": b, "targets": targets} | change
  for f in (
    readout.linear_cross_entropy,
    partial(readout.grouped_linear_cross_entropy, groups=B),
  ):
    with pytest.raises(ValueError, match=message):
      f(**given)


def test_a_readout_takes_lists_of_numbers(key):
  leaves, targets = arguments(key)
  lists = [np.asarray(x).tolist() for x in (*leaves, targets)]
  expected = readout.linear_cross_entropy(*leaves, targets)
  assert abs(readout.linear_cross_entropy(*lists) - expected) < 1e-13
  found = readout.grouped_linear_cross_entropy(*lists, B)
  assert abs(found - expected) < 1e-13


@pytest.mark.parametrize("shape", [(0, B), (T, 0)])
def test_without_predictions_the_loss_is_nan_and_its_gradient_0(shape, key):
  leaves, _ = arguments(key)
  leaves = jnp.zeros((*shape, H)), *leaves[1:]
  targets = jnp.zeros(shape, int)
  for f in (
    readout.linear_cross_entropy,
    partial(readout.grouped_linear_cross_entropy, groups=B),
  ):
    nats, gradient = jax.value_and_grad(f, (0, 1, 2))(*leaves, targets)
    assert jnp.isnan(nats)
    for found, leaf in zip(gradient, leaves, strict=True):
      assert found.shape == leaf.shape and (found == 0).all()
