"""Softmax cross-entropy, in nats per token, with a hand-derived gradient.

Forward                              Backward, from dℓ
  u = y − max y                        p  = exp(u − s)
  s = log Σⱼ exp(uⱼ)                   dy = dℓ (p − q)
  ℓ = s − Σⱼ qⱼ uⱼ

The target q is a distribution over the tokens: that of a teacher
(distillation), or one token, q = onehot(target) and ℓ = s − u_target. It is a
constant, which has no gradient.

The largest logit is subtracted first, so that no exponential overflows and a
small loss between two large logits keeps its digits. Since Σⱼ qⱼ = 1, it
cancels in ℓ and adds nothing to the gradient.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from lstm_jax.cells.mesh import auto_sharded, leading_sharding, vary_alike
from lstm_jax.cells.precision import upcast


class CrossEntropyResiduals(NamedTuple):
  """The residuals of the loss: what its backward pass needs."""

  logits: jax.Array  # [..., V]
  targets: jax.Array  # integers [...], or distributions [..., V]
  largest: jax.Array  # [...], max y
  log_sum: jax.Array  # [...], s


def forward(
  logits: jax.Array, targets: jax.Array
) -> tuple[jax.Array, CrossEntropyResiduals]:
  """Return (the loss of each target [...], residuals)."""
  check_targets(targets, logits.shape)
  y = upcast(logits)
  largest = lax.stop_gradient(y.max(axis=-1))
  u = y - largest[..., None]
  log_sum = jnp.log(jnp.exp(u).sum(axis=-1))
  if are_distributions(targets):
    targets = lax.stop_gradient(targets.astype(y.dtype))
    # Where the target's probability is 0, u may be −∞, and 0 · −∞ is NaN.
    u_target = jnp.where(targets == 0, 0, targets * u).sum(axis=-1)
  else:
    if targets.dtype.itemsize < 4:  # int8 cannot index V classes
      targets = targets.astype(jnp.int32)
    # JAX takes the index −1 for the last, 2³² for 0, and returns NaN for V.
    size = logits.shape[-1]
    index = jnp.where((targets < 0) | (targets > size), size, targets)
    u_target = jnp.take_along_axis(u, index[..., None], axis=-1)[..., 0]
  residuals = CrossEntropyResiduals(logits, targets, largest, log_sum)
  return log_sum - u_target, residuals


def backward(
  residuals: CrossEntropyResiduals, dloss: jax.Array
) -> tuple[jax.Array, None]:
  """Return (dlogits, None); targets have no cotangent."""
  logits, targets, largest, log_sum = residuals
  u = upcast(logits) - largest[..., None]
  p = jnp.exp(u - log_sum[..., None])
  q = targets
  if not are_distributions(targets):
    q = jax.nn.one_hot(targets, logits.shape[-1], dtype=p.dtype)
  dlogits = dloss[..., None] * (p - q)
  return dlogits.astype(logits.dtype), None


def cross_entropy(logits: ArrayLike, targets: ArrayLike) -> jax.Array:
  """Return −log softmax(logits)[target], in nats, with a hand-derived gradient.

  Args:
    logits: [..., V], any finite values.
    targets: integers in [0, V), [...]; or distributions q, [..., V], for
      −Σⱼ qⱼ log softmax(logits)ⱼ. That q sums to 1 is not checked.

  Returns:
    Nats, [...], in float32 or wider; NaN for an integer that is not in [0, V).
    Without `jax_enable_x64`, JAX first wraps NumPy's int64 to 32 bits.

  Raises:
    ValueError: logits are not floats [..., V], or V is 0; targets' shape is not
      logits.shape[:-1], or logits.shape for distributions; or targets are
      neither integers nor floats.
  """
  logits, targets = jnp.asarray(logits), jnp.asarray(targets)
  is_float = jnp.issubdtype(logits.dtype, jnp.floating)
  if not is_float or logits.shape[-1:] in ((), (0,)):
    raise ValueError(
      "logits must be floats [..., V] with V ≥ 1, got "
      f"{logits.dtype} {logits.shape}"
    )
  # On a mesh with explicit axes, the losses are sharded as the logits are. In
  # `jax.shard_map`, both arguments must vary over the same mesh axes.
  sharding = leading_sharding(logits, logits.ndim - 1)
  rule = auto_sharded(_cross_entropy, sharding)
  return rule(*vary_alike((logits, targets)))


@jax.custom_vjp
def _cross_entropy(logits, targets):
  return forward(logits, targets)[0]


_cross_entropy.defvjp(forward, backward)


def are_distributions(targets: jax.Array) -> bool:
  """Return whether targets are distributions [..., V], not integers [...]."""
  return jnp.issubdtype(targets.dtype, jnp.floating)


def check_targets(targets: jax.Array, shape: tuple[int, ...]) -> None:
  """Raise ValueError if targets do not fit logits of a shape [..., V]."""
  soft = are_distributions(targets)
  if not soft and not jnp.issubdtype(targets.dtype, jnp.integer):
    raise ValueError(
      "targets must be integers, or floats for distributions, got "
      f"{targets.dtype}"
    )
  expected = shape if soft else shape[:-1]
  if targets.shape != expected:
    what = "distributions" if soft else "targets"
    raise ValueError(f"{what} must be {[*expected]}, got {targets.shape}")
