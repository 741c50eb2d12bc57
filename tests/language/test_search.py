"""Best-of-N and beam search, compared with a search of all continuations."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax.language import (
  ModelConfig,
  evaluate,
  language_model,
  sample,
  search,
)
from lstm_jax.language.sampling import filled
from lstm_jax.language.search import beam_search, continuation_nats, sample_best

V, LENGTH = 4, 4
MODEL = language_model(
  ModelConfig(embedding_size=3, hidden_size=5, num_layers=2, dtype=jnp.float64),
  V,
)
PROMPT = np.array([1, 3, 2])
EVERY = np.array([*itertools.product(range(V), repeat=LENGTH)], np.int32)


@pytest.fixture
def params(key):
  """Return weights three times as large, for less even probabilities."""
  return jax.tree.map(lambda leaf: 3 * leaf, MODEL.init(key))


@pytest.fixture
def every_nats(params):
  """Return −log p of every continuation, each read as a whole text, [Vⁿ]."""
  texts = np.concatenate([np.tile(PROMPT, (len(EVERY), 1)), EVERY], axis=1).T
  state = MODEL.initial_state((len(EVERY),))
  _, logits = MODEL.apply(params, state, texts[:-1])
  log_p = jax.nn.log_softmax(logits)[len(PROMPT) - 1 :]
  return -np.take_along_axis(log_p, EVERY.T[..., None], -1).sum((0, 2))


@pytest.mark.exhaustive
def test_the_costs_of_all_continuations_are_those_of_whole_texts(
  params, every_nats
):
  found = continuation_nats(MODEL, params, PROMPT, EVERY)
  assert np.abs(found - every_nats).max() < 1e-12
  assert abs(np.exp(-found).sum() - 1) < 1e-12


def test_a_beam_of_all_prefixes_equals_exhaustive_search(params, every_nats):
  size = V ** (LENGTH - 1)
  tokens, nats = beam_search(MODEL, params, PROMPT, LENGTH, beam_size=size)
  order = np.argsort(every_nats)
  assert (tokens[0] == EVERY[order[0]]).all()
  # The last step keeps N of the N·V continuations: the likeliest of all.
  assert (tokens == EVERY[order[:size]]).all()
  assert np.abs(nats - every_nats[order[:size]]).max() < 1e-12


def test_a_beam_larger_than_all_continuations_has_each_once(params, every_nats):
  size = len(EVERY) + 3
  tokens, nats = beam_search(MODEL, params, PROMPT, LENGTH, beam_size=size)
  assert (tokens[: len(EVERY)] == EVERY[np.argsort(every_nats)]).all()
  assert np.isfinite(nats[: len(EVERY)]).all() and np.isinf(nats[-3:]).all()


def test_a_beam_of_one_is_greedy(params, key):
  tokens, _ = beam_search(MODEL, params, PROMPT, 20, beam_size=1)
  assert (
    tokens == sample(MODEL, params, key, PROMPT, 20, temperature=0.0)
  ).all()


def test_no_continuation_of_a_beam_has_a_suppressed_token(params, every_nats):
  tokens, nats = beam_search(
    MODEL, params, PROMPT, LENGTH, beam_size=V**LENGTH, suppress_tokens=(0, 2)
  )
  allowed = np.flatnonzero(~np.isin(EVERY, (0, 2)).any(axis=1))
  order = allowed[np.argsort(every_nats[allowed])]
  assert (tokens[: len(order)] == EVERY[order]).all()
  assert np.abs(nats[: len(order)] - every_nats[order]).max() < 1e-12
  assert np.isinf(nats[len(order) :]).all()


def test_the_best_of_n_is_the_likeliest_of_the_samples(params, key):
  rules = {"temperature": 1.5, "min_p": 0.05, "suppress_tokens": (0,)}
  samples = sample(MODEL, params, key, PROMPT, 9, num_samples=6, **rules)
  costs = continuation_nats(MODEL, params, PROMPT, samples)
  assert len(set(costs.round(6))) > 1
  found, nats = sample_best(MODEL, params, key, PROMPT, 9, best_of=6, **rules)
  assert (found == samples[costs.argmin()]).all()
  assert abs(nats - costs.min()) < 1e-12


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"prompt": np.array([], int)}, r"prompt must be \[P\] with P ≥ 1, got"),
    ({"length": 0}, "length must be an integer ≥ 1, got 0$"),
    ({"length": 2.5}, "length must be an integer ≥ 1, got 2.5$"),
    ({"beam_size": 0}, "beam_size must be an integer ≥ 1, got 0$"),
    ({"beam_size": 2**29}, "beam_size times the 4 tokens .*, got 536,870,912$"),
    ({"suppress_tokens": [1.5]}, r"must be integers, got \[1.5\]$"),
    ({"suppress_tokens": tuple(range(V))}, "leave at least one of 4 tokens"),
  ],
)
def test_options_of_a_search_out_of_range_are_refused(options, message, params):
  arguments = {"prompt": PROMPT, "length": 5, "beam_size": 2} | options
  with pytest.raises(ValueError, match=message):
    beam_search(MODEL, params, **arguments)


@pytest.mark.parametrize("shape", [(2,), (0, 3), (3, 0)])
def test_continuations_of_another_shape_are_refused(shape, params):
  tokens = np.zeros(shape, int)
  message = (
    rf"^tokens must be \[N, n\], N and n ≥ 1, got {re.escape(str(shape))}$"
  )
  with pytest.raises(ValueError, match=message):
    continuation_nats(MODEL, params, PROMPT, tokens)


@pytest.mark.parametrize("tokens", [[[5, 1]], [[-1, 0]], [1, 2], [[1.0]]])
def test_continuations_that_are_no_tokens_are_refused(tokens, params):
  with pytest.raises(ValueError, match=r"^tokens must be .*, got "):
    continuation_nats(MODEL, params, PROMPT, np.array(tokens))


def test_the_best_of_no_samples_is_refused(params, key):
  with pytest.raises(
    ValueError, match=r"^best_of must be an integer ≥ 1, got 0$"
  ):
    sample_best(MODEL, params, key, PROMPT, 3, best_of=0)


def test_suppressed_tokens_may_be_a_list_or_an_array(params):
  found = [
    beam_search(MODEL, params, PROMPT, 3, beam_size=3, suppress_tokens=each)
    for each in ((1,), [1], np.array([1]))
  ]
  for tokens, nats in found[1:]:
    assert (tokens == found[0][0]).all() and (nats == found[0][1]).all()
  assert not (found[0][0] == 1).any()


@pytest.mark.exhaustive
def test_the_costs_of_a_long_beam_are_not_rounded():
  """A float32 sum would be rounded 2,000 times, in the end by up to 1e-4."""
  model = language_model(ModelConfig(embedding_size=3, hidden_size=5), 9)
  params = model.init(jax.random.key(0))
  tokens, nats = beam_search(model, params, PROMPT, 2000, beam_size=3)
  state = model.initial_state((3,))
  texts = np.concatenate([np.tile(PROMPT, (3, 1)), tokens], axis=1).T
  _, logits = model.apply(params, state, texts[:-1])
  log_p = np.asarray(jax.nn.log_softmax(logits), float)[len(PROMPT) - 1 :]
  exact = -np.take_along_axis(log_p, tokens.T[..., None], -1).sum((0, 2))
  assert exact.min() > 3000
  found = continuation_nats(model, params, PROMPT, tokens)
  for sums in (nats, found):
    assert sums.dtype == np.float64
    assert np.abs(sums - exact).max() < 2e-3


def test_the_costs_of_many_tokens_have_one_readout(key):
  params = jax.eval_shape(MODEL.init, key)
  prompt, tokens = filled(PROMPT), jax.ShapeDtypeStruct((8, 2), jnp.int32)
  program = search._continuation_nats(MODEL).lower(params, prompt, tokens)
  # Of 8 tokens of 2 texts; reading the prompt gives the logits of the first.
  assert f"tensor<7x2x{V}x" in program.as_text()


def test_costs_do_not_depend_on_the_chunks_of_time(params, monkeypatch):
  tokens = np.arange(16).reshape(2, 8) % V
  whole = continuation_nats(MODEL, params, PROMPT, tokens)
  monkeypatch.setattr(evaluate, "MAX_LOGITS", 3 * 2 * V)  # 3, 3 and 1 tokens
  search._continuation_nats(MODEL).clear_cache()
  parts = continuation_nats(MODEL, params, PROMPT, tokens)
  search._continuation_nats(MODEL).clear_cache()
  assert np.allclose(whole, parts, rtol=1e-12)
