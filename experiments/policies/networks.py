"""Actor and critic with a recurrent core, or with a feed-forward one.

  x  = relu(W_e observation + b_e)      encoder
  h  = core(h, x)                       from h = 0 where an episode starts
  π  = softmax(W_a h + b_a)             actor: probabilities of the actions
  V  = w_c h + b_c                      critic: the value

The core is a cell (`find_cell`), or relu(W x + b) in the feed-forward baseline.
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

from experiments.trainer.config import CELLS
from experiments.trainer.own_cell import import_cell, init_shapes
from lstm_jax import unroll
from lstm_jax.cells.affine import affine
from lstm_jax.cells.cell import Cell
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


class Core(NamedTuple):
  """The part of a network that may remember."""

  init: Callable  # (key, D, H) -> params
  output_size: Callable  # (params) -> P, the size of h, not always H
  initial_state: Callable  # (batch size, H) -> state
  step: Callable  # (params, state, x [B, D], start [B]) -> (state, h [B, P])
  unroll: Callable  # the same for T time steps


def make_network(
  name: str, observation_size: int, hidden_size: int, num_actions: int
) -> Network:
  """Return a network.

  Args:
    name: of a cell, as in `find_cell`, or FEED_FORWARD.
    observation_size: the size of an observation vector.
    hidden_size: H, of encoder and core.
    num_actions: number of actions from which the actor chooses.

  Raises:
    ValueError: as `find_cell`; or the cell refuses the hidden size.
  """
  if name == FEED_FORWARD:
    core = _feed_forward()
  else:
    cell = find_cell(name)
    core = _recurrent(cell)
    # Raises an error if the cell refuses H.
    init_shapes(cell, lambda key: core.init(key, hidden_size, hidden_size))

  def init(key):
    encoder, inner, actor, critic = jax.random.split(key, 4)
    params = core.init(inner, hidden_size, hidden_size)
    size = core.output_size(params)
    # √2 before a relu; 0.01 for a first policy that is nearly uniform.
    return PolicyParams(
      init_linear(encoder, observation_size, hidden_size, 2**0.5),
      params,
      init_linear(actor, size, num_actions, 0.01),
      init_linear(critic, size, 1, 1.0),
    )

  def apply(run):
    def applied(params, state, observation, start):
      # `affine` would take integers for tokens.
      observation = observation.astype(params.encoder.w.dtype)
      x = jax.nn.relu(affine(observation, *params.encoder))
      state, h = run(params.core, state, x, start)
      values = affine(h, *params.critic)[..., 0]
      return state, affine(h, *params.actor), values

    return applied

  def initial_state(batch_size):
    return core.initial_state(batch_size, hidden_size)

  return Network(init, initial_state, apply(core.step), apply(core.unroll))


def find_cell(name: str) -> Cell:
  """Return the cell with this name in CELLS, or else the module of this name.

  Raises:
    ValueError: there is no such cell, or `import_cell` refuses the module.
  """
  if name in CELLS:
    return CELLS[name]
  try:
    return import_cell(name)
  except ValueError as error:
    raise ValueError(
      f"network must be {FEED_FORWARD}, one of {', '.join(CELLS)}, or the "
      f"module of a cell of your own, got {name!r}: {error}"
    ) from None


def init_linear(
  key: jax.Array, input_size: int, output_size: int, scale: float
) -> Linear:
  """Return an orthogonal matrix times a scale, and biases 0."""
  orthogonal = jax.nn.initializers.orthogonal(scale)
  w = orthogonal(key, (input_size, output_size), jnp.float32)
  return Linear(w, jnp.zeros(output_size, jnp.float32))


def _recurrent(cell: Any) -> Core:
  def init(key, input_size, hidden_size):
    return cell.init(key, input_size, hidden_size, jnp.float32)

  def initial_state(batch_size, hidden_size):
    return zero_state(cell, (batch_size,), hidden_size)

  def step(params, state, x, start):
    state = resettable(cell).step(params, state, x, start)
    return state, state.h

  def run(params, state, xs, starts):
    return unroll(cell, params, state, xs, reset=starts)

  size = partial(output_size, cell)
  return Core(init, size, initial_state, step, run)


def _feed_forward() -> Core:
  def init(key, input_size, hidden_size):
    return init_linear(key, input_size, hidden_size, 2**0.5)

  def run(params, state, x, start):
    del start
    return state, jax.nn.relu(affine(x, *params))

  def size(params):
    return params.b.size

  return Core(init, size, lambda batch_size, hidden_size: (), run, run)
