from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax.language import (
  CharTokenizer,
  ModelConfig,
  WordTokenizer,
  dynamic_eval,
  evaluate,
  language_model,
  make_batches,
)
from lstm_jax.language.dynamic_eval import (
  Divergence,
  DynamicEvalConfig,
  dynamic_log_probs,
  dynamic_nats,
  gradient_scale,
)
from lstm_jax.language.evaluate import (
  batch_log_probs,
  cold_nats,
  nats_per_character,
  stateful_log_probs,
  stateful_nats,
)
from lstm_jax.language.spelling import spelling_nats
from tests.draws import normal_like, worst

V, N = 7, 53
MODEL = language_model(
  ModelConfig(embedding_size=3, hidden_size=5, dtype=jnp.float64), V
)
TOKENS = np.random.default_rng(0).integers(0, V, N).astype(np.int32)
CONFIG = DynamicEvalConfig(rate=0.05, decay=0.02, segment=4)


@pytest.fixture
def params(key):
  return normal_like(key, jax.eval_shape(MODEL.init, key))


@pytest.fixture
def scale(params):
  return gradient_scale(MODEL, params, make_batches(TOKENS, 2, 5))


def programs():
  """Return how many programs evaluation has compiled."""
  compiled = evaluate._nats, dynamic_eval._scan_segments
  return [function._cache_size() for function in compiled]


def protocols(params, scale):
  return {
    "cold": lambda tokens: cold_nats(MODEL, params, tokens, 8),
    "stateful": lambda tokens: stateful_nats(MODEL, params, tokens),
    "dynamic": lambda tokens: dynamic_nats(
      MODEL, params, tokens, scale, CONFIG
    ),
  }


@pytest.mark.everyday(1)
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


def test_distributions_sum_to_1_and_have_the_losses(params, scale):
  stateful = stateful_log_probs(MODEL, params, TOKENS)
  dynamic = dynamic_log_probs(MODEL, params, TOKENS, scale, CONFIG)
  for log_probs, nats in (
    (stateful, stateful_nats(MODEL, params, TOKENS)),
    (dynamic, dynamic_nats(MODEL, params, TOKENS, scale, CONFIG)),
  ):
    assert log_probs.shape == (N - 1, V)
    assert worst(np.exp(log_probs).sum(axis=1), np.ones(N - 1)) < 1e-12
    assert worst(-log_probs[np.arange(N - 1), TOKENS[1:]], nats) < 1e-12
  wild = CONFIG._replace(rate=1e300, decay=0.0)
  with pytest.raises(Divergence, match=rf"diverges at token \d+ of {N}: try"):
    dynamic_log_probs(MODEL, params, TOKENS, scale, wild)


def test_each_cold_window_is_a_sequence_by_itself(params):
  found = cold_nats(MODEL, params, TOKENS, 8)
  for k in range(0, N - 1, 8):
    window = TOKENS[k : k + 9]
    assert worst(found[k : k + 8], stateful_nats(MODEL, params, window)) < 1e-12
  whole = cold_nats(MODEL, params, TOKENS, N)
  assert worst(whole, stateful_nats(MODEL, params, TOKENS)) < 1e-12


def test_dynamic_evaluation_at_rate_zero_is_stateful_evaluation(params, scale):
  config = CONFIG._replace(rate=0.0)
  dynamic = dynamic_nats(MODEL, params, TOKENS, scale, config)
  assert worst(dynamic, stateful_nats(MODEL, params, TOKENS)) < 1e-12


def test_dynamic_evaluation_is_the_loop_of_its_equations(params, scale):
  theta, state, losses = params, MODEL.initial_state((1,)), []
  sizes = sum(leaf.size for leaf in scale.layers[0]) + sum(
    leaf.size for leaf in (scale.embedding, scale.readout, scale.bias)
  )
  mean = float(sum(leaf.sum() for leaf in jax.tree.leaves(scale))) / sizes

  @jax.jit
  @partial(jax.grad, has_aux=True)
  def gradients(theta, state, tokens):
    after, logits = MODEL.apply(theta, state, tokens[:-1])
    p = jax.nn.log_softmax(logits)
    nats = -jnp.take_along_axis(p, tokens[1:, :, None].astype(int), -1)
    return nats.mean(), (nats.ravel(), after)

  for k in range(0, N - 1, 4):
    gradient, (nats, state) = gradients(theta, state, TOKENS[k : k + 5, None])
    losses.append(np.asarray(nats))
    theta = jax.tree.map(
      lambda t, g, t0, r: (
        t
        - 0.05 * g / (r + 1e-3 * mean)
        + np.minimum(0.6 * r / mean, 1) * (t0 - t)
      ),
      theta,
      gradient,
      params,
      scale,
    )
  expected = np.concatenate(losses)
  config = CONFIG._replace(decay=0.6)  # λ r / r̄ is on both sides of 1
  found = dynamic_nats(MODEL, params, TOKENS.tolist(), scale, config)
  assert worst(found, expected) < 1e-10


@pytest.mark.exhaustive
def test_small_steps_of_bfloat16_weights_are_not_lost(key):
  """Rounded after every segment, nine in ten would change no weight.

  The weights that predict are rounded all the same.
  """
  config = ModelConfig(embedding_size=3, hidden_size=8)
  model = language_model(config, V)
  narrow = language_model(replace(config, dtype=jnp.bfloat16), V)
  params = narrow.init(key)
  wide = jax.tree.map(lambda x: x.astype(jnp.float32), params)
  scale = jax.tree.map(jnp.ones_like, wide)
  tokens = np.tile(np.arange(V), 60)
  options = DynamicEvalConfig(rate=2e-4, decay=0.0, segment=4)
  gains = []
  for m, p in ((narrow, params), (model, wide)):
    static = dynamic_nats(m, p, tokens, scale, options._replace(rate=0.0))
    gains.append((static - dynamic_nats(m, p, tokens, scale, options)).mean())
  found, expected = gains
  assert expected > 5e-4
  assert found > 0.4 * expected


def test_dynamic_evaluation_learns_a_text_that_repeats(params, scale):
  repeated = np.tile(TOKENS[:10], 40)
  config = DynamicEvalConfig(rate=0.02, decay=0.0, segment=10)
  nats = dynamic_nats(MODEL, params, repeated, scale, config)
  stateful = stateful_nats(MODEL, params, repeated)
  assert nats[-100:].mean() < 0.5 * stateful[-100:].mean()


@pytest.mark.exhaustive
def test_the_scale_is_the_root_of_the_mean_square_of_gradients(params):
  epoch = make_batches(TOKENS, 2, 5)
  state, squares = MODEL.initial_state((2,)), []
  gradients = jax.jit(jax.grad(MODEL.loss, has_aux=True))
  for batch in epoch.batches():
    gradient, state = gradients(params, state, *batch)
    squares.append(np.asarray(gradient.readout) ** 2)
  found = gradient_scale(MODEL, params, epoch).readout
  assert worst(found, np.sqrt(np.mean(squares, axis=0))) < 1e-12


@pytest.mark.exhaustive
def test_the_scale_of_many_batches_in_bfloat16_is_summed_in_float32():
  """In bfloat16 a sum of squares stops growing at 256 of them."""
  config = ModelConfig(embedding_size=3, hidden_size=5, dtype=jnp.bfloat16)
  model = language_model(config, V)
  params = model.init(jax.random.key(0))
  few, many = (np.tile(TOKENS[:9], n) for n in (8, 8 * 200))
  one, scale = (
    gradient_scale(model, params, make_batches(tokens, 2, 4))
    for tokens in (few, many)
  )
  assert scale.readout.dtype == jnp.float32
  ratio = jnp.linalg.norm(scale.readout) / jnp.linalg.norm(one.readout)
  assert abs(float(ratio) - 1) < 0.05
  nats = dynamic_nats(model, params, few, scale, CONFIG)
  assert np.isfinite(nats).all()


def test_cold_windows_in_smaller_batches_have_the_same_losses(
  params, monkeypatch
):
  expected = cold_nats(MODEL, params, TOKENS, 8)
  monkeypatch.setattr("lstm_jax.language.evaluate.MAX_LOGITS", 8 * V + 1)
  assert worst(cold_nats(MODEL, params, TOKENS, 8), expected) < 1e-12


@pytest.mark.exhaustive
def test_each_protocol_compiles_one_program_for_texts_of_any_length(
  params, scale, monkeypatch
):
  """The last chunk, window, segment and batch are filled up."""
  expected = {n: f(TOKENS) for n, f in protocols(params, scale).items()}
  monkeypatch.setattr(evaluate, "CHUNK", 12)
  jax.clear_caches()
  for name, protocol in protocols(params, scale).items():
    assert worst(protocol(TOKENS), expected[name]) < 1e-12
    before = (
      evaluate._nats._cache_size(),
      dynamic_eval._scan_segments._cache_size(),
    )
    shorter = protocol(TOKENS[:-3])
    assert worst(shorter, expected[name][:-3]) < 1e-12
    after = (
      evaluate._nats._cache_size(),
      dynamic_eval._scan_segments._cache_size(),
    )
    assert after == before
  # A cold window for the one, a chunk for the other.
  assert evaluate._nats._cache_size() == 2
  assert dynamic_eval._scan_segments._cache_size() == 1
  gradient_scale(MODEL, params, make_batches(TOKENS, 2, 5))
  assert dynamic_eval._add_squares._cache_size() == 1


def test_nats_per_character_include_the_spelling_of_unknown_words():
  text = "a rose is a rose"
  characters = CharTokenizer.from_text(text)
  assert nats_per_character(characters, text, 30.0) == 30 / 15
  known = WordTokenizer.from_text(text, 1)
  assert nats_per_character(known, text, 30.0) == 30 / 15
  fewer = WordTokenizer.from_text(text, 2)
  (spelt,) = spelling_nats(fewer.rare, ["is"])
  assert nats_per_character(fewer, text, 30.0) == (30 + spelt) / 15
  # The first token is not predicted, so it is not spelled out either.
  assert nats_per_character(fewer, "is a rose", 30.0) == 30 / 8
  twice = text + " is"  # the second "is" is cheaper to a cache
  costs = spelling_nats(fewer.rare, ["is", "is"], cached=True)
  assert nats_per_character(fewer, twice, 30.0) == (30 + 2 * spelt) / 18
  cached = nats_per_character(fewer, twice, 30.0, cached=True)
  assert cached == (30 + costs.sum()) / 18 < (30 + 1.8 * spelt) / 18
  with pytest.raises(ValueError, match="at least 2 characters, got 1"):
    nats_per_character(fewer, "a", 0.0)


def test_an_argument_out_of_range_is_named_in_the_error(params, scale):
  message = r"^a loss needs at least 2 tokens, \[N\], got "
  with pytest.raises(ValueError, match=message + "1$"):
    cold_nats(MODEL, params, TOKENS[:1])
  with pytest.raises(ValueError, match=message + r"\(2, 1\)$"):
    stateful_nats(MODEL, params, [[1], [2]])
  for tokens in ([0, 1, -1, 2], [0, len(params.bias)], [0.5, 1.0]):
    with pytest.raises(ValueError, match=r"^tokens must be integers in \[0, "):
      stateful_nats(MODEL, params, tokens)
    with pytest.raises(ValueError, match=r"^tokens must be integers in \[0, "):
      dynamic_nats(MODEL, params, np.array(tokens), scale, CONFIG)
  for window in (0, 2.5):
    with pytest.raises(
      ValueError, match=rf"^window must be an integer ≥ 1, got {window}$"
    ):
      cold_nats(MODEL, params, TOKENS, window)
  batches = make_batches(TOKENS + 1, 2, 5)  # some are V
  with pytest.raises(
    ValueError, match=r"^tokens must be integers in \[0, 7\), got int32 from 1 "
  ):
    next(batch_log_probs(MODEL, params, batches))
  for wrong in ({"rate": -1.0}, {"decay": 2.0}, {"segment": 0}):
    with pytest.raises(ValueError, match="segment must be ≥ 1, rate ≥ 0"):
      dynamic_nats(MODEL, params, TOKENS, scale, CONFIG._replace(**wrong))
  # After the first segment, which predicts the tokens 2 to 5.
  with pytest.raises(Divergence, match="at token 6 of 53: try a rate below 1e"):
    config = CONFIG._replace(rate=1e300)
    dynamic_nats(MODEL, params, TOKENS, scale, config)
  with pytest.raises(Divergence, match="at token 2 of 53: even at a rate of 0"):
    broken = params._replace(bias=params.bias * jnp.nan)
    dynamic_nats(MODEL, broken, TOKENS, scale, CONFIG._replace(rate=0.0))


@pytest.mark.exhaustive
def test_a_model_without_gradients_is_evaluated_dynamically(key):
  """Of a single symbol: r and its mean are 0."""
  model = language_model(ModelConfig(hidden_size=3, embedding_size=2), 1)
  params, tokens = model.init(key), np.zeros(41, np.int32)
  r = gradient_scale(model, params, make_batches(tokens, 2, 5))
  assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(r))
  for rate in (0.0, 1e-3):
    config = DynamicEvalConfig(rate, 1e-3, 20)
    nats = dynamic_nats(model, params, tokens, r, config)
    assert nats.shape == (40,) and not nats.any()
