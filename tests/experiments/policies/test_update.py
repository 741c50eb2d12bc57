"""The optimizer and an update of PPO, apart from the networks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.policies.config import PPOConfig
from experiments.policies.environments import tmaze
from experiments.policies.networks import make_network
from experiments.policies.ppo import (
  Learner,
  gae,
  make_learner,
  make_optimizer,
  make_update,
)
from experiments.policies.rollouts import (
  Inputs,
  Outcome,
  Rollout,
  make_actor,
)
from experiments.trainer.records import replace

T, B = 4, 6
KEY = jax.random.key(3)
SMALL = PPOConfig(num_envs=B, rollout_steps=T, num_minibatches=3, num_epochs=2)


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

    state = optimizer.init(jnp.zeros(4))
    return jax.lax.scan(body, state, gradients)[1]

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
  reward, value = np.random.default_rng(6).standard_normal((2, T, B))
  log_prob, done = -value, reward > 1  # any others would do
  old = Outcome(np.zeros((T, B)), log_prob, value, reward, done)
  inputs = Inputs(value[..., None], old.done)
  numbers = np.arange(B)  # an index for each environment, in place of a state
  rollout = Rollout(numbers, inputs, old, last_value=value[0])
  advantages, keys, orders = value + 1, [], []

  def collected(network, environment, config, params, actor, key):
    assert (params, actor) == (6.0, "before")
    keys.append(key)
    return "after", rollout, 0.25

  def estimated(*given):
    expected = old.reward, old.value, old.done, rollout.last_value
    expected += SMALL.discount, SMALL.gae_lambda
    assert all(map(np.array_equal, given, expected))
    return advantages

  def square(params, network, part, found, config):
    orders.append(part.state)
    assert np.array_equal(found, advantages[:, part.state])
    return params**2 / 2

  def scan(body, carry, rows):  # with values, where JAX's has tracers
    values = []
    for each in np.asarray(rows):
      carry, value = body(carry, each)
      values.append(value)
    return carry, np.array(values)

  def minus(gradient, state):  # from 6 to 0 in steps of 1
    return -jnp.sign(gradient), state + 1

  optimizer = optax.GradientTransformation(lambda params: 0, minus)
  replaced = {
    "collect": collected,
    "gae": estimated,
    "loss": square,
    "make_optimizer": lambda config: optimizer,
    "jax.lax.scan": scan,
  }
  for name, function in replaced.items():
    monkeypatch.setattr(f"experiments.policies.ppo.{name}", function)
  update = make_update(None, None, SMALL)
  learner, metrics = update(Learner(KEY, jnp.array(6.0), 0, "before"))
  assert (learner.params, *learner[2:]) == (0.0, 6, "after")
  first, second = np.concatenate(orders[:3]), np.concatenate(orders[3:])
  assert {*first} == {*second} == {*range(B)} and len(orders) == 6
  assert not np.array_equal(first, second)
  keys = [str(jax.random.key_data(k)) for k in (KEY, *keys, learner.key)]
  assert len(set(keys)) == 3
  # The last is the mean of the losses p² / 2, for p from 6 to 1.
  assert metrics == (0.25, old.done.sum(), sum(k**2 for k in range(7)) / 12)


def test_what_follows_a_done_does_not_count_even_if_it_is_not_finite():
  rewards, dones = jnp.ones((2, 1), jnp.float32), jnp.ones((2, 1), bool)
  values, nan = jnp.array([[3], [jnp.inf]], jnp.bfloat16), jnp.full(1, jnp.nan)
  found = gae(rewards, values, dones, nan.astype(values.dtype), 0.9, 0.9)
  assert found.dtype == jnp.float32
  assert found.tolist() == [[-2], [-jnp.inf]]


def test_the_advantages_have_the_dtype_of_a_lambda_that_is_wider():
  rewards, dones = jnp.ones((2, 1), jnp.bfloat16), jnp.zeros((2, 1), bool)
  with jax.numpy_dtype_promotion("standard"):
    found = gae(rewards, rewards, dones, rewards[0], 0.5, jnp.float32(0.5))
  assert found.dtype == jnp.float32
  # Each δ is 1 + 0.5 − 1; the first advantage adds 0.5 · 0.5 of the second.
  assert found.tolist() == [[0.625], [0.5]]


def test_no_array_of_an_actor_occurs_twice():
  """An array that did could not be donated."""
  network = make_network("lstm", 4, 3, 3)
  actor = make_actor(network, tmaze(2), SMALL, KEY)
  places = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(actor)]
  assert len({*places}) == len(places) > 5


def test_more_training_steps_than_are_counted_are_refused():
  most = (2**31 - 1) // 6  # of 2 epochs · 3 minibatches
  replace(SMALL, num_updates=most)
  with pytest.raises(ValueError, match="num_updates × num_epochs × num_mini"):
    replace(SMALL, num_updates=most + 1)


def test_the_program_of_an_update_does_not_grow_with_the_epochs():
  maze, network = tmaze(2), make_network("feed_forward", 4, 3, 3)

  def length(num_epochs):
    config = replace(SMALL, num_epochs=num_epochs)
    make = partial(make_learner, network, maze, config)
    learner = jax.eval_shape(make, jax.eval_shape(network.init, KEY), KEY)
    update = make_update(network, maze, config)
    with jax.numpy_dtype_promotion("standard"):  # Optax's rate is float32
      return len(f"{jax.make_jaxpr(update)(learner)}".splitlines())

  assert length(2) == length(9)
