"""Linear readout and cross-entropy in one function, without storing all logits.

Forward, for each chunk of time      N times the gradient of L, in the same pass
  y = h W + b                          dy = softmax y − q
  ℓ = −Σⱼ qⱼ log softmax(y)ⱼ           dh = dy Wᵀ
  L = Σ ℓ / N                          dW = Σ hᵀ dy
                                       db = Σ dy

with N = T·B predictions and the target q of each, a token's onehot(target) or a
distribution (`loss`). The loss is a scalar, so its gradient is known before the
backward pass begins, up to one factor, dL / N, where dL is the cotangent of the
loss. The forward pass computes N times the gradient chunk by chunk, while the
logits of the chunk exist. The backward pass multiplies it by that factor. The
division by N waits until then, because dL may be a loss scale: without the
scale, dy / N could underflow in float16. With V = 10,000 the logits [T, B, V]
of a whole batch would be the largest array of all.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from lstm_jax.cells.affine import affine, affine_backward
from lstm_jax.cells.checks import check_count
from lstm_jax.cells.mesh import auto_sharded, leading_sharding, vary_alike
from lstm_jax.cells.platform import compiled
from lstm_jax.cells.precision import cast_matrices, check_float, upcast
from lstm_jax.language import loss as losses
from lstm_jax.sequence.chunks import joined, scan_chunks

MAX_LOGITS = 2**22  # in a chunk: 16 MiB of float32
SYMBOLIC_BATCH = 32  # assumed if B is symbolic (`jax.export`)


def linear_cross_entropy(
  hs: jax.Array,
  w: jax.Array,
  b: jax.Array,
  targets: jax.Array,
  compute_dtype: jnp.dtype | None = None,
) -> jax.Array:
  """Return the mean cross-entropy of a linear readout, in nats per token.

  Args:
    hs: outputs of the top layer, [T, ..., H].
    w: readout weights, [H, V].
    b: readout bias, [V].
    targets: integers in [0, V), [T, ...]; or distributions, [T, ..., V]; as in
      `loss.cross_entropy`.
    compute_dtype: dtype of the operands of matrix products; None for that of w.

  Returns:
    Nats, [], in float32 or wider; NaN, with a gradient of 0, if N = 0. NaN
    also if an integer target is not in [0, V).

  Raises:
    ValueError: hs, w or b has a wrong shape, or is not floating-point; V is 0;
      the shape of targets is not hs.shape[:-1], followed by V for
      distributions; targets are neither integers nor floats; or compute_dtype
      is not a floating-point dtype.
  """
  hs, w, b, targets = map(jnp.asarray, (hs, w, b, targets))
  _check_weights(hs, w, b)
  losses.check_targets(targets, (*hs.shape[:-1], w.shape[1]))
  if compute_dtype is not None:
    check_float("compute_dtype", compute_dtype)
    compute_dtype = jnp.dtype(compute_dtype)
  # In `jax.shard_map`, all arguments must vary over the same mesh axes.
  arrays = vary_alike((hs, w, b, targets))
  dtypes = compute_dtype, w.dtype, b.dtype
  return _apply(MAX_LOGITS, dtypes, leading_sharding(hs, 0), *arrays)


@partial(compiled, num_static=3)
def _apply(max_logits, dtypes, sharding, *arrays):
  """Return L, by one compiled program for all calls of the same shapes."""
  del max_logits  # static: a test that changes MAX_LOGITS needs a new program
  rule = partial(_linear_cross_entropy, dtypes)
  return auto_sharded(rule, sharding)(*arrays)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _linear_cross_entropy(dtypes, hs, w, b, targets):
  """Return L; `dtypes` are compute_dtype, and the dtypes of dW and of db."""
  compute_dtype, *_ = dtypes
  operand = cast_matrices(w, compute_dtype)

  def body(total, h, target):
    nats, _ = losses.forward(affine(h, operand, b), target)
    return total + nats.sum(), None

  (total, *_) = _zeros(hs, operand, b)
  total, _ = _scan(body, total, hs, targets, w.shape[1])
  return total / _num_predictions(hs)


def _forward(dtypes, hs, w, b, targets):
  """Return (L, (dhs, dW, db)), with N times the gradient of L."""
  compute_dtype, *_ = dtypes
  operand = cast_matrices(w, compute_dtype)

  def body(carry, h, target):
    total, dw, db = carry
    nats, residuals = losses.forward(affine(h, operand, b), target)
    dy, _ = losses.backward(residuals, jnp.ones_like(nats))
    dh, dw_chunk, db_chunk = affine_backward(h, operand, dy)
    carry = total + nats.sum(), dw + dw_chunk, db + db_chunk
    return carry, dh

  sums = _zeros(hs, operand, b)
  (total, dw, db), dhs = _scan(body, sums, hs, targets, w.shape[1])
  return total / _num_predictions(hs), (dhs.astype(hs.dtype), dw, db)


def _backward(dtypes, gradient, dloss):
  """Multiply the gradient by dL / N; without predictions (N = 0) it is 0."""
  dhs, dw, db = gradient
  count = _num_predictions(dhs)
  factor = jnp.zeros_like(dloss) if count == 0 else dloss / count

  def scaled(x, dtype):
    return (upcast(x) * factor.astype(upcast(x).dtype)).astype(dtype)

  _, w_dtype, b_dtype = dtypes
  return scaled(dhs, dhs.dtype), scaled(dw, w_dtype), scaled(db, b_dtype), None


def _zeros(hs, w, b):
  """Return zeros for the sums of the loss, dW and db, in the widest dtype."""
  own = (upcast(x).dtype for x in (hs, w, b))
  widest = max(own, key=lambda dtype: jnp.finfo(dtype).bits)
  return jax.tree.map(lambda x: jnp.zeros_like(x, widest), (b[0], w, b))


_linear_cross_entropy.defvjp(_forward, _backward)


def grouped_linear_cross_entropy(
  hs: jax.Array,
  w: jax.Array,
  b: jax.Array,
  targets: jax.Array,
  groups: int,
  compute_dtype: jnp.dtype | None = None,
) -> jax.Array:
  """Return `linear_cross_entropy`, computed for groups of sequences.

  Each group sums its dW and db over time, and the groups' sums are added once,
  after the loop over chunks of time. Where each device has one group, the
  devices all-reduce one dW in a training step instead of one per chunk.

  Args:
    hs: as in `linear_cross_entropy`, [T, B, ..., H].
    w: as in `linear_cross_entropy`.
    b: as in `linear_cross_entropy`.
    targets: as in `linear_cross_entropy`, [T, B, ...].
    groups: number of groups of neighbouring sequences; a divisor of B.
    compute_dtype: as in `linear_cross_entropy`.

  Raises:
    ValueError: as `linear_cross_entropy`; hs has no batch axis, groups is no
      integer of at least 1, or B is not a multiple of it.
  """
  hs, w, b, targets = map(jnp.asarray, (hs, w, b, targets))
  _check_weights(hs, w, b)
  losses.check_targets(targets, (*hs.shape[:-1], w.shape[1]))
  groups = check_count("groups", groups)
  if hs.ndim < 3 or hs.shape[1] % groups:
    raise ValueError(
      f"hs must be [T, B, H] with B a multiple of {groups} groups, "
      f"got {hs.shape}"
    )

  def split_batch(x):
    size = x.shape[1] // groups  # not -1, which is ambiguous without elements
    return x.reshape(x.shape[0], groups, size, *x.shape[2:])

  def group_loss(hs, targets):
    return linear_cross_entropy(hs, w, b, targets, compute_dtype)

  vmapped = jax.vmap(group_loss, in_axes=1)
  nats = vmapped(split_batch(hs), split_batch(targets))
  return nats.mean()


def _check_weights(hs: jax.Array, w: jax.Array, b: jax.Array) -> None:
  """Raise ValueError unless hs, w and b are floats that fit each other.

  Without this check, a bias of one element would be broadcast to all V logits.
  """
  for name, x in (("hs", hs), ("w", w), ("b", b)):
    if not jnp.issubdtype(x.dtype, jnp.floating):
      raise ValueError(f"{name} must be floats, got {x.dtype}")
  if hs.ndim < 2:
    raise ValueError(f"hs must be [T, ..., H], got {hs.shape}")
  if w.ndim != 2 or w.shape[0] != hs.shape[-1] or w.shape[1] == 0:
    raise ValueError(f"w must be [{hs.shape[-1]}, V], V ≥ 1, got {w.shape}")
  if b.shape != w.shape[1:]:
    raise ValueError(f"b must be [{w.shape[1]}], got {b.shape}")


def _scan(
  body: Callable[..., tuple[Any, Any]],
  carry: Any,
  hs: jax.Array,
  targets: jax.Array,
  vocabulary_size: int,
) -> tuple[Any, Any]:
  """Scan body, (carry, h, target) -> (carry, y), over chunks of time steps.

  Returns:
    (carry after the last chunk, the y [T, ...] of all chunks or None).
  """
  steps, rows = hs.shape[0], math.prod(hs.shape[1:-1])
  if isinstance(steps, int) and steps == 0:
    return body(carry, hs, targets)  # there is no chunk
  size = _chunk_size(steps, rows, vocabulary_size)
  carry, ys = scan_chunks(body, carry, (hs, targets), size)
  return carry, joined(ys)


def _chunk_size(steps: int, rows: int, vocabulary_size: int) -> int:
  """Return how many of T time steps are a chunk, of at most MAX_LOGITS logits.

  This is the largest number that divides T, so that all chunks have the same
  shape, if it is more than half of what fits. Otherwise it is what fits, and
  the last chunk has fewer time steps. It is 1 if one time step has more logits
  than that, or if T is symbolic (`jax.export`). If B is symbolic, it is that of
  B = 32.
  """
  if not isinstance(rows, int):
    rows = SYMBOLIC_BATCH
  if not isinstance(steps, int):
    return 1
  fitting = min(steps, MAX_LOGITS // (max(rows, 1) * vocabulary_size))
  fitting = max(fitting, 1)
  large = range(fitting, fitting // 2, -1)
  return next((size for size in large if steps % size == 0), fitting)


def _num_predictions(hs: jax.Array) -> int:
  """Return N, the number of outputs in hs [T, ..., H]."""
  return math.prod(hs.shape[:-1])
