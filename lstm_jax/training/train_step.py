"""One training step: gradient of a batch, optimizer, new weights; and the loop.

Training uses truncated backpropagation through time: the recurrent state after
a batch, `carry`, is the state before the next batch of the same epoch, and no
gradient crosses between batches.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lstm_jax.cells.caching import one_at_a_time
from lstm_jax.cells.precision import cast_like
from lstm_jax.cells.serialization import serializable
from lstm_jax.language.model import LanguageModel, LanguageParams
from lstm_jax.training.averaging import Average, init_average, update_average
from lstm_jax.training.norms import global_norm, part_norms


@serializable  # gives the class a name for `jax.export`
class TrainState(NamedTuple):
  """Everything that a training step changes."""

  step: jax.Array  # int32 [], number of training steps made
  params: LanguageParams
  average: Average | None  # of the params; None if they are not averaged
  opt_state: Any
  carry: Any  # the recurrent state after the last batch


@serializable  # gives the class a name for `jax.export`
class Metrics(NamedTuple):
  """The metrics of one training step."""

  loss: jax.Array  # [], mean nats per token, with noise, without penalties
  grad_norm: jax.Array  # [], global, before clipping
  num_tokens: int | jax.Array  # targets in the batch, T·B
  grad_norms: dict[str, jax.Array]  # those of `part_norms`, before clipping


class Epoch(Protocol):
  """The batches of one epoch, such as `language.Batches`.

  The targets of `Batches` are tokens; those of others may be distributions.
  """

  @property
  def num_batches(self) -> int:
    """Number of batches in the epoch."""

  def batch(self, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (tokens [T, B], targets [T, B] or [T, B, V]) of one batch."""


class Batch(NamedTuple):
  """One batch of a training run."""

  tokens: np.ndarray  # int32 [T, B]
  targets: np.ndarray  # int32 [T, B], or distributions [T, B, V]
  starts_epoch: bool  # whether to reset the recurrent state to zero before it


# (state, tokens [T, B], targets [T, B] or [T, B, V], key) -> (state, metrics)
TrainStep = Callable[..., tuple[TrainState, Metrics]]


def init_state(
  model: LanguageModel,
  optimizer: optax.GradientTransformation,
  params: LanguageParams,
  batch_size: int,
  *,
  averaged: bool = False,
) -> TrainState:
  """Return the state before the first training step.

  Args:
    model: the language model.
    optimizer: an optax optimizer.
    params: the initial weights. They are copied, since a training step donates
      the state.
    batch_size: B of the batches.
    averaged: whether the state keeps an average of the weights.
  """
  average = init_average(params) if averaged else None
  params = jax.tree.map(jnp.copy, params)
  # The optimizer's state may hold the weights, one array in two places, or one
  # that the optimizer keeps: none of these can be donated.
  leaves, structure = jax.tree.flatten(optimizer.init(params))
  for k, leaf in enumerate(leaves):  # one at a time, which frees the original
    if isinstance(leaf, jax.Array):
      leaves[k] = jnp.copy(leaf)
  opt_state = jax.tree.unflatten(structure, leaves)
  # A cell, too, may keep an array of its first state, or have it in two places.
  carry = jax.tree.map(jnp.copy, model.initial_state((batch_size,)))
  step = jnp.zeros((), jnp.int32)
  return TrainState(step, params, average, opt_state, carry)


def make_train_step(
  model: LanguageModel,
  optimizer: optax.GradientTransformation,
  *,
  ema_decay: float = 0.0,
) -> TrainStep:
  """Return the compiled training step of a model.

  Equal arguments give the same function, which is compiled once.

  Args:
    model: the language model, whose `training_loss` is minimised.
    optimizer: an optax optimizer.
    ema_decay: decay of the exponential moving average of the weights; 0 to
      average them by NT-ASGD instead (see `averaging`). It has no effect on a
      state without an average.

  Returns:
    (state, tokens [T, B], targets, key=None) -> (state, metrics). Targets are
    tokens [T, B], or distributions over them [T, B, V]. The noise of the
    regularizers is drawn from the key and `state.step`; a model without
    regularizers needs no key. The input state is donated: do not use it
    afterwards. Nor change arrays of NumPy that hold tokens and targets before
    the step has run: a CPU reads them in place. (`train` copies them.) If the
    gradient's norm is NaN or infinite, `carry` and `average` are unchanged, and
    the optimizer decides what happens to the weights.

  Raises:
    ValueError: ema_decay is not in [0, 1).
  """
  return _compiled_train_step(model, optimizer, ema_decay)


# `make_train_step` passes its arguments by position: to `lru_cache`, an omitted
# keyword differs from its default.
@one_at_a_time  # else two threads could get two functions
@lru_cache(maxsize=64)
def _compiled_train_step(model, optimizer, ema_decay):
  step = uncompiled_train_step(model, optimizer, ema_decay)
  return jax.jit(step, donate_argnums=0)


def uncompiled_train_step(
  model: LanguageModel,
  optimizer: optax.GradientTransformation,
  ema_decay: float,
) -> TrainStep:
  """Return the function that `make_train_step` compiles.

  Raises:
    ValueError: ema_decay is not in [0, 1).
  """
  if not 0 <= ema_decay < 1:
    raise ValueError(f"ema_decay must be in [0, 1), got {ema_decay}")

  def train_step(state: TrainState, tokens, targets, key=None):
    step, params, average, opt_state, carry = state
    step_key = None if key is None else jax.random.fold_in(key, step)
    gradient_of = jax.value_and_grad(model.training_loss, has_aux=True)
    (_, (loss, carry_next)), gradient = gradient_of(
      params, carry, tokens, targets, step_key
    )
    norm = global_norm(gradient)
    updates, opt_state = optimizer.update(gradient, opt_state, params)
    params = optax.apply_updates(params, updates)
    finite = jnp.isfinite(norm)
    if average is not None:
      average = update_average(average, params, step, finite, ema_decay)
    # The new carry may be the cause of the NaN or infinity: keep the old one.
    carry = jax.tree.map(
      lambda a, b: jnp.where(finite, a, b), carry_next, carry
    )
    metrics = Metrics(loss, norm, tokens.size, part_norms(gradient))
    return TrainState(step + 1, params, average, opt_state, carry), metrics

  return train_step


def train(
  train_step: TrainStep,
  state: TrainState,
  epochs: Iterable[Epoch],
  key: jax.Array | None = None,
) -> Iterator[tuple[TrainState, Metrics]]:
  """Yield the state and the metrics after each training step.

  The first `state.step` batches are skipped: the state has trained on them.

  Args:
    train_step: from `make_train_step`, or the step of an ensemble or a mesh.
    state: the state before the next training step; it is donated.
    epochs: the batches of each epoch, from the first epoch on, also where
      `state.step` is not 0.
    key: as in the function that `make_train_step` returns.

  Yields:
    (state, metrics). A state is valid only until the next iteration, whose
    training step donates it.
  """
  for batch in remaining_batches(epochs, int(state.step)):
    state, metrics = take_step(train_step, state, batch, key)
    yield state, metrics


def remaining_batches(epochs: Iterable[Epoch], step: int) -> Iterator[Batch]:
  """Yield all batches of the epochs but the first `step`."""
  first = 0  # number of the epoch's first batch
  for batches in epochs:
    for index in range(max(step - first, 0), batches.num_batches):
      yield Batch(*batches.batch(index), starts_epoch=index == 0)
    first += batches.num_batches


def take_step(
  train_step: TrainStep,
  state: TrainState,
  batch: Batch,
  key: jax.Array | None = None,
) -> tuple[TrainState, Metrics]:
  """Return (state, metrics) after one batch.

  The recurrent state is zero before the first batch of an epoch. Arrays of
  NumPy are copied: a CPU reads them where they are, maybe after the caller has
  filled them with the next batch.
  """
  tokens, targets = (
    x.copy() if isinstance(x, np.ndarray) else x
    for x in (batch.tokens, batch.targets)
  )
  if batch.starts_epoch:
    state = state._replace(carry=zero_carry(state.carry, tokens.shape[1]))
  return train_step(state, tokens, targets, key)


def zero_carry(carry: Any, batch_size: int) -> Any:
  """Return a zero state shaped like another, but for a given batch size.

  Args:
    carry: a tree of states, such as that of a `TrainState`. Each has an h,
      [..., B, H]; its other arrays have the same axes up to B, and any after
      it, or have no axis B: one number for all rows, such as a counter. An
      array outside of such a state must be [..., B, H].
    batch_size: takes the place of B.
  """

  def zeros(state: Any) -> Any:
    axis = getattr(state, "h", state).ndim - 2

    def zero(c: jax.Array) -> jax.Array:
      batch = (batch_size,) if c.ndim > axis else ()
      shape = *c.shape[:axis], *batch, *c.shape[axis + 1 :]
      return jnp.zeros(shape, c.dtype)

    return jax.tree.map(zero, state)

  return jax.tree.map(zeros, carry, is_leaf=lambda node: hasattr(node, "h"))


def eval_params(state: TrainState) -> LanguageParams:
  """Return the weights to evaluate: the average, if the state has one."""
  if state.average is None:
    return state.params
  return cast_like(state.average.params, state.params)
