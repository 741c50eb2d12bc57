"""Networks: acting step by step is the same as a sequence with resets."""

from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.policies.networks import CELLS, FEED_FORWARD, make_network
from lstm_jax import gru
from tests.draws import normal_like, normalisable, worst

T, B, D, H, ACTIONS = 9, 3, 4, 6, 5
EACH = pytest.mark.parametrize(
  "name",
  [
    "gru",
    FEED_FORWARD,
    *(
      pytest.param(name, marks=pytest.mark.exhaustive)
      for name in CELLS
      if name != "gru"
    ),
  ],
)
KEY = jax.random.key(0)


def draw(name):
  """Return (network, params, state, observations, starts) in float64."""
  network = make_network(name, D, H, ACTIONS)
  shapes = jax.eval_shape(network.init, KEY), network.initial_state(B)
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float64), shapes
  )
  params, state = normal_like(KEY, shapes)
  params = jax.tree.map(lambda w: w / 2, params)  # else relu_rnn grows to 100
  state = normalisable(state)
  observations = normal_like(KEY, jnp.zeros((T, B, D)))
  starts = np.zeros((T, B), bool)
  starts[4, 0] = starts[0, 1] = True  # and none in the last environment
  return network, params, state, observations, starts


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


def test_the_feed_forward_network_is_two_layers_and_the_heads():
  network, params, state, observations, starts = draw(FEED_FORWARD)
  found = network.step(params, state, observations[0], starts[0])
  x, params = np.array(observations[0]), jax.tree.map(np.array, params)
  for layer in (params.encoder, params.core):
    x = np.maximum(x @ layer.w + layer.b, 0)
  assert (x == 0).any() and (x > 0).any()
  logits, values = (x @ head.w + head.b for head in params[2:])
  assert worst(found, (state, logits, values[:, 0])) < 1e-12


def last_value(network, params, state, observations, starts):
  _, _, values = network.unroll(params, state, observations, starts)
  return values[-1].sum()


@EACH
def test_only_the_feed_forward_network_forgets_what_it_saw(name):
  network, *arguments = draw(name)
  gradient = jax.jit(jax.grad(partial(last_value, network), argnums=2))
  found = gradient(*arguments)
  earlier = np.abs(found[:-1]).max(axis=(0, 2))  # of each environment
  assert ((earlier[1:] > 0) == (name != FEED_FORWARD)).all()
  assert not np.abs(found[:4, 0]).any()  # across a start


@pytest.fixture(scope="module")
def drawn():
  return make_network("gru", D, H, ACTIONS).init(KEY)


def test_a_cell_whose_init_names_no_default_dtype_makes_a_network(
  drawn, monkeypatch
):
  own = SimpleNamespace(
    init=lambda key, d, h, dtype: gru.init(key, d, h, dtype),
    initial_state=gru.initial_state,
  )
  monkeypatch.setitem(CELLS, "own", own)
  network = make_network("own", D, H, ACTIONS)
  assert worst(network.init(KEY), drawn) == 0
  assert network.initial_state(B).h.shape == (B, H)


def test_an_initial_state_may_be_computed_from_the_weights(monkeypatch):
  def init(key, input_size, hidden_size, dtype):
    assert input_size == hidden_size == H  # as a cell may need it
    return gru.init(key, input_size, hidden_size, dtype)

  def initial_state(params, batch_shape=()):
    zeros = 0 * params.w_h[:, 0]
    return gru.GRUState(jnp.broadcast_to(zeros, (*batch_shape, H)))

  own = SimpleNamespace(init=init, initial_state=initial_state)
  monkeypatch.setitem(CELLS, "own", own)
  state = make_network("own", D, H, ACTIONS).initial_state(B)
  assert state.h.shape == (B, H) and not state.h.any()


@pytest.mark.exhaustive
def test_a_network_takes_a_cell_by_the_name_of_its_module(drawn):
  network = make_network("lstm_jax.cells.gru", D, H, ACTIONS)
  assert worst(network.init(KEY), drawn) == 0


def test_initial_layers_are_orthogonal_and_the_actor_nearly_0(drawn):
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
