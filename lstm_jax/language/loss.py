"""Cross-entropy of a softmax, in nats per token, with its gradient by hand.

Forward                              Backward, from dℓ
  m = log Σⱼ exp(yⱼ)                   p  = exp(y − m)
  ℓ = m − y_target                     dy = dℓ (p − onehot(target))

m is computed around the largest logit, so that no exponential overflows, and p
never divides by a sum: both hold for any finite logits.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lstm_jax.cells.precision import wide


class CrossEntropyResiduals(NamedTuple):
  """What the loss keeps for its backward."""

  logits: jax.Array  # [..., V]
  targets: jax.Array  # [...]
  normalizer: jax.Array  # [...], m


def forward(
  logits: jax.Array, targets: jax.Array
) -> tuple[jax.Array, CrossEntropyResiduals]:
  """Return the loss of each target and what its backward needs."""
  if logits.shape[:-1] != targets.shape:
    raise ValueError(
      f"targets must be {list(logits.shape[:-1])}, got {targets.shape}"
    )
  y = wide(logits)
  normalizer = jax.nn.logsumexp(y, axis=-1)
  picked = jnp.take_along_axis(y, targets[..., None], axis=-1)[..., 0]
  return normalizer - picked, CrossEntropyResiduals(logits, targets, normalizer)


def backward(
  residuals: CrossEntropyResiduals, dloss: jax.Array
) -> tuple[jax.Array, None]:
  """Return (dlogits, no cotangent for the targets)."""
  logits, targets, normalizer = residuals
  p = jnp.exp(wide(logits) - normalizer[..., None])
  target = jax.nn.one_hot(targets, logits.shape[-1], dtype=p.dtype)
  dlogits = dloss[..., None] * (p - target)
  return dlogits.astype(logits.dtype), None


@jax.custom_vjp
def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
  """Return −log softmax(logits)[target], in nats, with the gradient above.

  Args:
    logits: [..., V], any finite values.
    targets: integers in [0, V), [...].

  Returns:
    Nats, [...], in float32 or wider.

  Raises:
    ValueError: the targets' shape is not that of the logits less V.
  """
  return forward(logits, targets)[0]


cross_entropy.defvjp(forward, backward)
