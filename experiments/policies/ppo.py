"""Recurrent PPO: advantages, loss, update.

An update acts for T time steps with the current weights (`rollouts`), and then
trains on this rollout for some epochs. A minibatch is all time steps of a share
of the environments, since a sequence has to stay whole. The network runs over
it from the state that the rollout stores, and from zero where an episode
begins. The inputs begin `burn_in` time steps before the first outcome: over
these steps the network only brings its state up to date, without a gradient.

References: Schulman et al. (2017), Proximal policy optimization algorithms;
Schulman et al. (2016), High-dimensional continuous control using generalized
advantage estimation, equations 11 to 16.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.policies.config import PPOConfig
from experiments.policies.environments import Environment
from experiments.policies.networks import Network
from experiments.policies.rollouts import (
  Actor,
  Rollout,
  chosen,
  collect,
  make_actor,
)


class Learner(NamedTuple):
  """All that an update changes."""

  key: jax.Array
  params: Any
  optimizer_state: Any
  actor: Actor


class Metrics(NamedTuple):
  """What an update reports."""

  mean_return: jax.Array  # of the episodes that ended in it; NaN if none did
  num_episodes: jax.Array  # that ended in it
  loss: jax.Array  # mean of its training steps


def gae(
  rewards: jax.Array,
  values: jax.Array,
  dones: jax.Array,
  last_value: jax.Array,
  discount: float,
  lambda_: float,
) -> jax.Array:
  """Return the generalized advantage estimates, [T, ...].

    δₜ = rₜ + γ (1 − doneₜ) Vₜ₊₁ − Vₜ
    Aₜ = δₜ + γ λ (1 − doneₜ) Aₜ₊₁

  V_T is the last value, and A_T = 0. What follows a done does not count, even
  if it is not finite.

  Args:
    rewards: r, [T, ...].
    values: V, [T, ...].
    dones: bool [T, ...].
    last_value: V_T, [...].
    discount: γ.
    lambda_: λ.
  """
  following = jnp.concatenate([values[1:], last_value[None]])
  deltas = rewards + discount * jnp.where(dones, 0, following) - values

  def body(advantage, inputs):
    delta, done = inputs
    advantage = delta + discount * lambda_ * jnp.where(done, 0, advantage)
    return advantage, advantage

  zero = jnp.zeros_like(last_value, jnp.result_type(deltas, lambda_))
  return jax.lax.scan(body, zero, (deltas, dones), reverse=True)[1]


def loss(
  params: Any,
  network: Network,
  rollout: Rollout,
  advantages: jax.Array,
  config: PPOConfig,
) -> jax.Array:
  """Return the loss of PPO, which is minimized.

  It is a weighted value loss, minus the clipped surrogate, minus an entropy
  bonus. The values' targets are the old values plus the advantages. The
  surrogate takes the advantages normalized over the minibatch.

  Args:
    params: the weights.
    network: whose weights they are.
    rollout: of all B environments, or of a minibatch; inputs [burn_in + T, B,
      ...], outcomes [T, B].
    advantages: of the rollout, [T, B].
    config: the settings.
  """
  state, inputs, old, _ = rollout
  burn_in, inputs = split_time(inputs, config.burn_in)
  if config.burn_in:
    state, *_ = network.unroll(params, state, *burn_in)
    state = jax.lax.stop_gradient(state)
  _, logits, values = network.unroll(params, state, *inputs)

  log_probs = jax.nn.log_softmax(logits)
  ratio = jnp.exp(chosen(log_probs, old.action) - old.log_prob)
  scaled = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
  clipped = ratio.clip(1 - config.clip, 1 + config.clip)
  surrogate = jnp.minimum(ratio * scaled, clipped * scaled).mean()

  value_loss = 0.5 * ((values - (old.value + advantages)) ** 2).mean()
  entropy = -(jnp.exp(log_probs) * log_probs).sum(-1).mean()
  bonus = config.entropy_coef * entropy
  return config.value_coef * value_loss - surrogate - bonus


def split_time(tree: Any, step: int) -> tuple[Any, Any]:
  """Return the time steps of arrays [T, ...] before `step`, and the rest."""
  before = jax.tree.map(lambda x: x[:step], tree)
  return before, jax.tree.map(lambda x: x[step:], tree)


def minibatch(
  rollout: Rollout, advantages: jax.Array, rows: jax.Array
) -> tuple[Rollout, jax.Array]:
  """Return all time steps of the environments in `rows`, integers [b]."""
  state, inputs, outcomes, last_value = rollout
  state, last_value = jax.tree.map(lambda x: x[rows], (state, last_value))
  inputs, outcomes, advantages = jax.tree.map(
    lambda x: x[:, rows], (inputs, outcomes, advantages)
  )
  return Rollout(state, inputs, outcomes, last_value), advantages


def make_optimizer(config: PPOConfig) -> optax.GradientTransformation:
  """Return Adam on clipped gradients, with a rate that falls linearly to 0."""
  steps = config.num_updates * config.num_epochs * config.num_minibatches
  schedule = optax.linear_schedule(config.learning_rate, 0.0, steps)
  return optax.chain(
    optax.clip_by_global_norm(config.max_grad_norm),
    optax.adam(schedule, eps=1e-5),
  )


def make_learner(
  network: Network,
  environment: Environment,
  config: PPOConfig,
  params: Any,
  key: jax.Array,
) -> Learner:
  """Return the learner before the first update, with these weights."""
  key, actor_key = jax.random.split(key)
  optimizer_state = make_optimizer(config).init(params)
  actor = make_actor(network, environment, config, actor_key)
  return Learner(key, params, optimizer_state, actor)


def make_update(
  network: Network, environment: Environment, config: PPOConfig
) -> Callable[[Learner], tuple[Learner, Metrics]]:
  """Return the function of an update: act, then train on what happened."""
  optimizer = make_optimizer(config)

  def update(learner: Learner) -> tuple[Learner, Metrics]:
    key, act_key, shuffle_key = jax.random.split(learner.key, 3)
    actor, rollout, mean_return = collect(
      network, environment, config, learner.params, learner.actor, act_key
    )
    old = rollout.outcomes
    advantages = gae(
      old.reward,
      old.value,
      old.done,
      rollout.last_value,
      config.discount,
      config.gae_lambda,
    )

    def train(carry, rows):
      params, optimizer_state = carry
      batch = minibatch(rollout, advantages, rows)
      value, gradient = jax.value_and_grad(loss)(
        params, network, *batch, config
      )
      updates, optimizer_state = optimizer.update(gradient, optimizer_state)
      return (optax.apply_updates(params, updates), optimizer_state), value

    keys = jax.random.split(shuffle_key, config.num_epochs)
    shuffle = partial(jax.random.permutation, x=config.num_envs)
    orders = jax.vmap(shuffle)(keys)  # a loop would compile slowly
    steps = config.num_epochs * config.num_minibatches
    rows = orders.reshape(steps, -1)
    carry, losses = jax.lax.scan(
      train, (learner.params, learner.optimizer_state), rows
    )
    metrics = Metrics(mean_return, old.done.sum(), losses.mean())
    return Learner(key, *carry, actor), metrics

  return update
