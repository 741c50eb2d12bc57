import math
from collections import Counter
from decimal import Decimal, localcontext

import numpy as np
import pytest

from lstm_jax.language import spelling
from lstm_jax.language.spelling import spelling_nats

RARE = ["abba", "baa", "a", "cab"]


def test_the_probabilities_are_those_of_the_docstring():
  """Here `p` is the recursion of `spelling` for K = 4 and A = 8."""
  marked = [[*word, "end"] for word in RARE]

  def p(letter, context):
    counts = Counter(
      marks[k]
      for marks in marked
      for k in range(len(marks))
      if k >= len(context) and marks[k - len(context) : k] == context
    )
    shorter = p(letter, context[1:]) if context else 1 / (0x110000 + 1)
    return (counts[letter] + 8 * shorter) / (counts.total() + 8)

  expected = 0.0
  word = [*"cabbage", "end"]
  for k, letter in enumerate(word):
    expected -= math.log(p(letter, word[max(0, k - 4) : k]))
  (found,) = spelling_nats(RARE, ["cabbage"])
  assert abs(found - expected) < 1e-12 * expected


def test_the_probabilities_of_all_words_sum_to_one(monkeypatch):
  """Over an alphabet of one letter, whose words can be listed."""
  monkeypatch.setattr(spelling, "CODE_POINTS", 1)
  nats = spelling_nats(["a", "aaa", "aaa"], ["a" * n for n in range(300)])
  assert nats[-1] > 40  # the words left out are too rare to count
  assert abs(np.exp(-nats).sum() - 1) < 1e-12


@pytest.mark.parametrize("rare", [RARE, []])
def test_any_word_has_a_probability(rare):
  nats = spelling_nats(rare, ["", "abba", "雪", "\n  ", "a" * 200])
  assert (nats > 0).all()
  assert nats.max() < 201 * 15  # 200 letters and the end mark, 15 nats each


def test_words_like_the_rare_ones_are_cheap():
  rare = ["unthrift", "unkind", "unseen", "unused"]
  like, unlike = spelling_nats(rare, ["unkindest", "tsednikun"])
  assert like < 0.8 * unlike
  assert spelling_nats(rare, []).shape == (0,)


def test_the_cache_has_the_probabilities_of_its_formula():
  """The formula is computed after each of some words, in 60 decimal digits.

  A is 8 and D is 0.9. The probabilities of long words are too small for a
  float64.
  """
  words = ["abba", "cab", "abba", "雪", "abba", "cab", "dab", "a" * 900, "雪"]
  letters = spelling_nats(RARE, words)
  assert letters.max() > 800  # exp(−800) is 0 in float64
  found = spelling_nats(RARE, words, cached=True)
  with localcontext() as context:
    context.prec = 60
    for n, word in enumerate(words):
      before = words[:n]
      p = (-Decimal(letters[n])).exp() * (8 + Decimal("0.9") * len({*before}))
      p += max(before.count(word) - Decimal("0.9"), Decimal(0))
      expected = -(p / (n + 8)).ln()
      assert abs(found[n] - float(expected)) < 1e-12 * found[n]


def test_the_probabilities_of_all_next_words_sum_to_one(monkeypatch):
  """With the cache, and over an alphabet of one letter."""
  monkeypatch.setattr(spelling, "CODE_POINTS", 1)
  before = ["aa", "a", "aa", "aaaa", "a", "aa"]
  last = [
    spelling_nats(["a", "aaa"], [*before, "a" * n], cached=True)[-1]
    for n in range(300)
  ]
  assert abs(np.exp(-np.array(last)).sum() - 1) < 1e-12


def test_the_cost_of_a_word_does_not_depend_on_later_words():
  words = ["cab", "dab", "cab", "abba", "cab"]
  whole = spelling_nats(RARE, words, cached=True)
  for n in range(len(words) + 1):
    part = spelling_nats(RARE, words[:n], cached=True)
    np.testing.assert_array_equal(part, whole[:n])
