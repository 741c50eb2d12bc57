"""Recurrent PPO: rollouts, advantages, loss, update.

An update acts for T time steps with the current weights, and then trains on
this rollout for some epochs. A minibatch is all time steps of a share of the
environments, since a sequence has to stay whole.

Episodes begin and end anywhere in a rollout. The flag that resets the state of
the network goes with the observation: starts[t] says that observation t is the
first of an episode. It is true where the step before ended an episode:

  starts[t] = dones[t − 1]

dones[−1] is the last done of the rollout before; it is true for the first
rollout. A reset at dones[t] would set the state to zero a step too early:
before the last step of an episode and not before the first of the next.

A rollout begins with the state before its first step (the stored state). With a
burn-in of K steps, that is the state K steps earlier, and the rollout begins
with the inputs of these K steps, whose outcomes belong to the rollout before:
over them the network only brings its state up to date, without a gradient. In
the first rollout these inputs are zeros. They have no effect, since an episode
starts after them.

References: Schulman et al. (2017), Proximal policy optimization algorithms;
Schulman et al. (2016), High-dimensional continuous control using generalized
advantage estimation, equations 11 to 16; Kapturowski et al. (2019), Recurrent
experience replay in distributed reinforcement learning, section 3.1: stored
state and burn-in.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.policies.environments import Environment
from experiments.policies.networks import Network
from lstm_jax.language.options import check_options, option


@dataclass(frozen=True)
class PPOConfig:
  """The settings of PPO."""

  num_envs: int = option(
    128, "B, environments in which a seed acts at once.", bounds="[1, inf)"
  )
  rollout_steps: int = option(
    128,
    "T, time steps of a rollout in each environment, and how far back the "
    "gradient goes.",
    bounds="[1, inf)",
  )
  num_updates: int = option(
    100,
    "Updates, each a rollout and epochs of training on it.",
    bounds="[1, inf)",
  )
  num_epochs: int = option(4, "Passes over each rollout.", bounds="[1, inf)")
  num_minibatches: int = option(
    4,
    "Training steps of an epoch, each on all time steps of a share of the "
    "environments.",
    bounds="[1, inf)",
  )
  burn_in: int = option(
    0,
    "K, time steps before each rollout that are replayed without a gradient, "
    "to recompute the state with the current weights.",
    bounds="[0, inf)",
  )
  learning_rate: float = option(
    1e-2, "Adam's initial rate; it falls to 0 linearly.", bounds="(0, inf)"
  )
  max_grad_norm: float = option(
    0.5, "Norm to which a longer gradient is scaled.", bounds="(0, inf)"
  )
  discount: float = option(
    0.995, "γ, the weight of a reward one step later.", bounds="[0, 1]"
  )
  gae_lambda: float = option(
    0.95, "λ of generalized advantage estimation.", bounds="[0, 1]"
  )
  clip: float = option(
    0.2,
    "ε: the gradient is 0 where the ratio of probabilities has moved beyond "
    "1 ± ε in the direction that the advantage rewards.",
    bounds="(0, 1)",
  )
  value_coef: float = option(
    0.5, "Weight of the value loss.", bounds="[0, inf)"
  )
  entropy_coef: float = option(
    0.01, "Weight of the entropy bonus.", bounds="[0, inf)"
  )

  def __post_init__(self):
    check_options(self)
    if self.num_envs % self.num_minibatches:
      raise ValueError(
        f"num_envs must be a multiple of num_minibatches, got {self.num_envs} "
        f"and {self.num_minibatches}"
      )
    if self.burn_in > self.rollout_steps:
      raise ValueError(
        f"burn_in must be at most rollout_steps, {self.rollout_steps}, got "
        f"{self.burn_in}"
      )


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


def make_actor(
  network: Network, environment: Environment, config: PPOConfig, key: jax.Array
) -> Actor:
  """Return the actor before its first step, with B environments just reset."""
  batch, k = config.num_envs, config.burn_in
  keys = jax.random.split(key, batch)
  environments, observation = jax.vmap(environment.reset)(keys)
  inputs = Inputs(observation, jnp.ones(batch, bool))
  state = network.initial_state(batch)
  zeros = jax.tree.map(lambda x: jnp.zeros((k, *x.shape), x.dtype), inputs)
  total = jnp.zeros(batch, jnp.float32)
  return Actor(environments, inputs, state, state, zeros, total)


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
  key: jax.Array,
) -> Learner:
  """Return the learner before the first update."""
  init_key, key = jax.random.split(key)
  params = network.init(init_key)
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
