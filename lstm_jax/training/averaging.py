"""The mean of the weights since a moment that the watched losses choose.

  θ̄ₖ = θ̄ₖ₋₁ + (θₖ − θ̄ₖ₋₁) / k

NT-ASGD is SGD at a constant rate whose weights are averaged so, from the first
look at which the loss is not what it was n looks before: averaging helps once
the weights wander about a minimum, not while they go to it.

Reference: Merity, Keskar and Socher (2018), Regularizing and optimizing LSTM
language models, algorithm 1.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from lstm_jax.language.model import LanguageParams


class Average(NamedTuple):
  """The mean of the weights after each of k updates."""

  params: LanguageParams  # θ̄
  updates: jax.Array  # int32 [], k


def begin_average(params: LanguageParams) -> Average:
  """Return the mean of one θ, in arrays of its own."""
  return Average(jax.tree.map(jnp.copy, params), jnp.ones((), jnp.int32))


@partial(jax.jit, donate_argnums=0)
def include(
  average: Average, params: LanguageParams, grad_norm: jax.Array
) -> Average:
  """Return the mean of one θ more; the average passed in is donated.

  Args:
    average: of the θ before.
    params: θ.
    grad_norm: of the update that made θ: one that is not finite made none.
  """
  finite = jnp.isfinite(grad_norm)
  updates = average.updates + finite
  rate = jnp.where(finite, 1 / updates, 0)
  mean = optax.incremental_update(params, average.params, rate)
  return Average(mean, updates)


def wanders(losses: Sequence[float], patience: int) -> bool:
  """Return whether the last loss is above the best of those before the last n.

  Args:
    losses: of every look so far, the last one's at the end.
    patience: n ≥ 1.
  """
  earlier = losses[: -patience - 1]
  return len(earlier) > 0 and losses[-1] > min(earlier)
