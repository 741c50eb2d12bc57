"""The n-gram model against a loop over dictionaries, and its causality."""

from collections import Counter, defaultdict

import numpy as np
import pytest

from lstm_jax.language.ngram import ngram_predictions
from tests.draws import worst

V, ORDER, DISCOUNT = 5, 3, 0.7
RNG = np.random.default_rng(0)
TEXT = RNG.integers(0, V, 61)
TRAINING = [RNG.integers(0, V, 40), RNG.integers(0, 3, 70), TEXT[:2]]


class Reference:
  """The equations of `ngram`, with a dictionary of counts for each context."""

  def __init__(self, order):
    self.order, self.counts = order, defaultdict(Counter)

  def probs(self, context):
    p = np.full(V, 1 / V)
    for k in range(len(context) + 1):
      counts = self.counts[tuple(context[len(context) - k :])]
      if total := sum(counts.values()):
        left = DISCOUNT * len(counts) / total
        p = left * p
        for token, count in counts.items():
          p[token] += (count - DISCOUNT) / total
    return p

  def count(self, context, token):
    for k in range(len(context), -1, -1):
      counts = self.counts[tuple(context[len(context) - k :])]
      counts[token] += 1
      if counts[token] > 1:  # the token has followed this context before
        break

  def read(self, text):
    """Return the distributions and longest contexts of text[1:]."""
    found, longest = [], []
    for t, token in enumerate(text):
      context = [*text[max(0, t - self.order) : t]]
      found.append(self.probs(context))
      longest.append(
        max(
          k
          for k in range(len(context) + 1)
          if k == 0 or self.counts[tuple(context[len(context) - k :])]
        )
      )
      self.count(context, token)
    return np.array(found[1:]), longest[1:]


def predict(text, training=TRAINING, order=ORDER):
  return ngram_predictions(text, training, V, order=order, discount=DISCOUNT)


@pytest.mark.parametrize("order", [0, 1, ORDER])
@pytest.mark.parametrize("num_training", [0, 1, 3])
def test_the_distributions_are_those_of_the_loop(num_training, order):
  reference = Reference(order)
  for piece in TRAINING[:num_training]:
    reference.read(piece)
  expected, longest = reference.read(TEXT)
  found = predict(TEXT, TRAINING[:num_training], order)
  assert worst(np.exp(found.log_probs), expected) < 1e-14
  assert worst(np.exp(found.log_probs).sum(axis=1), np.ones(60)) < 1e-14
  assert found.longest.tolist() == longest
  # The longest contexts have every length from 1 to order, or 0 for order 0.
  assert set(longest) >= {*range(min(order, 1), order + 1)}


def test_the_default_order_is_seven_and_the_discount_three_quarters():
  text = np.tile(np.arange(V), 4)
  found = ngram_predictions(text, TRAINING, V)
  expected = ngram_predictions(text, TRAINING, V, order=7, discount=0.75)
  assert found.longest.max() == 7 and worst(found, expected) == 0


def test_a_later_token_changes_no_earlier_distribution():
  before = predict(TEXT)
  for position in (1, 20, 60):
    changed = TEXT.copy()
    changed[position] = (changed[position] + 1) % V
    after = predict(changed)
    # Row position − 1 predicts the token at this position.
    assert (after.log_probs[:position] == before.log_probs[:position]).all()
    assert (after.longest[:position] == before.longest[:position]).all()
    if position < 60:
      assert (after.log_probs[position] != before.log_probs[position]).any()


def test_a_vocabulary_size_in_int8_does_not_overflow():
  found = ngram_predictions(TEXT, TRAINING, np.int8(100), order=np.int8(2))
  expected = ngram_predictions(TEXT, TRAINING, 100, order=2)
  assert worst(found, expected) == 0


def test_a_text_that_repeats_is_learned():
  text = np.tile([0, 1, 1, 2, 3, 0, 2, 4, 4, 1], 20)
  nats = -predict(text, []).log_probs[np.arange(199), text[1:]]
  assert nats[:10].mean() > 1.0 and nats[-50:].mean() < 0.05


@pytest.mark.parametrize(
  ("text", "training", "options", "message"),
  [
    (TEXT[:1], [], {}, r"at least 2 tokens, \[N\], got 1"),
    (TEXT, [], {"order": -1}, "^order must be an integer ≥ 0, got -1$"),
    (TEXT, [], {"discount": 1.0}, r"^discount must be in \(0, 1\), got 1.0$"),
    (TEXT, [], {"discount": "0.5"}, "^discount must be a number, got '0.5'$"),
    (
      TEXT,
      [np.array([0, V])],
      {},
      r"^training\[0\] must be integers in \[0, 5\)",
    ),
    (TEXT, [TEXT, np.array([0.9])], {}, r"^training\[1\] must be integers in "),
    (TEXT, [TEXT[None]], {}, r"^training\[0\] must be \[N\], got \(1, 61\)$"),
    (TEXT, [], {"order": 1.5}, "^order must be an integer ≥ 0, got 1.5$"),
    (TEXT - 1, [], {}, r"tokens must be integers in \[0, 5\)"),
  ],
)
def test_an_argument_out_of_range_is_named(text, training, options, message):
  with pytest.raises(ValueError, match=message):
    ngram_predictions(text, training, V, **options)
