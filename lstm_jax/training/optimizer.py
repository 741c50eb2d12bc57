"""Optimisers, all from optax: clip, then a rule with a schedule."""

from dataclasses import dataclass
from typing import Literal, get_args

import jax
import optax

Rule = Literal["adamw", "rmsprop", "sgd", "adagrad"]
Schedule = Literal["cosine", "constant"]


@dataclass(frozen=True)
class OptimizerConfig:
  """How parameters follow their gradient.

  Attributes:
    rule: adamw, rmsprop, sgd (momentum 0.9) or adagrad.
    learning_rate: the peak of the schedule.
    schedule: after the warm-up, cosine falls towards a hundredth of the peak,
      reached as the run ends; constant stays.
    warmup: updates of linear rise to the peak; in a shorter run, all but its
      last.
    weight_decay: of adamw, on matrices only.
    clip_norm: largest global norm of a gradient; None for any.
    clip_value: largest magnitude of a gradient's element; None for any.
    skipped: how many gradients in a row, with a NaN or an infinity in them, are
      skipped; the next is applied as it is.

  Raises:
    ValueError: a name is unknown or a number is out of its range.
  """

  rule: Rule = "adamw"
  learning_rate: float = 3e-3
  schedule: Schedule = "cosine"
  warmup_steps: int = 100
  weight_decay: float = 0.01
  clip_norm: float | None = 1.0
  clip_value: float | None = None
  skipped: int = 0

  def __post_init__(self):
    if self.rule not in get_args(Rule):
      raise ValueError(f"rule must be in {get_args(Rule)}, got {self.rule!r}")
    if self.schedule not in get_args(Schedule):
      raise ValueError(
        f"schedule must be in {get_args(Schedule)}, got {self.schedule!r}"
      )
    if not 0 < self.learning_rate < float("inf"):
      raise ValueError(
        f"learning_rate must be positive and finite, got {self.learning_rate}"
      )
    if self.warmup_steps < 0 or not 0 <= self.weight_decay < float("inf"):
      raise ValueError(
        "warmup and weight_decay must be ≥ 0 and finite, "
        f"got {self.warmup_steps} and {self.weight_decay}"
      )
    if self.skipped < 0:
      raise ValueError(f"skipped must be ≥ 0, got {self.skipped}")
    for name in ("clip_norm", "clip_value"):
      value = getattr(self, name)
      if value is not None and not value > 0:
        raise ValueError(f"{name} must be positive or None, got {value}")


def make_optimizer(
  config: OptimizerConfig, num_steps: int
) -> optax.GradientTransformation:
  """Return the optimiser that `config` describes, for num_steps updates.

  Raises:
    ValueError: num_steps is below 1.
  """
  if num_steps < 1:
    raise ValueError(f"num_steps must be at least 1, got {num_steps}")
  clips = []
  if config.clip_value is not None:
    clips.append(optax.clip(config.clip_value))
  if config.clip_norm is not None:
    clips.append(optax.clip_by_global_norm(config.clip_norm))
  rule = optax.chain(*clips, _rule(config, learning_rate(config, num_steps)))
  return optax.apply_if_finite(rule, config.skipped) if config.skipped else rule


def learning_rate(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
  """Return the learning rate as a function of the updates made."""
  peak, warmup_steps = (
    config.learning_rate,
    min(config.warmup_steps, num_steps - 1),
  )
  if config.schedule == "cosine":
    after = optax.cosine_decay_schedule(
      peak, num_steps - warmup_steps, alpha=0.01
    )
  else:
    after = optax.constant_schedule(peak)
  if not warmup_steps:
    return after
  rise = optax.linear_schedule(peak / (warmup_steps + 1), peak, warmup_steps)
  return optax.join_schedules([rise, after], [warmup_steps])


def _rule(
  config: OptimizerConfig, rate: optax.Schedule
) -> optax.GradientTransformation:
  match config.rule:
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
