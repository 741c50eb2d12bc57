"""Averages of the weights, by one of two rules, as a part of the train state.

Exponential moving average with decay d, after t earlier training steps:

  θ̄ ← d' θ̄ + (1 − d') θ,    d' = min(d, (1 + t) / (10 + t))

NT-ASGD (non-monotonically triggered averaged stochastic gradient descent) has
no decay d. θ̄ is θ until the average starts. From then on, θ̄ is the mean of the
weights after each of k training steps:

  θ̄ₖ = θ̄ₖ₋₁ + (θₖ − θ̄ₖ₋₁) / k

The average starts once a validation loss is above the lowest that was measured
more than n (`patience`) evaluations before it: averaging helps once the weights
wander about a minimum, and hurts while they still approach it.

Reference: Merity, Keskar and Socher (2018), Regularizing and optimizing LSTM
language models, algorithm 1.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lstm_jax.cells.checks import check_count
from lstm_jax.cells.precision import upcast
from lstm_jax.cells.serialization import serializable
from lstm_jax.language.model import LanguageParams


@serializable  # gives the class a name for `jax.export`
class Average(NamedTuple):
  """The average of the weights, in float32 or wider."""

  params: LanguageParams  # θ̄
  num_averaged: jax.Array  # int32 [], k of NT-ASGD; 0 before k = 1, and for EMA


def init_average(params: LanguageParams) -> Average:
  """Return a copy of the weights as the first average."""
  copy = jax.tree.map(jnp.copy, upcast(params))
  return Average(copy, jnp.zeros((), jnp.int32))


def start_average(average: Average) -> Average:
  """Start the mean of NT-ASGD with the weights as they are now.

  Args:
    average: the average of a state trained with ema_decay=0, which has not
      started yet: so far it is a copy of the weights.
  """
  return average._replace(num_averaged=jnp.ones_like(average.num_averaged))


def update_average(
  average: Average,
  params: LanguageParams,
  step: jax.Array,
  finite: jax.Array,
  ema_decay: float,
) -> Average:
  """Return the average after a training step.

  Args:
    average: the average before this step.
    params: the weights after this step.
    step: t, the number of earlier steps, [].
    finite: whether the norm of this step's gradient is finite, []; if not, the
      average stays as it was.
    ema_decay: d of the exponential moving average, in [0, 1); 0 for NT-ASGD.
  """
  mean, num_averaged = average
  # JAX divides int32 by int32 in float32; `float` is float64 with x64.
  if ema_decay:
    # 1 − d', of which float32 would keep few digits if d' were rounded first.
    rate = jnp.maximum(1 - ema_decay, 9 / (10 + jnp.asarray(step, float)))
  else:
    more = jnp.asarray(finite, num_averaged.dtype)
    num_averaged = jnp.where(num_averaged > 0, num_averaged + more, 0)
    rate = 1 / jnp.maximum(num_averaged, 1).astype(float)

  def updated(mean, new):
    # Not rate · new + (1 − rate) · mean: 1 − 1/k is rounded, and the average of
    # equal weights would be off by up to 0.1 % after 100,000 steps.
    moved = (mean + rate * (new - mean)).astype(mean.dtype)
    moved = jnp.where(rate == 1, new, moved)  # mean + (new − mean) is rounded
    # Not a rate of 0, since 0 · NaN is NaN.
    return jnp.where(finite, moved, mean)

  mean = jax.tree.map(updated, mean, upcast(params))
  return Average(mean, num_averaged)


def is_nonmonotonic(losses: Sequence[float], patience: int) -> bool:
  """Return whether the newest loss is above one of the earlier losses.

  The n losses right before the newest do not count.

  Args:
    losses: validation losses of every evaluation so far.
    patience: n ≥ 1.

  Raises:
    ValueError: patience is not an integer ≥ 1.
  """
  patience = check_count("patience", patience)
  earlier = losses[: -patience - 1]
  return any(losses[-1] > loss for loss in earlier)  # min may be NaN
