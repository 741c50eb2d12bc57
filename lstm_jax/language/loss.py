"""Softmax cross-entropy, in nats per token, with a hand-derived gradient.

Forward                              Backward, from dℓ
  u = y − max y                        p  = exp(u − s)
  s = log Σⱼ exp(uⱼ)                   dy = dℓ (p − onehot(target))
  ℓ = s − u_target

The largest logit is subtracted first, so that no exponential overflows and a
small loss between two large logits keeps its digits. It cancels in ℓ, so it has
no gradient.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lstm_jax.cells.mesh import auto_sharded, leading_sharding, vary_alike
from lstm_jax.cells.precision import upcast


class CrossEntropyResiduals(NamedTuple):
  """The residuals of the loss: what its backward pass needs."""

  logits: jax.Array  # [..., V]
  targets: jax.Array  # [...]
  largest: jax.Array  # [...], max y
  log_sum: jax.Array  # [...], s


def forward(
  logits: jax.Array, targets: jax.Array
) -> tuple[jax.Array, CrossEntropyResiduals]:
  """Return (the loss of each target [...], residuals)."""
  if logits.shape[:-1] != targets.shape:
    raise ValueError(
      f"targets must be {list(logits.shape[:-1])}, got {targets.shape}"
    )
  targets = targets.astype(jnp.int32)  # int8 cannot index V classes
  y = upcast(logits)
  largest = lax.stop_gradient(y.max(axis=-1))
  u = y - largest[..., None]
  log_sum = jnp.log(jnp.exp(u).sum(axis=-1))
  u_target = jnp.take_along_axis(u, targets[..., None], axis=-1)[..., 0]
  residuals = CrossEntropyResiduals(logits, targets, largest, log_sum)
  return log_sum - u_target, residuals


def backward(
  residuals: CrossEntropyResiduals, dloss: jax.Array
) -> tuple[jax.Array, None]:
  """Return (dlogits, None); integer targets have no cotangent."""
  logits, targets, largest, log_sum = residuals
  u = upcast(logits) - largest[..., None]
  p = jnp.exp(u - log_sum[..., None])
  target = jax.nn.one_hot(targets, logits.shape[-1], dtype=p.dtype)
  dlogits = dloss[..., None] * (p - target)
  return dlogits.astype(logits.dtype), None


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
  """Return −log softmax(logits)[target], in nats, with the gradient above.

  Args:
    logits: [..., V], any finite values.
    targets: integers in [0, V), [...]. The range is not checked.

  Returns:
    Nats, [...], in float32 or wider.

  Raises:
    ValueError: the shape of targets is not logits.shape[:-1].
  """
  # On a mesh with explicit axes, the losses are sharded as the logits are.
  sharding = leading_sharding(logits, 0, logits.ndim - 1)
  rule = auto_sharded(_cross_entropy, sharding)
  return rule(*vary_alike((logits, targets)))


@jax.custom_vjp
def _cross_entropy(logits, targets):
  return forward(logits, targets)[0]


_cross_entropy.defvjp(forward, backward)
