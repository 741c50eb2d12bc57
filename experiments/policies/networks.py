"""Actor and critic with a recurrent core, or with a feed-forward one.

  x  = relu(W_e observation + b_e)      encoder
  h  = core(h, x)                       from h = 0 where an episode starts
  π  = softmax(W_a h + b_a)             actor: probabilities of the actions
  V  = w_c h + b_c                      critic: the value

The core is a cell, or relu(W x + b) in the feed-forward baseline.
A network is applied in two ways that compute the same: `step`, one time step
while acting, and `unroll`, a whole rollout while learning. Both take `start`:
whether an observation is the first of an episode, at which the state is set to
zero before the step.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.trainer.records import from_name
from lstm_jax import unroll
from lstm_jax.cells.affine import affine
from lstm_jax.cells.properties import output_size, zero_state
from lstm_jax.sequence import resettable

FEED_FORWARD = "feed_forward"


class Linear(NamedTuple):
  """An affine layer."""

  w: jax.Array  # [D, K]
  b: jax.Array  # [K]


class PolicyParams(NamedTuple):
  """Weights of a network."""

  encoder: Linear  # [observation, H]
  core: Any  # weights of the core
  actor: Linear  # [size of h, actions]
  critic: Linear  # [size of h, 1]


class Network(NamedTuple):
  """An actor and critic, as pure functions."""

  init: Callable[[jax.Array], Any]  # (key) -> params
  initial_state: Callable[[int], Any]  # (batch size) -> the zero state
  # (params, state, observation [B, D], start [B])
  #   -> (state, logits [B, actions], value [B])
  step: Callable[..., tuple[Any, jax.Array, jax.Array]]
  # The same for T time steps: arrays [T, B, ...], and the last state.
  unroll: Callable[..., tuple[Any, jax.Array, jax.Array]]


def make_network(
  name: str, observation_size: int, hidden_size: int, num_actions: int
) -> Network:
  """Return a network.

  Args:
    name: of a cell, or of the module of a cell of your own, or FEED_FORWARD.
    observation_size: the size of an observation vector.
    hidden_size: H, of encoder and core.
    num_actions: number of actions from which the actor chooses.

  Raises:
    ValueError: there is no such cell.
  """
  cell = None if name == FEED_FORWARD else from_name("cell", name)

  def init(key):
    encoder, inner, actor, critic = jax.random.split(key, 4)
    # √2 before a relu; 0.01 for a first policy that is nearly uniform.
    if cell is None:
      core = init_linear(inner, hidden_size, hidden_size, 2**0.5)
      size = hidden_size
    else:
      core = cell.init(inner, hidden_size, hidden_size, jnp.float32)
      size = output_size(cell, core)
    return PolicyParams(
      init_linear(encoder, observation_size, hidden_size, 2**0.5),
      core,
      init_linear(actor, size, num_actions, 0.01),
      init_linear(critic, size, 1, 1.0),
    )

  def initial_state(batch_size):
    if cell is None:
      return ()
    return zero_state(cell, (batch_size,), hidden_size)

  def step_core(params, state, x, start):
    if cell is None:
      return state, jax.nn.relu(affine(x, *params))
    state = resettable(cell).step(params, state, x, start)
    return state, state.h

  def unroll_core(params, state, xs, starts):
    if cell is None:
      return step_core(params, state, xs, starts)
    return unroll(cell, params, state, xs, reset=starts)

  def apply(run, params, state, observation, start):
    # `affine` would take integers for tokens.
    observation = observation.astype(params.encoder.w.dtype)
    x = jax.nn.relu(affine(observation, *params.encoder))
    state, h = run(params.core, state, x, start)
    values = affine(h, *params.critic)[..., 0]
    return state, affine(h, *params.actor), values

  return Network(
    init, initial_state, partial(apply, step_core), partial(apply, unroll_core)
  )


def init_linear(
  key: jax.Array, input_size: int, output_size: int, scale: float
) -> Linear:
  """Return an orthogonal matrix times a scale, and biases 0."""
  orthogonal = jax.nn.initializers.orthogonal(scale)
  w = orthogonal(key, (input_size, output_size), jnp.float32)
  return Linear(w, jnp.zeros(output_size, jnp.float32))
