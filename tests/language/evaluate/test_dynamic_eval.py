"""Dynamic evaluation, compared with a loop over its equations."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax.language import (
  ModelConfig,
  dynamic_eval,
  language_model,
  make_batches,
)
from lstm_jax.language.dynamic_eval import (
  Divergence,
  DynamicEvalConfig,
  _scan_segments,
  dynamic_log_probs,
  dynamic_nats,
  gradient_scale,
)
from lstm_jax.language.evaluate import stateful_nats
from tests.draws import worst
from tests.language.evaluate.evaluated import CONFIG, MODEL, TOKENS, N, V


def test_dynamic_evaluation_at_rate_zero_is_stateful_evaluation(params, scale):
  config = CONFIG._replace(rate=0.0)
  dynamic = dynamic_nats(MODEL, params, TOKENS, scale, config)
  assert worst(dynamic, stateful_nats(MODEL, params, TOKENS)) < 1e-12


def test_dynamic_evaluation_equals_a_loop_over_its_equations(
  params, scale, monkeypatch
):
  theta, state, losses = params, MODEL.initial_state((1,)), []
  count = sum(leaf.size for leaf in scale.layers[0]) + sum(
    leaf.size for leaf in (scale.embedding, scale.readout, scale.bias)
  )
  mean = float(sum(leaf.sum() for leaf in jax.tree.leaves(scale))) / count

  @jax.jit
  @partial(jax.grad, has_aux=True)
  def gradients(theta, state, tokens):
    after, logits = MODEL.apply(theta, state, tokens[:-1])
    p = jax.nn.log_softmax(logits)
    nats = -jnp.take_along_axis(p, tokens[1:, :, None].astype(int), -1)
    return nats.mean(), (nats.ravel(), after)

  for k in range(0, N - 1, 4):  # segment 4 and rate 0.05, as in CONFIG
    gradient, (nats, state) = gradients(theta, state, TOKENS[k : k + 5, None])
    losses.append(np.asarray(nats))
    # The mean is r̄, 1e-3 is ε / r̄, and λ is 0.6.
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
  # With this λ, λ r / r̄ is below 1 for some weights and above 1 for others.
  config = CONFIG._replace(decay=0.6)
  # The 13 segments are then read in groups of 3, the last of them padded.
  monkeypatch.setattr("lstm_jax.language.dynamic_eval.CHUNK", 12)
  found = dynamic_nats(MODEL, params, TOKENS.tolist(), scale, config)
  assert worst(found, expected) < 1e-12


@pytest.mark.exhaustive
def test_segments_of_one_token_have_equal_losses_and_distributions(
  params, scale
):
  config = CONFIG._replace(segment=1)
  found = dynamic_log_probs(MODEL, params, TOKENS, scale, config)
  nats = dynamic_nats(MODEL, params, TOKENS, scale, config)
  assert worst(-found[np.arange(N - 1), TOKENS[1:]], nats) < 1e-12


@pytest.mark.parametrize("full", [False, True])
def test_segments_of_one_token_use_no_table(full):
  """The table W_e W_x; `full` asks for the distributions, too."""
  model = language_model(ModelConfig(hidden_size=8), 500)
  weights = jax.eval_shape(model.init, jax.random.key(0))
  carry = weights, model.initial_state((1,))

  def flops(segment):
    segments = jnp.zeros((3, segment + 1, 1), jnp.int32)
    # θ₀, r, (η, λ), (θ, state) and segments [n, S + 1, 1].
    arguments = weights, weights, (0.1, 0.1), carry, segments
    program = _scan_segments(model).lower(full, *arguments)
    return program.cost_analysis()["flops"]

  assert flops(1) < flops(2)


def test_many_logits_change_no_scale(params, scale, monkeypatch):
  # A batch of `scale` has 2 sequences of 5 tokens.
  monkeypatch.setattr(dynamic_eval, "MAX_LOGITS", 2 * 5 * V - 1)
  monkeypatch.setattr(dynamic_eval, "predict", None)  # it has all logits
  found = gradient_scale(MODEL, params, make_batches(TOKENS, 2, 5))
  assert worst(found, scale) < 1e-12


def test_a_segment_longer_than_a_chunk_is_read_by_itself(
  params, scale, monkeypatch
):
  expected = dynamic_nats(MODEL, params, TOKENS, scale, CONFIG)
  monkeypatch.setattr("lstm_jax.language.dynamic_eval.CHUNK", 3)  # segment 4
  found = dynamic_nats(MODEL, params, TOKENS, scale, CONFIG)
  assert worst(found, expected) < 1e-12


@pytest.mark.exhaustive
def test_small_steps_of_bfloat16_weights_are_not_lost(key):
  """Weights rounded after every segment would lose most of their changes.

  So only the copy that predicts a segment is rounded to bfloat16.
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


def test_a_loss_of_ten_thousand_nats_is_a_divergence(key):
  config = ModelConfig(embedding_size=2, hidden_size=3, dtype=jnp.float64)
  model = language_model(config, 2)
  zero = jax.tree.map(jnp.zeros_like, model.init(key))
  tokens, config = np.ones(5, np.int32), CONFIG._replace(rate=0.0)

  def nats(size):  # losses, when the other token's logit is larger by `size`
    params = zero._replace(bias=jnp.array([size, 0.0]))
    return dynamic_nats(model, params, tokens, zero, config).tolist()

  assert nats(9_999.0) == [9_999.0] * 4
  message = "^dynamic evaluation diverges at token 2 of 5: even at a rate of 0$"
  with pytest.raises(Divergence, match=message):
    nats(10_000.0)


@pytest.mark.exhaustive
@pytest.mark.parametrize("cuts", [None, (0, 2, 5, 10)])
def test_the_scale_is_the_root_of_the_mean_square_of_gradients(cuts, params):
  epoch = make_batches(TOKENS, 2, 5)
  if cuts:  # some batches are short, as by short_seq_prob of `BatchingConfig`
    epoch = epoch._replace(cuts=cuts)
  state, squares = MODEL.initial_state((2,)), []
  gradients = jax.jit(jax.grad(MODEL.loss, has_aux=True))
  for batch in epoch.batches():
    gradient, state = gradients(params, state, *batch)
    squares.append(jax.tree.map(lambda g: np.asarray(g) ** 2, gradient))
  found = gradient_scale(MODEL, params, epoch)
  expected = jax.tree.map(lambda *s: np.sqrt(np.mean(s, axis=0)), *squares)
  assert worst(found, expected) < 1e-12


@pytest.mark.exhaustive
def test_the_scale_of_many_batches_in_bfloat16_is_summed_in_float32():
  """In bfloat16 a sum of equal squares stops growing after 256 of them."""
  config = ModelConfig(embedding_size=3, hidden_size=5, dtype=jnp.bfloat16)
  model = language_model(config, V)
  params = model.init(jax.random.key(0))
  few, many = (np.tile(TOKENS[:9], n) for n in (40, 40 * 40))
  of_few, of_many = (
    gradient_scale(model, params, make_batches(tokens, 2, 4))
    for tokens in (few, many)
  )
  assert of_many.readout.dtype == jnp.float32
  ratio = jnp.linalg.norm(of_many.readout) / jnp.linalg.norm(of_few.readout)
  assert abs(float(ratio) - 1) < 0.05
  nats = dynamic_nats(model, params, few, of_many, CONFIG)
  assert np.isfinite(nats).all()


@pytest.mark.exhaustive
def test_a_model_whose_gradients_are_0_is_evaluated_dynamically(key):
  """With a vocabulary of one token, r and its mean are 0."""
  model = language_model(ModelConfig(hidden_size=3, embedding_size=2), 1)
  params, tokens = model.init(key), np.zeros(41, np.int32)
  r = gradient_scale(model, params, make_batches(tokens, 2, 5))
  assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(r))
  for rate in (0.0, 1e-3):
    config = DynamicEvalConfig(rate, 1e-3, 20)
    nats = dynamic_nats(model, params, tokens, r, config)
    assert nats.shape == (40,) and not nats.any()
