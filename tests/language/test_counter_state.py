"""A state with one number for all rows, in sampling, searching and training."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from lstm_jax import Autodiff, rnn
from lstm_jax.language import (
  ModelConfig,
  Regularizers,
  language_model,
  sample,
)
from lstm_jax.language.search import beam_search, continuation_nats
from lstm_jax.training import (
  init_state,
  make_mesh,
  place,
  state_shardings,
  zero_carry,
)
from tests.draws import worst

V, B, LENGTH = 4, 3, 5
PROMPT = np.array([1, 3, 2])


class Counted(NamedTuple):
  h: jax.Array
  steps: jax.Array  # [], one number for all rows


class Counter:
  """An RNN whose input fades from step to step."""

  init, project = staticmethod(rnn.init), staticmethod(rnn.project)

  def initial_state(self, params, batch_shape=()):
    h = rnn.initial_state(params, batch_shape).h
    return Counted(h, jnp.zeros((), h.dtype))

  def recur(self, params, state, ax):
    before = rnn.RNNState(state.h)
    after, *saved = rnn.recur(params, before, ax * 0.5**state.steps)
    return Counted(after.h, state.steps + 1), *saved

  def forward(self, params, state, x):
    return self.recur(params, state, self.project(params, x))[0], None

  def step(self, params, state, x):
    return self.forward(params, state, x)[0]


CELL = Counter()
CONFIG = ModelConfig(
  cell=CELL, embedding_size=3, hidden_size=5, dtype=jnp.float64
)
MODEL = language_model(CONFIG, V, adjoint=Autodiff())


def test_continuations_have_the_costs_of_whole_texts(key):
  params = MODEL.init(key)
  tokens = sample(MODEL, params, key, PROMPT, LENGTH, num_samples=B)
  texts = np.concatenate([np.tile(PROMPT, (B, 1)), tokens], axis=1).T
  _, logits = MODEL.apply(params, MODEL.initial_state((B,)), texts[:-1])
  log_p = jax.nn.log_softmax(logits)[len(PROMPT) - 1 :]
  drawn = texts[len(PROMPT) :, :, None]
  expected = -np.take_along_axis(log_p, drawn, -1).sum((0, 2))
  found = continuation_nats(MODEL, params, PROMPT, tokens)
  assert worst(found, expected) < 1e-12
  # V prefixes of one token are all there are: a beam of V drops none.
  found, nats = beam_search(MODEL, params, PROMPT, 2, beam_size=V)
  every = np.stack(np.divmod(np.arange(V * V), V), axis=1)
  costs = continuation_nats(MODEL, params, PROMPT, every)
  likeliest = np.argsort(costs)[:V]
  assert (found == every[likeliest]).all()
  assert worst(nats, costs[likeliest]) < 1e-12


def test_some_rows_of_it_cannot_be_reset(key):
  resets = Regularizers(state_reset=0.5)
  model = language_model(CONFIG, V, regularizers=resets, adjoint=Autodiff())
  tokens = jnp.zeros((2, B), int)
  message = r"^state_reset needs a state whose arrays have the batch axes \[3\]"
  with pytest.raises(ValueError, match=message):
    model.training_loss(
      model.init(key), model.initial_state((B,)), tokens, tokens, key
    )


def test_on_a_mesh_the_number_is_not_split(key):
  state = init_state(MODEL, optax.sgd(0.1), MODEL.init(key), B)
  shardings = state_shardings(make_mesh({"data": 1}), state)
  assert worst(place(state, shardings).carry, state.carry) == 0
  assert shardings.carry[0].steps.spec == PartitionSpec()


def test_a_zero_state_of_another_batch_has_the_number_still():
  found = zero_carry(MODEL.initial_state((B,)), B + 1)
  assert jax.tree.map(jnp.shape, found) == (Counted((B + 1, 5), ()),)
