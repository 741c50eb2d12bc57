"""The network of `networks` in Flax, with the ScannedRNN of other JAX code.

JAX code for reinforcement learning usually contains a class `ScannedRNN`: it
runs Flax's cell under `nn.scan`, and sets the carry to zero by `where` at the
start of each episode. `flax_network` puts this class, or `scanned(cell)` of
this library, between an encoder and heads in Flax. These have the equations and
the shapes of those in `networks`, so that PPO trains the whole like any other
network. `race` times an update of both networks, and of the one in `networks`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen

from experiments.benchmarks.peers.layers import FLAX_CELLS
from experiments.benchmarks.peers.proof import (
  Peer,
  check_same,
  compile_program,
  tolerance,
)
from experiments.benchmarks.peers.resets import scanned_rnn
from experiments.benchmarks.timing import compare
from experiments.policies.config import PolicyConfig
from experiments.policies.environments import Environment
from experiments.policies.networks import (
  CELLS,
  Linear,
  Network,
  PolicyParams,
  make_network,
)
from experiments.policies.ppo import gae, loss, make_update
from experiments.policies.rollouts import collect, make_actor
from experiments.policies.training import start
from lstm_jax.interop.flax import scanned, to_linen


class ActorCritic(linen.Module):
  """The network of `networks`, around a ScannedRNN."""

  recurrent: Any  # a class ScannedRNN: Flax's, or that of `scanned`
  hidden_size: int
  num_actions: int

  @linen.compact
  def __call__(self, carry, x):
    """Return (carry, logits [T, B, actions], values [T, B])."""
    observations, starts = x
    ins = linen.relu(linen.Dense(self.hidden_size)(observations))
    carry, hs = self.recurrent()(carry, (ins, starts))
    logits = linen.Dense(self.num_actions)(hs)
    return carry, logits, linen.Dense(1)(hs)[..., 0]


def flax_network(
  recurrent: Any, observation_size: int, hidden_size: int, num_actions: int
) -> Network:
  """Return a network of Flax's modules.

  Args:
    recurrent: a class ScannedRNN: Flax's, or that of `scanned`.
    observation_size: of an observation vector.
    hidden_size: of encoder and cell.
    num_actions: number of actions from which the actor chooses.
  """
  module = ActorCritic(recurrent, hidden_size, num_actions)

  def initial_state(batch_size):
    return recurrent.initialize_carry(batch_size, hidden_size)

  def init(key):
    observation = jnp.zeros((1, 1, observation_size), jnp.float32)
    x = observation, jnp.zeros((1, 1), bool)
    return module.init(key, initial_state(1), x)

  def run(params, state, observations, starts):
    return module.apply(params, state, (observations, starts))

  def step(params, state, observation, start):  # a sequence of one step
    state, *outputs = run(params, state, observation[None], start[None])
    return state, *(x[0] for x in outputs)

  return Network(init, initial_state, step, run)


def to_flax(name: str, params: PolicyParams) -> dict[str, Any]:
  """Return our weights, or their gradients, as variables of `ActorCritic`."""

  def dense(linear: Linear) -> dict[str, jax.Array]:
    return {"kernel": linear.w, "bias": linear.b}

  cell = {f"{FLAX_CELLS[name]}_0": to_linen(params.core)}
  layers = {
    "Dense_0": dense(params.encoder),
    "ScannedRNN_0": cell,
    "Dense_1": dense(params.actor),
    "Dense_2": dense(params.critic),
  }
  return {"params": layers}


def racers(
  name: str, environment: Environment, hidden_size: int
) -> dict[str, Network]:
  """Return the networks that `race` times, ours first."""
  sizes = environment.observation_size, hidden_size, environment.num_actions
  return {
    "unroll": make_network(name, *sizes),
    "scanned": flax_network(scanned(CELLS[name]), *sizes),
    "flax": flax_network(scanned_rnn(name), *sizes),
  }


def draw_weights(
  network: Network, hidden_size: int, key: jax.Array
) -> PolicyParams:
  """Return Gaussian weights and biases, with a variance of 1 / hidden_size.

  With larger weights, the rounding errors of a long sequence would grow.
  """
  drawn = optax.tree.random_like(key, jax.eval_shape(network.init, key))
  return jax.tree.map(lambda x: hidden_size**-0.5 * x, drawn)


def check_equal(
  name: str, environment: Environment, config: PolicyConfig, key: jax.Array
) -> None:
  """Check that all networks compute the same from the same weights.

  What is compared: the logits and values of a rollout, and the gradient of
  PPO's loss with respect to every weight.

  Raises:
    ValueError: an array's relative error is above `tolerance()`.
  """
  ppo, found = config.ppo, racers(name, environment, config.hidden_size)
  key, draw_key, actor_key = jax.random.split(key, 3)
  params = draw_weights(found["unroll"], config.hidden_size, draw_key)
  actor = make_actor(found["unroll"], environment, ppo, actor_key)
  _, rollout, _ = jax.jit(
    partial(collect, found["unroll"], environment, ppo, params)
  )(actor, key)
  old = rollout.outcomes
  advantages = gae(
    *(old.reward, old.value, old.done, rollout.last_value),
    ppo.discount,
    ppo.gae_lambda,
  )

  def results(network, params):
    # The first rollout begins with the zero state, of each network's own type.
    state = network.initial_state(ppo.num_envs)
    outputs = network.unroll(params, state, *rollout.inputs)[1:]
    same = rollout._replace(state=state)
    return outputs, jax.grad(loss)(params, network, same, advantages, ppo)

  outputs, gradient = jax.jit(partial(results, found["unroll"]))(params)
  expected = outputs, to_flax(name, gradient)
  ported = to_flax(name, params)
  for label in ("scanned", "flax"):
    actual = jax.jit(partial(results, found[label]))(ported)
    check_same(label, actual, expected, tolerance())


def race(
  name: str, environment: Environment, config: PolicyConfig, key: jax.Array
) -> list[dict[str, Any]]:
  """Time an update of all seeds by each network, in interleaved rounds.

  Every network updates its seeds at once, by `vmap`, on one device.

  Raises:
    ValueError: the networks do not compute the same (`check_equal`).
  """
  check_key, *keys = jax.random.split(key, 1 + config.num_seeds)
  check_equal(name, environment, config, check_key)

  def maker(network: Network) -> Callable[[], Peer]:
    def make() -> Peer:
      learners = start(network, environment, config.ppo, jnp.stack(keys))
      update = jax.vmap(make_update(network, environment, config.ppo))
      program, seconds, size = compile_program(update, learners)

      def run() -> Any:
        return jax.block_until_ready(program(learners))

      return Peer(run, seconds, size)

    return make

  found = racers(name, environment, config.hidden_size)
  package = "flax"  # `compare` asks for one; this module needs it for all
  makers = {label: (maker(net), package) for label, net in found.items()}
  return compare(makers, config.timing_rounds)[0]
