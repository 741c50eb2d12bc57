"""The cost of spelling out an unknown word, letter by letter.

A language model over words predicts only that a word is unknown. To compare its
loss with that of a model over characters, the cost of telling which word it is
must be added: that of its letters c₁ … c_L and an end mark c_{L+1}, each given
the K letters before it, in a model interpolated with shorter contexts,

  −log p(word) = −Σₖ log p_K(cₖ | cₖ₋K … cₖ₋₁)

  p_j(c | s) = (n(s c) + A p_{j−1}(c | s')) / (n(s) + A)

where n counts occurrences in a list of rare words, s' is s without its first
letter, and p₋₁ is uniform over the end mark and all code points of Unicode.
Each p_j sums to 1, so that the probabilities of all possible words do.

>>> rare = ["unthrift", "unbless", "unused"]
>>> known, new, foreign = spelling_nats(rare, ["unused", "unthink", "雪の王"])
>>> bool(known < new < foreign)
True
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

CONTEXT = 4  # K, in letters; fewer at the beginning of a word
PSEUDO_COUNT = 8.0  # A: how many occurrences the shorter context counts for
END = "\n\n"  # the end mark; two characters, so different from every letter
CODE_POINTS = 0x110000


def spelling_nats(rare: Sequence[str], words: Sequence[str]) -> np.ndarray:
  """Return the cost of spelling each of N words, in nats, float64 [N].

  Args:
    rare: distinct rare words, to count letters in; may be empty.
    words: the N words to spell.
  """
  pairs: Counter[tuple[str, str]] = Counter()
  contexts: Counter[str] = Counter()
  for word in rare:
    for context, letter in _letters(word):
      for suffix in _suffixes(context):
        pairs[suffix, letter] += 1
        contexts[suffix] += 1

  def nats(word: str) -> float:
    total = 0.0
    for context, letter in _letters(word):
      p = 1 / (CODE_POINTS + 1)
      for suffix in _suffixes(context):
        p *= PSEUDO_COUNT
        p = (pairs[suffix, letter] + p) / (contexts[suffix] + PSEUDO_COUNT)
      total -= math.log(p)
    return total

  return np.array([nats(word) for word in words], np.float64)


def _letters(word: str) -> Iterator[tuple[str, str]]:
  """Yield (at most K letters of context, letter), the end mark last."""
  for k, letter in enumerate([*word, END]):
    yield word[max(0, k - CONTEXT) : k], letter


def _suffixes(context: str) -> list[str]:
  """Return all suffixes of context, from "" to context itself."""
  return [context[k:] for k in range(len(context), -1, -1)]
