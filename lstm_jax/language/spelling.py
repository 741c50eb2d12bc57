"""Spelling: what it costs to write out a word letter by letter.

A language model over words says only *that* a word is unknown. To be compared
with one over characters, it must also pay for which word it is: its letters c₁
… cₙ and an end mark cₙ₊₁, each given the K before it,

  −log p(word) = −Σₖ log p_K(cₖ | cₖ₋K … cₖ₋₁)

  p_j(c | s) = (n(s c) + A p_{j−1}(c | s')) / (n(s) + A)

where n counts in a list of rare words, s' is s without its first letter, and
p₋₁ is the same for the end mark and every code point of Unicode. Each p sums to
1 over all of these, so that any word has a probability, and all together 1.

>>> rare = ["unthrift", "unbless", "unused"]
>>> known, new, foreign = spelling_nats(rare, ["unused", "unthink", "雪の王"])
>>> bool(known < new < foreign)
True
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

CONTEXT = 4  # K, letters; fewer at a word's beginning
STRENGTH = 8.0  # A, in letters seen
END = "\n\n"  # longer than a code point, so no letter
CODE_POINTS = 0x110000


def spelling_nats(rare: Sequence[str], words: Sequence[str]) -> np.ndarray:
  """Return the nats of spelling each of words as `rare` are, float64 [N].

  Args:
    rare: the words to learn from, each of them once; may be empty.
    words: the words to spell, N of them.
  """
  pairs: Counter[tuple[str, str]] = Counter()
  contexts: Counter[str] = Counter()
  for word in rare:
    for context, letter in _letters(word):
      for shorter in _suffixes(context):
        pairs[shorter, letter] += 1
        contexts[shorter] += 1

  def nats(word: str) -> float:
    total = 0.0
    for context, letter in _letters(word):
      p = 1 / (CODE_POINTS + 1)
      for shorter in _suffixes(context):
        p *= STRENGTH
        p = (pairs[shorter, letter] + p) / (contexts[shorter] + STRENGTH)
      total -= math.log(p)
    return total

  return np.array([nats(word) for word in words], np.float64)


def _letters(word: str) -> Iterator[tuple[str, str]]:
  """Yield (what stands before, at most K letters; letter), and so the end."""
  for k, letter in enumerate([*word, END]):
    yield word[max(0, k - CONTEXT) : k], letter


def _suffixes(context: str) -> list[str]:
  """Return the ends of context, the shortest first: "" is the first."""
  return [context[k:] for k in range(len(context), -1, -1)]
