"""Act in B environments at once: rollouts of T time steps.

Episodes begin and end anywhere in a rollout. The flag that resets the state of
the network goes with the observation: starts[t] says that observation t is the
first of an episode. It is true where the step before ended an episode:

  starts[t] = dones[t − 1]

dones[−1] is the last done of the rollout before; it is true for the first
rollout. A reset at dones[t] would set the state to zero a step too early:
before the last step of an episode and not before the first of the next.

A rollout begins with the state before its first step (the stored state). With a
burn-in of K steps, that is the state K steps earlier, and the rollout begins
with the inputs of these K steps, whose outcomes belong to the rollout before.
In the first rollout these inputs are zeros. They have no effect, since an
episode starts after them.

Reference: Kapturowski et al. (2019), Recurrent experience replay in distributed
reinforcement learning, section 3.1: stored state and burn-in.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.policies.config import PPOConfig
from experiments.policies.environments import Environment
from experiments.policies.networks import Network


class Inputs(NamedTuple):
  """What a network reads."""

  observation: jax.Array  # [..., B, D]
  start: jax.Array  # bool [..., B]: is it the first of an episode?


class Outcome(NamedTuple):
  """What a network answered at a time step, and what followed."""

  action: jax.Array  # int [..., B]
  log_prob: jax.Array  # of the action, [..., B]
  value: jax.Array  # [..., B]
  reward: jax.Array  # [..., B]
  done: jax.Array  # bool [..., B]


class Rollout(NamedTuple):
  """T time steps in B environments, after K of burn-in."""

  state: Any  # of the network before the first input, [B, ...]
  inputs: Inputs  # [K + T, B, ...]
  outcomes: Outcome  # [T, B]
  last_value: jax.Array  # of the observation after the last step, [B]


class Actor(NamedTuple):
  """All that acting changes."""

  environments: Any  # their states, [B, ...]
  inputs: Inputs  # of the next step, [B, ...]
  state: Any  # of the network before the next step, [B, ...]
  past_state: Any  # of the network K steps earlier, [B, ...]
  past_inputs: Inputs  # of these K steps, [K, B, ...]
  total: jax.Array  # rewards of the present episodes so far, [B]


def make_actor(
  network: Network, environment: Environment, config: PPOConfig, key: jax.Array
) -> Actor:
  """Return the actor before its first step, with B environments just reset."""
  batch, k = config.num_envs, config.burn_in
  keys = jax.random.split(key, batch)
  environments, observation = jax.vmap(environment.reset)(keys)
  inputs = Inputs(observation, jnp.ones(batch, bool))
  # The past state has arrays of its own, so that the actor can be donated.
  state, past = (network.initial_state(batch) for _ in range(2))
  zeros = jax.tree.map(lambda x: jnp.zeros((k, *x.shape), x.dtype), inputs)
  total = jnp.zeros(batch, jnp.float32)
  return Actor(environments, inputs, state, past, zeros, total)


def collect(
  network: Network,
  environment: Environment,
  config: PPOConfig,
  params: Any,
  actor: Actor,
  key: jax.Array,
) -> tuple[Actor, Rollout, jax.Array]:
  """Act for T time steps.

  Returns:
    (actor, rollout, mean return): the mean is over the episodes that ended, and
    NaN if none did.
  """
  t, k = config.rollout_steps, config.burn_in

  def act(actor, key):
    draw_key, step_key = jax.random.split(key)
    state, logits, value = network.step(params, actor.state, *actor.inputs)
    action = jax.random.categorical(draw_key, logits)
    log_prob = chosen(jax.nn.log_softmax(logits), action)
    environments, observation, reward, done = jax.vmap(environment.step)(
      jax.random.split(step_key, len(action)), actor.environments, action
    )
    total = actor.total + reward
    outcome = Outcome(action, log_prob, value, reward, done)
    finished = jnp.where(done, total, 0)
    steps = actor.inputs, outcome, finished, actor.state if k else None
    actor = actor._replace(
      environments=environments,
      inputs=Inputs(observation, start=done),  # starts[t + 1] = dones[t]
      state=state,
      total=jnp.where(done, 0, total),
    )
    return actor, steps

  first, past = actor.past_state, actor.past_inputs
  actor, steps = jax.lax.scan(act, actor, jax.random.split(key, t))
  inputs, outcomes, finished, states = steps
  inputs = jax.tree.map(lambda *x: jnp.concatenate(x), past, inputs)
  actor = actor._replace(
    past_state=jax.tree.map(lambda s: s[t - k], states) if k else actor.state,
    past_inputs=jax.tree.map(lambda x: x[t:], inputs),
  )
  _, _, last_value = network.step(params, actor.state, *actor.inputs)
  mean_return = finished.sum() / outcomes.done.sum()
  return actor, Rollout(first, inputs, outcomes, last_value), mean_return


def chosen(log_probs: jax.Array, actions: jax.Array) -> jax.Array:
  """Return the log-probabilities of actions [...], from log_probs [..., A]."""
  return jnp.take_along_axis(log_probs, actions[..., None], -1)[..., 0]
