"""Several seeds trained at once: one program, an axis S of its own.

Every member sees the same blocks of text and follows the same schedule; what
differs is its weights, its noise and, if wanted, the size of its steps. An
ensemble's `TrainState` has S in front of every array but the step, and `train`
runs it as it runs one member.

`vmap` is over the weights, so each member has gradients of its own whatever the
axis; it is not over examples, whose gradients a cell sums.
"""

from functools import partial

import jax
import optax

from lstm_jax.language.model import LanguageModel, LanguageParams
from lstm_jax.training.train_step import (
  TrainState,
  TrainStep,
  bare_train_step,
  init_state,
)

# Of the members, in a state: the step is the same for all.
AXES = TrainState._make((None, 0, 0, 0, 0))


def init_ensemble(
  model: LanguageModel,
  optimizer: optax.GradientTransformation,
  params: LanguageParams,
  batch_size: int,
  *,
  averaged: bool = False,
) -> TrainState:
  """Return the state before the first update, of params [S, ...] each.

  Args:
    model: of every member.
    optimizer: the rule of every member.
    params: the members' weights, such as `jax.vmap(model.init)(keys)`.
    batch_size: B, of the blocks that they will read.
    averaged: whether each keeps an average of its weights.
  """

  def one(params):
    return init_state(model, optimizer, params, batch_size, averaged=averaged)

  return jax.vmap(one, out_axes=AXES)(params)


def make_ensemble_train_step(
  model: LanguageModel,
  optimizer: optax.GradientTransformation,
  keys: jax.Array | None = None,
  *,
  decay: float = 0.0,
  factors: jax.Array | None = None,
) -> TrainStep:
  """Return `make_train_step` of all members, with the same signature.

  Its metrics are [S]. The state passed in is donated.

  Args:
    model: as in `make_train_step`.
    optimizer: likewise.
    keys: draw each member's noise, [S]; None where there is none.
    decay: as in `make_train_step`.
    factors: of each member's steps, [S]: where the optimizer's rate is 1, their
      learning rates. None for 1.
  """
  axes = AXES, None if keys is None else 0, None if factors is None else 0

  @partial(jax.jit, donate_argnums=0)
  def update(state: TrainState, tokens, targets):
    def one(state, key, factor):
      rule = optimizer if factor is None else _scaled(optimizer, factor)
      return bare_train_step(model, rule, key, decay)(state, tokens, targets)

    over = jax.vmap(one, in_axes=axes, out_axes=(AXES, 0))
    return over(state, keys, factors)

  return update


def _scaled(
  optimizer: optax.GradientTransformation, factor: jax.Array
) -> optax.GradientTransformation:
  """Return the optimiser with steps `factor` times as long."""

  def update(gradient, state, params=None):
    updates, state = optimizer.update(gradient, state, params)
    return optax.tree.scale(factor, updates), state

  return optax.GradientTransformation(optimizer.init, update)


def member(state: TrainState, index: int) -> TrainState:
  """Return one member's state, as `init_state` has it."""
  step, *rest = state
  return TrainState(step, *jax.tree.map(lambda leaf: leaf[index], rest))
