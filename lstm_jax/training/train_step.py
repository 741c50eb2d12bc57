"""One training step: gradient of a batch, optimizer, new weights; and the loop.

Training uses truncated backpropagation through time: the recurrent state after
a batch, `carry`, is the state before the next batch, and no gradient crosses
between them.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lstm_jax.cells.precision import cast_like
from lstm_jax.cells.serialization import serializable
from lstm_jax.language.batching import Batches
from lstm_jax.language.model import LanguageModel, LanguageParams
from lstm_jax.training.averaging import Average, init_average, update_average
from lstm_jax.training.norms import part_norms


@serializable
class TrainState(NamedTuple):
  """Everything that a training step changes."""

  step: jax.Array  # int32 [], training steps made
  params: LanguageParams
  average: Average | None  # of the params; None where they are not averaged
  opt_state: Any
  carry: Any  # the recurrent state after the last batch


@serializable
class Metrics(NamedTuple):
  """What a training step reports."""

  loss: jax.Array  # [], nats per token of the batch, under the noise
  grad_norm: jax.Array  # [], global, before clipping
  num_tokens: int | jax.Array  # predicted in the batch
  grad_norms: dict[str, jax.Array]  # [] of each part, before clipping


class Batch(NamedTuple):
  """One batch of a training."""

  tokens: np.ndarray  # int32 [T, B]
  targets: np.ndarray  # int32 [T, B]
  starts_epoch: bool  # whether the recurrent state before it is zero


# (state, tokens [T, B], targets [T, B], key) -> (state, metrics)
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
    optimizer: the optimizer of the training.
    params: the initial weights, which are copied: a training step donates the
      state's own.
    batch_size: B of the batches.
    averaged: whether the state keeps an average of the weights.
  """
  average = init_average(params) if averaged else None
  params = jax.tree.map(jnp.copy, params)
  carry = model.initial_state((batch_size,))
  step = jnp.zeros((), jnp.int32)
  return TrainState(step, params, average, optimizer.init(params), carry)


@lru_cache(maxsize=64)
def make_train_step(
  model: LanguageModel,
  optimizer: optax.GradientTransformation,
  *,
  ema_decay: float = 0.0,
) -> TrainStep:
  """Return the compiled training step of a model.

  Equal arguments give the same function, which is compiled once.

  Args:
    model: its `training_loss` is minimised.
    optimizer: an optax optimizer.
    ema_decay: decay of the exponential moving average of the weights; 0 for
      NT-ASGD. It has no effect on a state without an average.

  Returns:
    (state, tokens [T, B], targets [T, B], key=None) -> (state, metrics). The
    key draws the noise of the regularizers, together with the step's number;
    None where there is no noise. The state passed in is donated: its buffers
    hold the state that is returned. Where the gradient holds a NaN or an
    infinity, the carried state and the average stay as they were.
  """
  step = uncompiled_train_step(model, optimizer, ema_decay)
  return jax.jit(step, donate_argnums=0)


def uncompiled_train_step(
  model: LanguageModel,
  optimizer: optax.GradientTransformation,
  ema_decay: float,
) -> TrainStep:
  """Return the function that `make_train_step` compiles."""

  def train_step(state: TrainState, tokens, targets, key=None):
    step, params, average, opt_state, carry = state
    noise = None if key is None else jax.random.fold_in(key, step)
    gradient_of = jax.value_and_grad(model.training_loss, has_aux=True)
    (_, (loss, carry_next)), gradient = gradient_of(
      params, carry, tokens, targets, noise
    )
    norm = optax.tree.norm(gradient)
    updates, opt_state = optimizer.update(gradient, opt_state, params)
    params = optax.apply_updates(params, updates)
    finite = jnp.isfinite(norm)
    if average is not None:
      average = update_average(average, params, step, finite, ema_decay)
    # The carried state may be what makes the gradient infinite: keep the old.
    carry = jax.tree.map(
      lambda a, b: jnp.where(finite, a, b), carry_next, carry
    )
    metrics = Metrics(loss, norm, targets.size, part_norms(gradient))
    return TrainState(step + 1, params, average, opt_state, carry), metrics

  return train_step


def train(
  train_step: TrainStep,
  state: TrainState,
  epochs: Iterable[Batches],
  key: jax.Array | None = None,
) -> Iterator[tuple[TrainState, Metrics]]:
  """Yield the state and the metrics after each training step.

  A state that has made steps continues where it stands.

  Args:
    train_step: from `make_train_step`.
    state: before the next step; it is donated.
    epochs: the batches of each epoch of the whole training.
    key: draws the noise; None where there is none.

  Yields:
    (state, metrics). A state is valid until the next one is asked for.
  """
  for batch in remaining_batches(epochs, int(state.step)):
    state, metrics = take_step(train_step, state, batch, key)
    yield state, metrics


def remaining_batches(epochs: Iterable[Batches], step: int) -> Iterator[Batch]:
  """Yield the batches of a training after its first `step` batches."""
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

  The recurrent state is zero before the first batch of an epoch.
  """
  if batch.starts_epoch:
    batch_size = batch.tokens.shape[1]
    state = state._replace(carry=zero_carry(state.carry, batch_size))
  return train_step(state, batch.tokens, batch.targets, key)


def zero_carry(carry: Any, batch_size: int) -> Any:
  """Return zeros like a recurrent state [..., B, H], for another B."""
  return jax.tree.map(
    lambda c: jnp.zeros((*c.shape[:-2], batch_size, c.shape[-1]), c.dtype),
    carry,
  )


def eval_params(state: TrainState) -> LanguageParams:
  """Return the weights to evaluate: the average, if the state has one."""
  if state.average is None:
    return state.params
  return cast_like(state.average.params, state.params)
