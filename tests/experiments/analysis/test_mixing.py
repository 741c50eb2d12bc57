"""The mixture against a loop over its equations."""

import numpy as np
import pytest

from experiments.analysis import mixing
from experiments.analysis.mixing import check_mixable, mixed_nats
from lstm_jax.language import CharTokenizer, WordTokenizer
from tests.draws import worst

N, V = 40, 5
RNG = np.random.default_rng(0)
TARGETS = RNG.integers(0, V, N - 1).astype(np.int32)


def draw():
  logits = RNG.normal(size=(N - 1, V))
  return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


EXPERTS = [draw() for _ in range(3)]
# The length of the longest context that was seen before, at each place.
LONGEST = RNG.integers(0, 4, N - 1)


@pytest.fixture(autouse=True)
def larger_rate(monkeypatch):
  """Let the weights of the mixture change much within the N tokens."""
  monkeypatch.setattr(mixing, "RATE", 0.1)


def test_the_mixture_equals_a_loop_over_its_equations():
  alpha, beta = np.array(mixing.WEIGHTS), {k: np.zeros(3) for k in range(4)}
  expected = []
  for t, y in enumerate(TARGETS):
    own = beta[LONGEST[t]]
    logs = [expert[t] for expert in EXPERTS]
    p = np.exp(sum((alpha[e] + own[e]) * logs[e] for e in range(3)))
    p /= p.sum()
    expected.append(-np.log(p[y]))
    for e in range(3):
      step = 0.1 * ((p * logs[e]).sum() - logs[e][y])
      alpha[e] -= step
      own[e] -= step
  found = mixed_nats(EXPERTS, LONGEST, TARGETS)
  assert worst(found, np.array(expected)) < 1e-12


def test_the_weights_learn_which_model_is_right():
  right = np.full((N - 1, V), np.log(0.1))
  right[np.arange(N - 1), TARGETS] = np.log(0.6)
  others = np.full((N - 1, V), np.log(1 / V))
  for place in range(3):
    experts = [right if e == place else others for e in range(3)]
    nats = mixed_nats(experts, LONGEST * 0, TARGETS)
    assert nats[-1] < 0.5 * nats[0]


def test_models_of_different_vocabularies_are_refused():
  experts = EXPERTS[0][:, :-1], *EXPERTS[1:]
  with pytest.raises(ValueError, match=r"same vocabulary, got .*\(39, 4\), \("):
    mixed_nats(experts, LONGEST, TARGETS)


def test_too_long_a_text_and_a_model_of_words_are_refused(monkeypatch):
  tokenizer = CharTokenizer.from_text("abc")
  # 100 characters, each with the probabilities of a, b and c.
  monkeypatch.setattr(mixing, "MAX_PROBABILITIES", 300)
  check_mixable(tokenizer, 100)
  monkeypatch.setattr(mixing, "MAX_PROBABILITIES", 299)
  with pytest.raises(
    ValueError, match=r"most 299: got 100 characters of 3 dist"
  ):
    check_mixable(tokenizer, 100)
  with pytest.raises(ValueError, match=r"got a model of words: --protocol=dyn"):
    check_mixable(WordTokenizer.from_text("a a", 1), 10)
