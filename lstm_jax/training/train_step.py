"""One update: gradient of a block, optimiser, new parameters; and their loop.

Truncated backpropagation through time: the state after a block, `carry`, is
the state before the next, and no gradient crosses between them.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lstm_jax.language.batching import Batches
from lstm_jax.language.model import LanguageModel, LanguageParams
from lstm_jax.training.norms import part_norms


class TrainState(NamedTuple):
  """Everything that an update changes."""

  step: jax.Array  # int32 [], updates made
  params: LanguageParams
  average: LanguageParams | None  # of the params over the updates
  opt_state: Any
  carry: Any  # the recurrent state after the last block


class Metrics(NamedTuple):
  """What an update reports."""

  loss: jax.Array  # [], nats per token of its block, under the noise
  grad_norm: jax.Array  # [], global, before clipping
  num_tokens: int | jax.Array  # of its block
  gradient_norms: dict[str, jax.Array]  # [] of each part, before clipping


TrainStep = Callable[[TrainState, Any, Any], tuple[TrainState, Metrics]]


def init_state(
  model: LanguageModel,
  optimizer: optax.GradientTransformation,
  params: LanguageParams,
  batch_size: int,
  *,
  averaged: bool = False,
) -> TrainState:
  """Return the state before the first update; it holds copies of params."""
  average = jax.tree.map(jnp.copy, params) if averaged else None
  params = jax.tree.map(jnp.copy, params)  # the first update donates them
  carry = model.initial_state((batch_size,))
  step = jnp.zeros((), jnp.int32)
  return TrainState(step, params, average, optimizer.init(params), carry)


def make_train_step(
  model: LanguageModel,
  optimizer: optax.GradientTransformation,
  key: jax.Array | None = None,
  *,
  decay: float = 0.0,
) -> TrainStep:
  """Return a compiled (state, tokens, targets) -> (state, metrics).

  The state passed in is donated: its buffers hold the state that comes out. The
  carried state and the average stay what they were where the gradient has a NaN
  or an infinity.

  Args:
    model: its training_loss is minimised.
    optimizer: the rule.
    key: draws the noise of each update, by its step; None where there is none.
    decay: of the exponential average of the params, if the state has one. The
      first averages are shorter: (1 + step) / (10 + step) where that is less.
  """
  one = bare_train_step(model, optimizer, key, decay)
  return jax.jit(one, donate_argnums=0)


def bare_train_step(
  model: LanguageModel,
  optimizer: optax.GradientTransformation,
  key: jax.Array | None,
  decay: float,
) -> TrainStep:
  """Return what `make_train_step` compiles."""

  def update(state: TrainState, tokens, targets):
    step, params, average, opt_state, carry = state
    noise = None if key is None else jax.random.fold_in(key, step)
    gradient_of = jax.value_and_grad(model.training_loss, has_aux=True)
    (_, (loss, after)), gradient = gradient_of(
      params, carry, tokens, targets, noise
    )
    norm = optax.tree.norm(gradient)
    updates, opt_state = optimizer.update(gradient, opt_state, params)
    params = optax.apply_updates(params, updates)
    finite = jnp.isfinite(norm)
    if average is not None:
      rate = 1 - jnp.minimum(decay, (1 + step) / (10 + step))
      rate = jnp.where(finite, rate, 0.0)
      average = optax.incremental_update(params, average, rate)
    # What makes a gradient infinite may be in the state, and would stay there.
    carry = jax.tree.map(lambda a, b: jnp.where(finite, a, b), after, carry)
    metrics = Metrics(loss, norm, targets.size, part_norms(gradient))
    return TrainState(step + 1, params, average, opt_state, carry), metrics

  return update


def train(
  update: TrainStep, state: TrainState, epochs: Iterable[Batches]
) -> Iterator[tuple[TrainState, Metrics]]:
  """Yield the state and the metrics after each update, to the epochs' end.

  Each epoch begins with the carried state at zero. A state that has made
  updates goes on where it stands: `epochs` are those of the whole training. A
  state yielded is valid until the next is asked for.
  """
  made, begun = int(state.step), 0
  for streams in epochs:
    for index in range(max(made - begun, 0), streams.num_batches):
      tokens, targets = streams.batch(index)
      if index == 0:
        state = state._replace(carry=zero_carry(state.carry, tokens.shape[1]))
      state, metrics = update(state, tokens, targets)
      yield state, metrics
    begun += streams.num_batches


def zero_carry(carry: Any, batch_size: int) -> Any:
  """Return zeros like the carried state [..., B, H], for B = batch_size."""
  return jax.tree.map(
    lambda c: jnp.zeros((*c.shape[:-2], batch_size, c.shape[-1]), c.dtype),
    carry,
  )


def learnt(state: TrainState) -> LanguageParams:
  """Return the weights that a run has learnt: their average, if it has one."""
  return state.params if state.average is None else state.average
