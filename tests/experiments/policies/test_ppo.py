"""Advantages, rollouts and updates of PPO."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.policies import ppo
from experiments.policies.environments import tmaze
from experiments.policies.networks import make_network
from experiments.policies.ppo import (
  Inputs,
  Outcome,
  PPOConfig,
  Rollout,
  chosen,
  collect,
  gae,
  loss,
  make_actor,
  make_learner,
  make_optimizer,
  make_update,
  minibatch,
)
from experiments.trainer.records import replace
from tests.draws import normal_like, worst

T, B, H = 11, 6, 5
K = 4  # steps of burn-in
SMALL = PPOConfig(
  num_envs=B, rollout_steps=T, num_minibatches=3, num_epochs=2, burn_in=K
)
MAZE = tmaze(2)
# It is compiled for each network and configuration, its arguments 1 and 4.
LOSS_AND_GRADIENT = jax.jit(jax.value_and_grad(loss), static_argnums=(1, 4))
DISCOUNT, LAMBDA = 0.9, 0.7
KEYS = jax.random.split(jax.random.key(3), 2)


def test_an_advantage_is_the_sum_of_discounted_deltas():
  rng = np.random.default_rng(1)
  rewards, values = rng.standard_normal((2, T, B))
  dones, last_value = rng.random((T, B)) < 0.3, rng.standard_normal(B)
  following = np.concatenate([values[1:], last_value[None]])
  deltas = rewards + DISCOUNT * np.where(dones, 0, following) - values
  expected = np.zeros((T, B))
  for t in range(T):
    for k in range(T - t):
      goes_on = ~dones[t : t + k].any(0)  # no end between t and t + k
      expected[t] += (DISCOUNT * LAMBDA) ** k * deltas[t + k] * goes_on
  given = map(jnp.asarray, (rewards, values, dones, last_value))
  assert np.abs(gae(*given, DISCOUNT, LAMBDA) - expected).max() < 1e-12


def test_what_follows_a_done_does_not_count_even_if_it_is_not_finite():
  rewards, dones = jnp.ones((2, 1)), jnp.ones((2, 1), bool)
  values, last_value = jnp.array([[3], [jnp.inf]]), jnp.full(1, jnp.nan)
  found = gae(rewards, values, dones, last_value, 0.9, 0.9)
  assert found.tolist() == [[-2], [-jnp.inf]]


@pytest.fixture(scope="module")
def acted():
  return act_twice(SMALL)


def act_twice(config):
  """Return (network, params, two rollouts in a row, their mean returns)."""
  network = make_network("gru", 4, H, 3)  # the maze: 4 observations, 3 actions

  @jax.jit
  def act(init_key, actor_key, keys):
    params = network.init(init_key)
    actor = make_actor(network, MAZE, config, actor_key)

    def body(actor, key):
      actor, *found = collect(network, MAZE, config, params, actor, key)
      return actor, found

    return params, *jax.lax.scan(body, actor, keys)[1]

  with jax.numpy_dtype_promotion("standard"):
    params, *found = act(*map(jax.random.key, (1, 2)), KEYS)
  rollouts, mean_returns = jax.tree.map(np.array, found)
  return network, params, [at(rollouts, 0), at(rollouts, 1)], mean_returns


def at(tree, index):
  return jax.tree.map(lambda x: x[index], tree)


@pytest.mark.exhaustive
def test_a_step_starts_an_episode_where_the_step_before_was_done(acted):
  _, _, (first, second), _ = acted
  dones = np.concatenate([first.outcomes.done, second.outcomes.done])
  starts = np.concatenate([first.inputs.start[K:], second.inputs.start[K:]])
  assert starts[0].all() and dones.any() and not dones.all()
  assert (starts[1:] == dones[:-1]).all()  # starts[t] = dones[t − 1]
  observations = np.concatenate(
    [first.inputs.observation[K:], second.inputs.observation[K:]]
  )
  shows_goal = observations[..., :2].any(-1)  # at the first position alone
  assert shows_goal[starts].all()
  each = zip(observations, starts, strict=True)
  goals = [len(np.unique(now[begin], axis=0)) for now, begin in each]
  assert goals[0] == max(goals[1:]) == 2  # environments draw their own


@pytest.mark.exhaustive
def test_the_burn_in_is_the_end_of_the_rollout_before(acted):
  _, _, (first, second), _ = acted
  for before, now in zip(first.inputs, second.inputs, strict=True):
    assert np.array_equal(now[:K], before[T:])
  assert not first.inputs.observation[:K].any()


def test_a_rollout_is_reproduced_from_its_stored_state(acted):
  network, params, rollouts, _ = acted
  for rollout in rollouts:
    log_probs, values = answers(network, params, rollout)
    old = rollout.outcomes
    assert worst(values[K:], old.value) < 1e-6  # float32
    assert worst(log_probs[K:], old.log_prob) < 1e-6
    assert (old.log_prob < np.log(1 / 3)).any()  # not the likeliest of three
  first, second = rollouts
  assert worst(first.last_value, second.outcomes.value[0]) < 1e-6
  assert np.abs(rollouts[1].state.h).max() > 0.01  # carried over from the first


def answers(network, params, rollout):
  """Return (log π of the actions, values) from the rollout's own state."""

  @jax.jit
  def run(params, state, inputs):
    return network.unroll(params, state, *inputs)

  _, logits, values = run(params, rollout.state, rollout.inputs)
  burn_in = len(values) - T
  actions = jnp.pad(rollout.outcomes.action, ((burn_in, 0), (0, 0)))
  return chosen(jax.nn.log_softmax(logits), actions), values


@pytest.mark.exhaustive
def test_without_burn_in_a_rollout_begins_with_the_last_state():
  network, params, (first, second), _ = act_twice(replace(SMALL, burn_in=0))
  for rollout in (first, second):
    _, values = answers(network, params, rollout)
    assert worst(values, rollout.outcomes.value) < 1e-6  # float32
  assert not first.state.h.any() and np.abs(second.state.h).max() > 0.01


def test_the_mean_return_is_that_of_the_episodes_that_ended(acted):
  _, _, rollouts, mean_returns = acted
  total = np.zeros(B)
  for rollout, mean_return in zip(rollouts, mean_returns, strict=True):
    ended = []
    old = rollout.outcomes
    for reward, done in zip(old.reward, old.done, strict=True):
      total += reward
      ended += [*total[done]]
      total[done] = 0
    assert abs(mean_return - np.mean(ended)) < 1e-6


def test_the_loss_is_that_of_numpy():
  rng = np.random.default_rng(4)
  config = PPOConfig(clip=0.1, value_coef=0.7, entropy_coef=0.3)
  advantages, old_value, values = rng.standard_normal((3, T, B))
  logits, actions = rng.standard_normal((T, B, 3)), rng.integers(0, 3, (T, B))
  log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  log_prob = np.take_along_axis(log_probs, actions[..., None], -1)[..., 0]
  old = log_prob - 0.2 * rng.standard_normal((T, B))
  # Its params are its outputs: the logits and the values that are drawn above.
  network = make_network("gru", 1, 1, 3)._replace(
    unroll=lambda params, state, *inputs: (state, *params)
  )
  rollout = Rollout(
    (), Inputs((), ()), Outcome(actions, old, old_value, 0, 0), 0
  )
  run = jax.jit(
    lambda *given: loss(given, network, rollout, advantages, config)
  )
  found = run(logits, values)

  ratio = np.exp(log_prob - old)
  scaled = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
  clipped = np.clip(ratio, 0.9, 1.1)
  surrogate = np.minimum(ratio * scaled, clipped * scaled).mean()
  value_loss = np.mean((values - old_value - advantages) ** 2) / 2
  entropy = np.mean(-(np.exp(log_probs) * log_probs).sum(-1))
  assert abs(found - (0.7 * value_loss - surrogate - 0.3 * entropy)) < 1e-12


def refreshed(network, params, rollout):
  """Return the rollout without its burn-in, from the state after it."""
  state, *_ = network.unroll(
    params, rollout.state, *at(rollout.inputs, slice(K))
  )
  later = at(rollout.inputs, slice(K, None))
  return rollout._replace(state=state, inputs=later)


@pytest.mark.exhaustive
def test_the_burn_in_computes_the_state_by_the_present_weights(acted):
  network, params, (_, rollout), _ = acted
  changed = jax.tree.map(lambda p: 1.5 * p, params)
  advantages = normal_like(KEYS[0], jnp.asarray(rollout.outcomes.value))
  run = LOSS_AND_GRADIENT
  found = run(changed, network, rollout, advantages, SMALL)
  fresh = jax.jit(partial(refreshed, network))(changed, rollout)
  expected = run(changed, network, fresh, advantages, replace(SMALL, burn_in=0))
  assert worst(found, expected) < 1e-6  # float32
  stale = fresh._replace(state=jax.tree.map(lambda s: 0 * s, fresh.state))
  other = run(changed, network, stale, advantages, replace(SMALL, burn_in=0))
  assert abs(other[0] - found[0]) > 1e-5


def test_a_minibatch_is_all_time_steps_of_some_environments(acted):
  _, _, (rollout, _), _ = acted
  advantages, rows = rollout.outcomes.value, np.array([4, 1])
  found = minibatch(rollout, advantages, rows)
  sequences = rollout.inputs, rollout.outcomes, advantages
  inputs, outcomes, shares = at(sequences, (slice(None), rows))
  state, last_value = at((rollout.state, rollout.last_value), rows)
  expected = Rollout(state, inputs, outcomes, last_value), shares
  assert jax.tree.all(jax.tree.map(np.array_equal, found, expected))


def test_the_optimizer_is_adam_on_clipped_gradients_whose_rate_falls_to_0():
  config = replace(SMALL, num_updates=2, learning_rate=0.1, max_grad_norm=0.5)
  gradients = np.random.default_rng(5).standard_normal((13, 4))
  gradients[::3] *= 0.01  # these are not clipped
  optimizer = make_optimizer(config)

  @jax.jit
  def run(gradients):
    def body(state, gradient):
      update, state = optimizer.update(gradient, state)
      return state, update

    return jax.lax.scan(body, optimizer.init(jnp.zeros(4)), gradients)[1]

  with jax.numpy_dtype_promotion("standard"):  # Optax's rate is float32
    found = run(gradients)
  m = v = np.zeros(4)
  for k, gradient in enumerate(gradients):
    gradient = gradient * min(1, 0.5 / np.linalg.norm(gradient))
    m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
    rate = 0.1 * (1 - k / 12)  # of 2 updates · 2 epochs · 3 minibatches
    bias = 1 - np.array([0.9, 0.999]) ** (k + 1)
    expected = -rate * m / bias[0] / (np.sqrt(v / bias[1]) + 1e-5)
    assert np.abs(found[k] - expected).max() < 1e-7  # its rate is float32
  assert not found[12].any()


def test_an_update_trains_on_each_environment_once_an_epoch(monkeypatch):
  rows = []

  def recorded(rollout, advantages, some):
    jax.debug.callback(rows.append, some, ordered=True)
    return minibatch(rollout, advantages, some)

  monkeypatch.setattr(ppo, "minibatch", recorded)
  network = make_network("feed_forward", 4, H, 3)
  before = jax.jit(partial(make_learner, network, MAZE, SMALL))(KEYS[0])
  after, metrics = jax.jit(make_update(network, MAZE, SMALL))(before)
  jax.effects_barrier()
  assert len(rows) == 6  # 2 epochs · 3 minibatches
  first, second = np.concatenate(rows[:3]), np.concatenate(rows[3:])
  assert sorted(first) == sorted(second) == [*range(B)]
  assert not np.array_equal(first, second)

  # The same from the parts; the second of the keys is the one of acting.
  _, key, _ = jax.random.split(before.key, 3)
  act = jax.jit(partial(collect, network, MAZE, SMALL))
  actor, rollout, mean_return = act(before.params, before.actor, key)
  old = rollout.outcomes
  advantages = gae(
    *(old.reward, old.value, old.done, rollout.last_value),
    discount=SMALL.discount,
    lambda_=SMALL.gae_lambda,
  )
  optimizer, params, losses = make_optimizer(SMALL), before.params, []
  state = before.optimizer_state
  for some in rows:
    part = minibatch(rollout, advantages, some)
    value, gradient = LOSS_AND_GRADIENT(params, network, *part, SMALL)
    step, state = optimizer.update(gradient, state)
    params = optax.apply_updates(params, step)
    losses.append(value)
  assert worst(after.params, params) < 1e-6  # float32
  assert jax.tree.all(jax.tree.map(np.array_equal, after.actor, actor))
  expected = mean_return, old.done.sum(), np.mean(losses)
  assert np.allclose(metrics, expected, rtol=1e-5, equal_nan=True)
  assert len({str(jax.random.key_data(x.key)) for x in (before, after)}) == 2


@pytest.mark.exhaustive
@pytest.mark.parametrize("burn_in", [0, 3])
def test_training_solves_the_maze_only_with_memory(burn_in, key):
  config = PPOConfig(
    num_envs=64,
    rollout_steps=16,
    num_updates=60,
    learning_rate=1e-2,
    burn_in=burn_in,
  )
  last = {}
  for name in ("gru", "feed_forward"):
    network = make_network(name, 4, 16, 3)
    start = jax.jit(jax.vmap(partial(make_learner, network, MAZE, config)))
    learners = start(jax.random.split(key, 2))
    update = jax.jit(jax.vmap(make_update(network, MAZE, config)))
    learners, first = update(learners)
    assert (first.mean_return < 0).all()
    for _ in range(config.num_updates - 1):
      learners, metrics = update(learners)
    last[name] = metrics.mean_return
  assert (last["gru"] > 0.9).all() and (last["feed_forward"] < 0.4).all()


def test_settings_that_do_not_fit_each_other_are_refused():
  with pytest.raises(ValueError, match="multiple of num_minibatches, got 6 an"):
    PPOConfig(num_envs=6)
  with pytest.raises(ValueError, match="at most rollout_steps, 11, got 12"):
    replace(SMALL, burn_in=12)
  replace(SMALL, burn_in=11)
