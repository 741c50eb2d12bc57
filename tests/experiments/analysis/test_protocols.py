"""Ensembles and mixtures: what is averaged, and that none reads ahead."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.analysis import dynamic_eval, mixing
from experiments.analysis.mixing import mixed_nats
from experiments.analysis.protocols import (
  PROTOCOLS,
  Member,
  Settings,
  Texts,
  outcomes,
)
from lstm_jax.language import ModelConfig, language_model, make_batches, ngram
from lstm_jax.language.dynamic_eval import (
  DynamicEvalConfig,
  dynamic_log_probs,
  gradient_scale,
)
from lstm_jax.language.evaluate import (
  cold_nats,
  stateful_log_probs,
  stateful_nats,
)
from lstm_jax.language.ngram import ngram_predictions
from tests.draws import normal_like, worst

V, N = 7, 53
RNG = np.random.default_rng(0)
TOKENS, BEFORE, TRAINING = (
  RNG.integers(0, V, n).astype(np.int32) for n in (N, 140, 90)
)
CONFIG = DynamicEvalConfig(rate=0.05, decay=0.02, segment=4)
SETTINGS = Settings(window=8, fixed=dynamic_eval.FixedSettings(*CONFIG))


@pytest.fixture
def members(key):
  config = ModelConfig(embedding_size=3, hidden_size=5, dtype=jnp.float64)
  model = language_model(config, V)
  like = jax.eval_shape(model.init, key)
  return [Member(model, normal_like(k, like)) for k in jax.random.split(key)]


def read(members, names, training=()):
  return dict(
    outcomes(members, Texts(TOKENS, BEFORE, [*training]), SETTINGS, names)
  )


def losses(members, tokens=TOKENS, names=PROTOCOLS):
  texts = Texts(tokens, BEFORE, [TRAINING])
  found = outcomes(members, texts, SETTINGS, names)
  return {name: outcome.nats for name, outcome in found}


@pytest.mark.exhaustive
def test_the_probability_of_an_ensemble_is_the_mean_of_its_members(members):
  found, places = losses(members), (np.arange(N - 1), TOKENS[1:])
  epoch = make_batches(BEFORE, 32, 4)  # SCALE_BATCH and CONFIG.segment
  dynamic = np.mean(
    [
      np.exp(dynamic_log_probs(*m, TOKENS, gradient_scale(*m, epoch), CONFIG))
      for m in members
    ],
    axis=0,
  )
  stateful = np.mean(
    [np.exp(stateful_log_probs(*m, TOKENS)) for m in members], axis=0
  )
  cold = np.mean([np.exp(-cold_nats(*m, TOKENS, 8)) for m in members], axis=0)
  trained, read = (ngram_predictions(TOKENS, t, V) for t in ([TRAINING], []))
  ngrams = trained.log_probs, read.log_probs

  def mixed(probs):
    experts = np.log(probs), *ngrams
    return mixed_nats(experts, trained.longest, TOKENS[1:])

  for name, expected in (
    ("cold", -np.log(cold)),
    ("stateful", -np.log(stateful[places])),
    ("dynamic", -np.log(dynamic[places])),
    ("mixed", mixed(dynamic)),
    ("mixed_stateful", mixed(stateful)),
  ):
    assert worst(found[name], expected) < 1e-12, name


@pytest.mark.exhaustive
def test_a_loss_does_not_depend_on_which_other_protocols_are_named(members):
  alone = losses(members, names=("stateful", "dynamic"))
  found = losses(members)
  for name, nats in alone.items():
    assert worst(found[name], nats) < 1e-12
  (single,) = losses(members[:1], names=("stateful",)).values()
  assert (single == stateful_nats(*members[0], TOKENS)).all()


def test_a_later_token_changes_no_earlier_loss(members):
  before = losses(members)
  for position in (1, 20, N - 1):
    changed = TOKENS.copy()
    changed[position] = (changed[position] + 1) % V
    for name, nats in losses(members, changed).items():
      # The token at a position is the target of prediction position − 1.
      earlier = slice(0, position - 1)
      assert (nats[earlier] == before[name][earlier]).all(), name
      assert nats[position - 1] != before[name][position - 1], name


def test_a_mixture_records_the_settings_of_its_dynamic_evaluation(members):
  alone = read(members, ["mixed"])["mixed"]
  settings = [CONFIG._asdict()] * len(members)
  assert alone.record["mixed_dynamic"] == settings
  # A "dynamic" entry would replace that of an earlier evaluation by dynamic.
  assert "dynamic" not in alone.record
  assert [choice.config for choice in alone.choices] == [CONFIG] * len(members)
  both = read(members, ["dynamic", "mixed"])["mixed"]
  assert both.record == alone.record and both.choices == []  # dynamic has them
  stateful = read(members, ["mixed_stateful"])["mixed_stateful"]
  assert "mixed_dynamic" not in stateful.record
  for base, mixed in (("dynamic", alone), ("stateful", stateful)):
    assert mixed.title == f"mixed, {base} and n-grams"
    assert mixed.record["mixed"] == {
      "order": ngram.ORDER,
      "discount": ngram.DISCOUNT,
      "rate": mixing.RATE,
      "weights": [*mixing.WEIGHTS],
    }


def test_an_outcome_says_its_settings(members):
  record = CONFIG._asdict()
  for count, title, settings in (
    (1, "dynamic, rate 0.05, decay 0.02", record),
    (2, "dynamic, settings of each member", [record, record]),
  ):
    found = read(members[:count], ("dynamic", "cold"))
    assert [*found] == ["cold", "dynamic"]
    cold, dynamic = found.values()
    assert (cold.title, cold.record) == ("cold windows of 8", {"window": 8})
    assert (dynamic.title, dynamic.record) == (title, {"dynamic": settings})
