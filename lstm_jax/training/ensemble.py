"""Train S models at once in one program: an ensemble with an axis S of members.

Every member sees the same batches and follows the same schedule; the members
differ in their initial weights, their dropout masks and other noise, and, if
wanted, their learning rates. An ensemble's `TrainState` has the axis S in front
of every array but the step, and `train` runs it as it runs one model.

`vmap` is over the members only. The batch axis stays inside the cell, whose
backward pass sums over it.
"""

from functools import lru_cache, partial

import jax
import optax

from lstm_jax.language.model import LanguageModel, LanguageParams
from lstm_jax.training.train_step import (
  TrainState,
  TrainStep,
  init_state,
  uncompiled_train_step,
)

# The axis S of each field of a state (step, params, average, opt_state, carry):
# all members share the step.
AXES = TrainState._make((None, 0, 0, 0, 0))


def init_ensemble(
  model: LanguageModel,
  optimizer: optax.GradientTransformation,
  params: LanguageParams,
  batch_size: int,
  *,
  averaged: bool = False,
) -> TrainState:
  """Return the ensemble's state before the first training step.

  Args:
    model: the model of every member.
    optimizer: the optimizer of every member.
    params: the members' weights, [S, ...], as `jax.vmap(model.init)(keys)`
      makes them.
    batch_size: B of the batches.
    averaged: whether each member keeps an average of its weights.
  """

  def init_member(params):
    return init_state(model, optimizer, params, batch_size, averaged=averaged)

  return jax.vmap(init_member, out_axes=AXES)(params)


@lru_cache(maxsize=64)
def make_ensemble_train_step(
  model: LanguageModel,
  optimizer: optax.GradientTransformation,
  *,
  ema_decay: float = 0.0,
) -> TrainStep:
  """Return the compiled training step of all members.

  Equal arguments give the same function, which is compiled once.

  Args:
    model: as in `make_train_step`.
    optimizer: as in `make_train_step`.
    ema_decay: as in `make_train_step`.

  Returns:
    (state, tokens, targets, keys=None, learning_rates=None) -> (state,
    metrics [S]). keys [S] draw each member's noise. learning_rates [S] scale
    each member's updates: pass them with an optimizer whose own peak learning
    rate is 1. The state passed in is donated.
  """

  @partial(jax.jit, donate_argnums=0)
  def train_step(
    state: TrainState, tokens, targets, keys=None, learning_rates=None
  ):
    def step_member(state, key, learning_rate):
      member_optimizer = optimizer
      if learning_rate is not None:
        member_optimizer = _scaled(optimizer, learning_rate)
      step = uncompiled_train_step(model, member_optimizer, ema_decay)
      return step(state, tokens, targets, key)

    in_axes = (
      AXES,
      None if keys is None else 0,
      None if learning_rates is None else 0,
    )
    step_all = jax.vmap(step_member, in_axes=in_axes, out_axes=(AXES, 0))
    return step_all(state, keys, learning_rates)

  return train_step


def _scaled(
  optimizer: optax.GradientTransformation, factor: jax.Array
) -> optax.GradientTransformation:
  """Return the optimizer with its updates multiplied by a factor."""

  def update(gradient, state, params=None):
    updates, state = optimizer.update(gradient, state, params)
    return optax.tree.scale(factor, updates), state

  return optax.GradientTransformation(optimizer.init, update)


def member(state: TrainState, index: int) -> TrainState:
  """Return the state of one member of an ensemble."""
  step, *rest = state
  return TrainState(step, *jax.tree.map(lambda leaf: leaf[index], rest))
