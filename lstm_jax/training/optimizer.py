"""Optimizers from optax: clip the gradient, then a rule with a schedule."""

import functools
from dataclasses import dataclass
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import optax

from lstm_jax.cells.caching import one_at_a_time
from lstm_jax.cells.checks import check_count
from lstm_jax.cells.precision import cast_like, upcast
from lstm_jax.language.options import check_options, option
from lstm_jax.training.norms import global_norm

Rule = Literal["adamw", "rmsprop", "sgd", "adagrad"]
Schedule = Literal["cosine", "constant"]
Nonfinite = Literal["stop", "skip"]

MAX_SKIPPED = 10  # training steps in a row that nonfinite="skip" skips


@dataclass(frozen=True)
class OptimizerConfig:
  """The optimizer, its learning rate and its clipping of the gradient.

  With nonfinite="stop" the optimizer applies every gradient: the training loop
  has to notice a loss or a gradient that is not finite, and stop. With "skip"
  the optimizer skips the step where the norm of the gradient is not finite, and
  its schedule does not advance. The loop has to stop after MAX_SKIPPED (that is
  10) such steps in a row: at the next one, all weights would become NaN.

  Raises:
    ValueError: a name is unknown or a number is out of its range.
  """

  optimizer: Rule = option(
    "adamw",
    "Optimizer: adamw, rmsprop (decay 0.95), sgd (momentum 0.9) or adagrad.",
    choices=get_args(Rule),
  )
  learning_rate: float = option(
    3e-3, "Peak of the learning rate.", bounds="(0, inf)"
  )
  schedule: Schedule = option(
    "cosine",
    "Learning rate after the warmup: cosine decays to a hundredth of the peak "
    "at the end of the training, constant stays at the peak.",
    choices=get_args(Schedule),
  )
  warmup_steps: int = option(
    100,
    "Training steps in which the learning rate rises linearly to its peak; if "
    "the training has no more steps than that, all its steps but the last.",
    bounds="[0, inf)",
  )
  weight_decay: float = option(
    0.01, "Weight decay of adamw, on matrices only.", bounds="[0, inf)"
  )
  clip_norm: float = option(
    1.0,
    "Gradients with a larger global norm are scaled down to this norm; 0 for "
    "no such clipping.",
    bounds="[0, inf)",
  )
  clip_value: float = option(
    0.0,
    "Largest magnitude of an element of the gradient, applied before "
    "clip_norm; 0 for no such clipping.",
    bounds="[0, inf)",
  )
  nonfinite: Nonfinite = option(
    "stop",
    "What happens at a training step whose gradient has a NaN or infinite "
    "norm: stop the training, or skip the step, at most "
    f"{MAX_SKIPPED} in a row.",
    choices=get_args(Nonfinite),
  )

  def __post_init__(self):
    check_options(self)


def make_optimizer(
  config: OptimizerConfig, num_steps: int
) -> optax.GradientTransformation:
  """Return the optimizer of a configuration, for num_steps training steps.

  Calls with equal arguments return the same functions, so that what JAX
  compiled for one optimizer serves all equal ones.

  Raises:
    ValueError: num_steps is not an integer ≥ 1.
  """
  check_count("num_steps", num_steps)
  return _make_optimizer(config, num_steps)


@one_at_a_time  # else two threads could get two optimizers
@functools.lru_cache(maxsize=64)
def _make_optimizer(
  config: OptimizerConfig, num_steps: int
) -> optax.GradientTransformation:
  clips = []
  if config.clip_value:
    clips.append(optax.clip(config.clip_value))
  if config.clip_norm:
    clips.append(optax.clip_by_global_norm(config.clip_norm))
  rate = learning_rate(config, num_steps)
  rule = _upcast(optax.chain(*clips, _rule(config, rate)))
  if config.nonfinite == "skip":
    return _skip_nonfinite(rule)
  return rule


def _skip_nonfinite(
  rule: optax.GradientTransformation,
) -> optax.GradientTransformation:
  """Return a rule that skips a gradient whose norm is NaN or infinite.

  `train_step` uses the same norm to decide whether the recurrent state and the
  average of the weights stay as they were.
  """
  guarded = optax.apply_if_finite(rule, MAX_SKIPPED)

  def update(gradient, state, params=None, **extra):
    finite = jnp.isfinite(global_norm(gradient))
    # `guarded` tests only the elements, but the norm overflows before they do.
    gradient = jax.tree.map(lambda g: jnp.where(finite, g, jnp.nan), gradient)
    return guarded.update(gradient, state, params, **extra)

  return optax.GradientTransformationExtraArgs(guarded.init, update)


def _upcast(rule: optax.GradientTransformation) -> optax.GradientTransformation:
  """Return a rule that computes in float32 or wider, moments included.

  In float16 the squares of small gradients are 0, and so is Adam's ε.
  """

  def init(params):
    return rule.init(upcast(params))

  def update(gradient, state, params=None):
    updates, state = rule.update(upcast(gradient), state, upcast(params))
    return cast_like(updates, gradient), state

  return optax.GradientTransformation(init, update)


def learning_rate(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
  """Return the learning rate as a function of the number of updates made."""
  peak = config.learning_rate
  warmup_steps = min(config.warmup_steps, num_steps - 1)
  if config.schedule == "cosine":
    after = optax.cosine_decay_schedule(
      peak, num_steps - warmup_steps, alpha=0.01
    )
  else:
    after = optax.constant_schedule(peak)
  if not warmup_steps:
    return after
  # peak · (k + 1) / (warmup_steps + 1) after k updates: never 0.
  rise = optax.linear_schedule(peak / (warmup_steps + 1), peak, warmup_steps)
  return optax.join_schedules([rise, after], [warmup_steps])


def _rule(
  config: OptimizerConfig, rate: optax.Schedule
) -> optax.GradientTransformation:
  match config.optimizer:
    case "adamw":
      return optax.adamw(rate, weight_decay=config.weight_decay, mask=_matrices)
    case "rmsprop":
      return optax.rmsprop(rate, decay=0.95)
    case "sgd":
      return optax.sgd(rate, momentum=0.9)
    case "adagrad":
      # Duchi, Hazan and Singer (2011); the accumulator starts at 0 and 1e-8
      # stands under the root, as in Karpathy's min-char-rnn.
      return optax.adagrad(rate, initial_accumulator_value=0.0, eps=1e-8)


def _matrices(params):
  return jax.tree.map(lambda p: p.ndim > 1, params)
