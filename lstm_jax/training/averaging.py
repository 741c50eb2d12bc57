"""Averages of the weights, by one of two rules, as a part of the train state.

Exponential moving average with decay d, after training step t:

  θ̄ ← d' θ̄ + (1 − d') θ,    d' = min(d, (1 + t) / (10 + t))

NT-ASGD (d = 0): θ̄ is θ until the average starts, and from then on the mean of
the weights after each of k training steps:

  θ̄ₖ = θ̄ₖ₋₁ + (θₖ − θ̄ₖ₋₁) / k

It starts at the first evaluation whose loss is above the best of those before
the last n: averaging helps once the weights wander about a minimum, and hurts
while they still approach it.

Reference: Merity, Keskar and Socher (2018), Regularizing and optimizing LSTM
language models, algorithm 1.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from lstm_jax.language.model import LanguageParams


class Average(NamedTuple):
  """The average of the weights."""

  params: LanguageParams  # θ̄
  steps: jax.Array  # int32 [], k; 0 until NT-ASGD starts


def init_average(params: LanguageParams) -> Average:
  """Return the average before the first training step, in its own arrays."""
  return Average(jax.tree.map(jnp.copy, params), jnp.zeros((), jnp.int32))


def start_average(average: Average) -> Average:
  """Start the mean of NT-ASGD with the weights as they are now."""
  return average._replace(steps=jnp.ones_like(average.steps))


def update_average(
  average: Average,
  params: LanguageParams,
  step: jax.Array,
  finite: jax.Array,
  ema_decay: float,
) -> Average:
  """Return the average after a training step.

  Args:
    average: before the step.
    params: the weights after it.
    step: training steps made before it, [].
    finite: whether its gradient was finite; if not, the average stays.
    ema_decay: d of the exponential moving average; 0 for NT-ASGD.
  """
  steps = average.steps
  if ema_decay:
    rate = 1 - jnp.minimum(ema_decay, (1 + step) / (10 + step))
  else:
    steps = jnp.where(steps > 0, steps + finite, 0)
    rate = 1 / jnp.maximum(steps, 1)
  rate = jnp.where(finite, rate, 0.0)
  mean = optax.incremental_update(params, average.params, rate)
  return Average(mean, steps)


def is_nonmonotonic(losses: Sequence[float], patience: int) -> bool:
  """Return whether the last loss is above the best of those before the last n.

  Args:
    losses: validation losses of every evaluation so far.
    patience: n ≥ 1.
  """
  earlier = losses[: -patience - 1]
  return len(earlier) > 0 and losses[-1] > min(earlier)
