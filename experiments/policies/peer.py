"""The network of `networks` in Flax, with the ScannedRNN of other JAX code.

JAX code for reinforcement learning usually contains a class `ScannedRNN`: it
runs Flax's cell under `nn.scan`, and sets the carry to zero by `where` at the
start of each episode. `flax_network` puts this class, or `scanned(cell)` of
this library, between an encoder and heads in Flax. These have the equations and
the shapes of those in `networks`, so that PPO trains the whole like any other
network. `race` times an update of both networks, and of the one in `networks`.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen

from experiments.benchmarks.layers import FLAX_CELLS, scanned_rnn
from experiments.benchmarks.timing import (
  Peer,
  check_same,
  compare,
  compile_program,
  tolerance,
)
from experiments.policies.environments import Environment
from experiments.policies.networks import (
  Linear,
  Network,
  PolicyParams,
  make_network,
)
from experiments.policies.ppo import (
  collect,
  gae,
  loss,
  make_actor,
  make_learner,
  make_update,
)
from experiments.policies.training import PolicyConfig
from experiments.trainer.config import CELLS
from lstm_jax.interop.flax import scanned, to_linen

RACING = "gru", "lstm"  # networks that are timed


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
  """Return a network of Flax's modules, with sizes as in `make_network`."""
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


def race(
  name: str, environment: Environment, config: PolicyConfig, key: jax.Array
) -> list[dict[str, Any]]:
  """Time an update of all seeds by each network, in interleaved rounds.

  Every network updates its seeds at once, by `vmap`, on one device.

  Raises:
    ValueError: the networks do not compute the same (`check_equal`).
  """
  found = racers(name, environment, config.hidden_size)
  check_key, *keys = jax.random.split(key, 1 + config.num_seeds)
  check_equal(name, found, environment, config, check_key)

  def make(network: Network) -> Peer:
    parts = network, environment, config.ppo
    start = jax.jit(jax.vmap(partial(make_learner, *parts)))
    learners = start(jnp.stack(keys))
    update = jax.vmap(make_update(*parts))
    program, seconds, size = compile_program(update, learners)
    return Peer(lambda: jax.block_until_ready(program(learners)), seconds, size)

  package = "flax"  # `compare` asks for one; this module needs it for all
  makers = {k: (partial(make, net), package) for k, net in found.items()}
  return compare(makers, config.timing_rounds)[0]


def check_equal(
  name: str,
  networks: dict[str, Network],
  environment: Environment,
  config: PolicyConfig,
  key: jax.Array,
) -> None:
  """Check that all networks compute the same from the same weights.

  What is compared: the logits and values of a rollout, and the gradient of
  PPO's loss with respect to every weight.

  Raises:
    ValueError: an array's relative error is above `tolerance()`.
  """
  ppo, (ours, *others) = config.ppo, networks
  key, draw_key, actor_key = jax.random.split(key, 3)
  # The biases of `init` are 0. With a variance above 1 / H, the rounding errors
  # of a long sequence would grow.
  shapes = jax.eval_shape(networks[ours].init, key)
  params = jax.tree.map(
    lambda x: config.hidden_size**-0.5 * x,
    optax.tree.random_like(draw_key, shapes),
  )
  actor = make_actor(networks[ours], environment, ppo, actor_key)
  act = partial(collect, networks[ours], environment, ppo)
  _, rollout, _ = jax.jit(act)(params, actor, key)
  old = rollout.outcomes
  rewards = old.reward, old.value, old.done, rollout.last_value
  advantages = gae(*rewards, ppo.discount, ppo.gae_lambda)

  @partial(jax.jit, static_argnums=0)
  def results(network, params):
    # The first rollout begins with the zero state, of each network's own type.
    state = network.initial_state(ppo.num_envs)
    outputs = network.unroll(params, state, *rollout.inputs)[1:]
    same = rollout._replace(state=state)
    return outputs, jax.grad(loss)(params, network, same, advantages, ppo)

  outputs, gradient = results(networks[ours], params)
  expected, ported = (outputs, to_flax(name, gradient)), to_flax(name, params)
  for label in others:
    actual = results(networks[label], ported)
    check_same(label, actual, expected, tolerance())
