"""Networks: acting is the same as a sequence with resets, and as Flax."""

from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.policies.environments import tmaze
from experiments.policies.networks import FEED_FORWARD, make_network
from experiments.policies.peer import check_equal, racers, to_flax
from experiments.policies.ppo import PPOConfig
from experiments.policies.training import PolicyConfig
from experiments.trainer.config import CELLS
from lstm_jax import gru
from tests.draws import normal_like, normalisable, weighed, worst

T, B, D, H, ACTIONS = 9, 3, 4, 6, 5
NAMES = ["gru", FEED_FORWARD, *(name for name in CELLS if name != "gru")]
EACH = pytest.mark.parametrize(
  "name",
  [
    *NAMES[:2],
    *(pytest.param(n, marks=pytest.mark.exhaustive) for n in NAMES[2:]),
  ],
)
KEY = jax.random.key(0)
MAZE = tmaze(2)


def draw(name):
  """Return (network, params, state, observations, starts) in float64."""
  network = make_network(name, D, H, ACTIONS)
  shapes = jax.eval_shape(network.init, KEY), network.initial_state(B)
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float64), shapes
  )
  params, state = normal_like(KEY, shapes)
  params = jax.tree.map(lambda w: w / 2, params)  # else relu_rnn grows to 100
  observations = normal_like(KEY, jnp.zeros((T, B, D)))
  starts = np.zeros((T, B), bool)
  starts[4, 0] = starts[0, 1] = True  # and none in the last environment
  return network, params, normalisable(state), observations, starts


@EACH
def test_acting_step_by_step_is_the_same_as_a_sequence(name):
  network, *arguments = draw(name)

  @jax.jit
  def both(params, state, *inputs):
    def body(state, inputs):
      state, *outputs = network.step(params, state, *inputs)
      return state, outputs

    last, outputs = jax.lax.scan(body, state, inputs)
    return (last, *outputs), network.unroll(params, state, *inputs)

  assert worst(*both(*arguments)) < 1e-12


@EACH
def test_a_sequence_with_resets_is_an_unroll_of_each_episode(name):
  network, params, state, observations, starts = draw(name)
  zero = jax.tree.map(jnp.float64, network.initial_state(1))

  @jax.jit
  def both(params, state, observations):
    found = network.unroll(params, state, observations, starts)[1:]
    pairs = []
    for b in range(B):
      column = slice(b, b + 1)
      own = jax.tree.map(lambda s: s[column], state)  # noqa: B023
      cuts = sorted({0, *np.flatnonzero(starts[:, b]), T})
      for first, end in pairwise(cuts):
        part, never = (slice(first, end), column), jnp.zeros((end - first, 1))
        before = zero if starts[first, b] else own
        _, *alone = network.unroll(
          params, before, observations[part], never.astype(bool)
        )
        pairs.append(([x[part] for x in found], alone))
    return pairs

  pairs = both(params, state, observations)
  # Two parts of environment 0; one of environment 1, which starts at time step
  # 0; one of environment 2, which has no start.
  assert len(pairs) == 4
  for together, alone in pairs:
    assert worst(together, alone) < 1e-12


@EACH
def test_only_the_feed_forward_network_forgets_what_it_saw(name):
  network, *arguments = draw(name)

  def last_value(*arguments):
    return network.unroll(*arguments)[2][-1].sum()

  found = jax.jit(jax.grad(last_value, argnums=2))(*arguments)
  earlier = np.abs(found[:-1]).max(axis=(0, 2))  # of each environment
  assert ((earlier[1:] > 0) == (name != FEED_FORWARD)).all()
  assert not np.abs(found[:4, 0]).any()  # across a start


def test_the_feed_forward_network_is_two_layers_and_the_heads():
  network, params, state, observations, starts = draw(FEED_FORWARD)
  found = network.step(params, state, observations[0], starts[0])
  x, params = np.array(observations[0]), jax.tree.map(np.array, params)
  for layer in (params.encoder, params.core):
    x = np.maximum(x @ layer.w + layer.b, 0)
  assert (x == 0).any() and (x > 0).any()
  logits, values = (x @ head.w + head.b for head in params[2:])
  assert worst(found, (state, logits, values[:, 0])) < 1e-12


def test_a_cell_of_your_own_makes_a_network(monkeypatch):
  def init(key, input_size, hidden_size, dtype):
    assert input_size == hidden_size == H  # as a cell may need it
    return gru.init(key, input_size, hidden_size, dtype)

  def initial_state(params, batch_shape=()):  # computed from the weights
    zeros = 0 * params.w_h[:, 0]
    return gru.GRUState(jnp.broadcast_to(zeros, (*batch_shape, H)))

  own = SimpleNamespace(init=init, initial_state=initial_state)
  monkeypatch.setitem(CELLS, "own", own)
  network, usual = (make_network(n, D, H, ACTIONS) for n in ("own", "gru"))
  assert worst(network.init(KEY), usual.init(KEY)) == 0
  assert worst(network.initial_state(B), usual.initial_state(B)) == 0
  named = make_network("lstm_jax.cells.gru", D, H, ACTIONS)
  assert worst(named.init(KEY), usual.init(KEY)) == 0


def test_initial_layers_are_orthogonal_and_the_actor_nearly_0():
  drawn = make_network("gru", D, H, ACTIONS).init(KEY)
  feed_forward = make_network(FEED_FORWARD, D, H, ACTIONS).init(KEY)
  for layer, scale in (
    (feed_forward.core, 2**0.5),
    (drawn.encoder, 2**0.5),
    (drawn.actor, 0.01),
    (drawn.critic, 1),
  ):
    values = np.linalg.svd(layer.w, compute_uv=False)
    assert np.allclose(values, scale, rtol=1e-5) and not layer.b.any()


def test_an_observation_may_be_a_vector_of_integers():
  network = make_network(FEED_FORWARD, D, H, ACTIONS)
  params, starts = network.init(KEY), jnp.zeros(B, bool)
  integers = jnp.arange(B * D).reshape(B, D) % 3
  expected = network.step(params, (), integers.astype(jnp.float32), starts)
  for dtype in (jnp.int32, jnp.uint8):
    found = network.step(params, (), integers.astype(dtype), starts)
    assert worst(found, expected) == 0


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_flax_computes_the_same_outputs_and_gradients_in_float64(name):
  ours, *others = racers(name, MAZE, H).values()
  shapes = jax.eval_shape(ours.init, KEY)
  params = normal_like(KEY, jax.tree.map(lambda x: jnp.zeros(x.shape), shapes))
  observations = normal_like(KEY, jnp.zeros((T, B, MAZE.observation_size)))
  starts = np.zeros((T, B), bool)
  starts[4, 0] = starts[0, 1] = True

  def results(network, params):
    state = jax.tree.map(jnp.float64, network.initial_state(B))

    def outputs(params):
      _, *heads = network.unroll(params, state, observations, starts)
      after, *_ = network.step(params, state, observations[0], starts[0])
      _, *acted = network.step(params, after, observations[1], starts[1])
      return heads, acted

    gradient = jax.grad(weighed(outputs, KEY))
    with jax.numpy_rank_promotion("allow"):  # for the biases of Flax
      return jax.jit(lambda p: [outputs(p), gradient(p)])(params)

  outputs, gradient = results(ours, params)
  expected = [outputs, to_flax(name, gradient)]
  assert len(others) == 2
  for network in others:
    assert worst(results(network, to_flax(name, params)), expected) < 1e-12


@pytest.mark.exhaustive
@pytest.mark.parametrize("label", ["scanned", "flax"])
def test_a_network_that_computes_something_else_is_not_timed(label):
  ppo = PPOConfig(num_envs=B, rollout_steps=T, num_minibatches=1)
  found = racers("gru", MAZE, H)
  right = found[label]

  def wrong(*given):
    state, logits, values = right.unroll(*given)
    return state, 1.01 * logits, values

  check = partial(check_equal, "gru")
  rest = MAZE, PolicyConfig(hidden_size=H, ppo=ppo), KEY
  with jax.numpy_rank_promotion("allow"):
    check(found, *rest)
    found[label] = right._replace(unroll=wrong)
    with pytest.raises(ValueError, match=f"^{label} computes a different"):
      check(found, *rest)
