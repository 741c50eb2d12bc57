"""The networks in Flax compute the same as ours, with the weights of ours."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

from experiments.policies import peer
from experiments.policies.config import PolicyConfig, PPOConfig
from experiments.policies.environments import tmaze
from experiments.policies.networks import make_network
from experiments.policies.peer import (
  check_equal,
  draw_weights,
  race,
  racers,
  to_flax,
)
from tests.draws import normal_like, weighed, worst

EACH = pytest.mark.parametrize("name", ["gru", "lstm"])
MAZE = tmaze(2)
T, B, H = 7, 6, 5
SMALL = PolicyConfig(
  hidden_size=H,
  num_seeds=2,
  timing_rounds=2,
  ppo=PPOConfig(num_envs=B, rollout_steps=T, num_minibatches=2, num_epochs=1),
)


@pytest.fixture(autouse=True)
def standard_ranks():
  """Let Flax add a bias [K] to an array [..., K]."""
  with jax.numpy_rank_promotion("allow"):
    yield


@pytest.mark.exhaustive
@EACH
def test_the_weights_have_the_names_of_the_modules(name, key):
  found = racers(name, MAZE, H)
  shapes = jax.eval_shape(found["unroll"].init, key)
  ported = jax.eval_shape(partial(to_flax, name), shapes)
  expected = jax.tree.map(lambda x: x.shape, ported)
  for label in ("scanned", "flax"):
    variables = jax.eval_shape(found[label].init, key)
    assert jax.tree.map(lambda x: x.shape, variables) == expected


@pytest.mark.exhaustive
@EACH
def test_outputs_and_gradients_are_equal_in_float64(name, key):
  found = racers(name, MAZE, H)
  shapes = jax.eval_shape(found["unroll"].init, key)
  params = jax.tree.map(lambda x: jnp.zeros(x.shape), shapes)
  params_key, inputs_key, starts_key = jax.random.split(key, 3)
  params = normal_like(params_key, params)
  observations = jnp.zeros((T, B, MAZE.observation_size))
  observations = normal_like(inputs_key, observations)
  starts = jax.random.bernoulli(starts_key, 0.3, (T, B))

  def results(network, params):
    state = jax.tree.map(jnp.float64, network.initial_state(B))

    def outputs(params):
      _, *heads = network.unroll(params, state, observations, starts)
      after, *_ = network.step(params, state, observations[0], starts[0])
      _, *acted = network.step(params, after, observations[1], starts[1])
      return heads, acted

    gradient = jax.grad(weighed(outputs, key))
    return jax.jit(lambda params: [outputs(params), gradient(params)])(params)

  outputs, gradient = results(found["unroll"], params)
  expected = [outputs, to_flax(name, gradient)]
  for label in ("scanned", "flax"):
    ported = to_flax(name, params)
    assert worst(results(found[label], ported), expected) < 1e-12, label


def test_a_race_is_between_the_networks_with_the_same_seeds(key, monkeypatch):
  checked, started, updated = [], [], []

  def start(network, environment, config, keys):
    started.append((network, str(jax.random.key_data(keys))))

  def make_update(network, environment, config):
    updated.append(network)
    return lambda learner: learner

  def compare(makers, rounds):
    assert rounds == SMALL.timing_rounds
    return [make() for make, _ in makers.values()], {}

  networks = {"unroll": "a", "scanned": "b", "flax": "c"}
  for name, function in {
    "racers": lambda *given: networks,
    "check_equal": lambda *given: checked.append(given[:3]),
    "start": start,
    "make_update": make_update,
    "compile_program": lambda *given: (None, 0.5, 8),
    "compare": compare,
  }.items():
    monkeypatch.setattr(peer, name, function)
  rows = race("gru", MAZE, SMALL, key)
  assert checked == [("gru", MAZE, SMALL)]
  assert [row[1:] for row in rows] == [(0.5, 8)] * 3
  assert updated == [name for name, _ in started] == ["a", "b", "c"]
  ((keys,),) = [{keys for _, keys in started}]
  assert len(set(keys.splitlines())) == SMALL.num_seeds


@EACH
def test_an_error_of_the_state_of_a_large_network_does_not_grow(name, key):
  network = make_network(name, 4, 256, 3)
  params = draw_weights(network, 256, key)
  inputs = jnp.ones((64, 1, 4), jnp.float32), jnp.zeros((64, 1), bool)
  state = network.initial_state(1)
  other = jax.tree.map(lambda x: x + 1e-3, state)
  run = jax.jit(network.unroll)
  after, moved = (run(params, s, *inputs)[0].h for s in (state, other))
  assert jnp.abs(after - moved).max() < 1e-3


@pytest.mark.exhaustive
@pytest.mark.parametrize("label", ["scanned", "flax"])
def test_a_network_that_computes_something_else_is_refused(
  label, key, monkeypatch
):
  find = peer.racers

  def slightly_wrong(*given):
    found = find(*given)

    def unroll(*given, network=found[label]):
      state, logits, values = network.unroll(*given)
      return state, 1.01 * logits, values

    return found | {label: found[label]._replace(unroll=unroll)}

  monkeypatch.setattr(peer, "racers", slightly_wrong)
  with pytest.raises(ValueError, match=f"^{label} computes a different result"):
    check_equal("gru", MAZE, SMALL, key)
