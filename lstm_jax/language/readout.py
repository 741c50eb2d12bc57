"""Readout and loss together, so that the logits of a whole block never exist.

Forward, for each chunk of time      Its gradient, in the same pass
  y = h W + b                          dy = (softmax y − onehot(target)) / N
  ℓ = −log softmax(y)[target]          dh = dy Wᵀ
  L = Σ ℓ / N                          dW = Σ hᵀ dy
                                       db = Σ dy

with N = T·B predictions. The loss is one number, so its gradient is known up to
that number's cotangent, a factor, before the backward begins: it is made chunk
by chunk while the chunk's logits are there, and the backward multiplies it by
the factor. At V 10,000 the logits [T, B, V] would be the largest array of all.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from lstm_jax.cells.affine import affine, affine_backward
from lstm_jax.cells.precision import cast_like, lower, wide
from lstm_jax.language import loss as losses

LOGITS = 2**22  # at once, at most: 16 MiB of float32


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def linear_cross_entropy(
  hs: jax.Array,
  w: jax.Array,
  b: jax.Array,
  targets: jax.Array,
  compute_dtype: jnp.dtype | None = None,
) -> jax.Array:
  """Return the mean cross-entropy of the readout, in nats.

  Args:
    hs: outputs of the top layer, [T, ..., H].
    w: readout weights, [H, V].
    b: readout bias, [V].
    targets: integers in [0, V), [T, ...].
    compute_dtype: of the products' operands; None for that of w.

  Returns:
    Nats, [], in float32 or wider.

  Raises:
    ValueError: the targets' shape is not that of hs less H.
  """

  def body(total, chunk):
    h, target = chunk
    nats, _ = losses.forward(affine(h, lower(w, compute_dtype), b), target)
    return total + nats.sum(), None

  chunks = _chunks(hs, targets, w.shape[1])
  total, _ = lax.scan(body, jnp.zeros((), wide(b).dtype), chunks)
  return total / targets.size


def _forward(hs, w, b, targets, compute_dtype):
  operand = lower(w, compute_dtype)
  share = 1 / targets.size

  def body(carry, chunk):
    total, dw, db = carry
    h, target = chunk
    nats, residuals = losses.forward(affine(h, operand, b), target)
    dy, _ = losses.backward(residuals, jnp.full_like(nats, share))
    dh, dw_chunk, db_chunk = affine_backward(h, operand, dy)
    carry = total + nats.sum(), dw + dw_chunk, db + db_chunk
    return carry, dh

  zeros = wide((jnp.zeros((), b.dtype), jnp.zeros_like(w), jnp.zeros_like(b)))
  chunks = _chunks(hs, targets, w.shape[1])
  (total, dw, db), dhs = lax.scan(body, zeros, chunks)
  dhs = dhs.reshape(hs.shape)
  dhs, dw, db = cast_like((dhs, dw, db), (hs, w, b))
  return total * share, (dhs, dw, db)


def _backward(compute_dtype, gradient, dloss):
  del compute_dtype
  scaled = jax.tree.map(
    lambda g: wide(g) * dloss.astype(wide(g).dtype), gradient
  )
  return *cast_like(scaled, gradient), None


linear_cross_entropy.defvjp(_forward, _backward)


def grouped_linear_cross_entropy(
  hs: jax.Array,
  w: jax.Array,
  b: jax.Array,
  targets: jax.Array,
  groups: int,
  compute_dtype: jnp.dtype | None = None,
) -> jax.Array:
  """Return `linear_cross_entropy` of groups, each with its own gradient.

  dW and db are added up over time within a group, and over the groups once,
  after the loop: where every device has a group, what they send is one dW, and
  not one a chunk.

  Args:
    hs: as in `linear_cross_entropy`, [T, B, ..., H].
    w: as in `linear_cross_entropy`.
    b: as in `linear_cross_entropy`.
    targets: as in `linear_cross_entropy`, [T, B, ...].
    groups: of neighbouring streams; it divides B.
    compute_dtype: as in `linear_cross_entropy`.

  Raises:
    ValueError: as `linear_cross_entropy`, or B is not a multiple of the groups.
  """
  if targets.ndim < 2 or targets.shape[1] % groups:
    raise ValueError(
      f"targets must be [T, B] with B a multiple of {groups} groups, "
      f"got {targets.shape}"
    )

  def in_groups(x):
    return x.reshape(x.shape[0], groups, -1, *x.shape[2:])

  def of_group(h, target):
    return linear_cross_entropy(h, w, b, target, compute_dtype)

  nats = jax.vmap(of_group, in_axes=1)(in_groups(hs), in_groups(targets))
  return nats.mean()


def _chunks(
  hs: jax.Array, targets: jax.Array, vocabulary: int
) -> tuple[jax.Array, jax.Array]:
  """Return (hs, targets), [n, T/n, ...]: as many steps a chunk as fit.

  A chunk's steps divide T, so that all chunks have one shape.
  """
  if hs.shape[:-1] != targets.shape:
    raise ValueError(
      f"targets must be {list(hs.shape[:-1])}, got {targets.shape}"
    )
  steps = targets.shape[0]
  fitting = LOGITS // (max(targets.size // steps, 1) * vocabulary)
  size = max(
    n for n in range(1, steps + 1) if steps % n == 0 and n <= max(fitting, 1)
  )
  shape = steps // size, size
  return (
    hs.reshape(*shape, *hs.shape[1:]),
    targets.reshape(*shape, *targets.shape[1:]),
  )
