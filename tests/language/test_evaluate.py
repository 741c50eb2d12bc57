import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax.language import (
  ModelConfig,
  characters,
  language_model,
  make_batches,
  words,
)
from lstm_jax.language.evaluate import (
  Divergence,
  DynamicEvalConfig,
  cold_nats,
  dynamic_nats,
  gradient_scale,
  nats_per_character,
  stateful_nats,
)
from lstm_jax.language.spelling import spelling_nats
from tests.draws import normal_like, worst

V, N = 7, 53
CONFIG = ModelConfig(V, embedding_size=3, hidden_size=5, dtype=jnp.float64)
MODEL = language_model(CONFIG)
TOKENS = np.random.default_rng(0).integers(0, V, N).astype(np.int32)
HOW = DynamicEvalConfig(rate=0.05, decay=0.02, segment=4)


@pytest.fixture
def params(key):
  return normal_like(key, jax.eval_shape(MODEL.init, key))


@pytest.fixture
def scale(params):
  return gradient_scale(MODEL, params, make_batches(TOKENS, 2, 5))


def protocols(params, scale):
  return {
    "cold": lambda tokens: cold_nats(MODEL, params, tokens, 8),
    "stateful": lambda tokens: stateful_nats(MODEL, params, tokens),
    "dynamic": lambda tokens: dynamic_nats(MODEL, params, tokens, scale, HOW),
  }


@pytest.mark.parametrize("name", ["cold", "stateful", "dynamic"])
def test_a_later_token_changes_no_earlier_loss(name, params, scale):
  protocol = protocols(params, scale)[name]
  before = protocol(TOKENS)
  assert before.shape == (N - 1,)
  for position in (1, 20, N - 1):
    changed = TOKENS.copy()
    changed[position] = (changed[position] + 1) % V
    after = protocol(changed)
    # The token at a position is prediction position − 1.
    assert (after[: position - 1] == before[: position - 1]).all()
    assert after[position - 1] != before[position - 1]


def test_windows_are_sequences_of_their_own(params):
  found = cold_nats(MODEL, params, TOKENS, 8)
  for k in range(0, N - 1, 8):
    window = TOKENS[k : k + 9]
    assert worst(found[k : k + 8], stateful_nats(MODEL, params, window)) < 1e-12
  whole = cold_nats(MODEL, params, TOKENS, N)
  assert worst(whole, stateful_nats(MODEL, params, TOKENS)) < 1e-12


def test_a_rate_of_zero_is_no_learning(params, scale):
  still = dynamic_nats(MODEL, params, TOKENS, scale, HOW._replace(rate=0.0))
  assert worst(still, stateful_nats(MODEL, params, TOKENS)) < 1e-12


def test_dynamic_evaluation_is_the_loop_of_its_equations(params, scale):
  theta, state, found = params, MODEL.initial_state((1,)), []
  sizes = sum(leaf.size for leaf in scale.layers[0]) + sum(
    leaf.size for leaf in (scale.embedding, scale.readout, scale.bias)
  )
  mean = float(sum(leaf.sum() for leaf in jax.tree.leaves(scale))) / sizes
  for k in range(0, N - 1, 4):
    tokens = TOKENS[k : k + 5, None]

    def loss(theta, state=state, tokens=tokens):
      after, logits = MODEL.apply(theta, state, tokens[:-1])
      p = jax.nn.log_softmax(logits)
      nats = -jnp.take_along_axis(p, tokens[1:, :, None].astype(int), -1)
      return nats.mean(), (nats.ravel(), after)

    gradient, (nats, state) = jax.grad(loss, has_aux=True)(theta)
    found.append(np.asarray(nats))
    theta = jax.tree.map(
      lambda t, g, t0, r: (
        t
        - 0.05 * g / (r + 1e-3 * mean)
        + 0.02 * (t0 - t) * np.minimum(r / mean, 50)
      ),
      theta,
      gradient,
      params,
      scale,
    )
  expected = np.concatenate(found)
  found = dynamic_nats(MODEL, params, TOKENS, scale, HOW)
  assert worst(found, expected) < 1e-10


def test_dynamic_evaluation_learns_what_repeats(params, scale):
  repeated = np.tile(TOKENS[:10], 40)
  how = DynamicEvalConfig(rate=0.02, decay=0.0, segment=10)
  nats = dynamic_nats(MODEL, params, repeated, scale, how)
  still = stateful_nats(MODEL, params, repeated)
  assert nats[-100:].mean() < 0.5 * still[-100:].mean()


def test_the_scale_is_the_root_of_the_mean_square_of_gradients(params):
  streams = make_batches(TOKENS, 2, 5)
  state, squares = MODEL.initial_state((2,)), []
  for block in streams.batches():
    gradient, state = jax.grad(MODEL.loss, has_aux=True)(params, state, *block)
    squares.append(np.asarray(gradient.readout) ** 2)
  found = gradient_scale(MODEL, params, streams).readout
  assert worst(found, np.sqrt(np.mean(squares, axis=0))) < 1e-12


def test_few_logits_are_there_at_once(params, monkeypatch):
  expected = cold_nats(MODEL, params, TOKENS, 8)
  monkeypatch.setattr("lstm_jax.language.evaluate.LOGITS", 8 * V + 1)
  assert worst(cold_nats(MODEL, params, TOKENS, 8), expected) < 1e-12


def test_a_character_pays_for_its_share_of_words_and_of_their_spelling():
  text = "a rose is a rose"
  assert nats_per_character(characters(text), text, 30.0) == 30 / 15
  known = words(text, 1)
  assert nats_per_character(known, text, 30.0) == 30 / 15
  fewer = words(text, 2)
  (spelt,) = spelling_nats(fewer.rare, ["is"])
  assert nats_per_character(fewer, text, 30.0) == (30 + spelt) / 15
  assert nats_per_character(fewer, "is a rose", 30.0) == 30 / 8  # is given
  with pytest.raises(ValueError, match="at least 2 characters, got 1"):
    nats_per_character(fewer, "a", 0.0)


def test_what_is_out_of_range_is_named(params, scale):
  with pytest.raises(ValueError, match="at least 2 tokens, got 1"):
    cold_nats(MODEL, params, TOKENS[:1])
  with pytest.raises(ValueError, match="at least 1 token, got 0"):
    cold_nats(MODEL, params, TOKENS, 0)
  for wrong in ({"rate": -1.0}, {"decay": 2.0}, {"segment": 0}):
    with pytest.raises(ValueError, match="a segment must be ≥ 1, the rate ≥ 0"):
      dynamic_nats(MODEL, params, TOKENS, scale, HOW._replace(**wrong))
  with pytest.raises(Divergence, match=r"diverges at token \d+ of 53: a rate"):
    how = HOW._replace(rate=1e300)
    dynamic_nats(MODEL, params, TOKENS, scale, how)
