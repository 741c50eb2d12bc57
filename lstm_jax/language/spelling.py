"""The cost of spelling out an unknown word, letter by letter.

A language model over words gives all unknown words one probability, that of the
unknown token. To compare its loss with that of a model over characters, the
cost of telling which word it is must be added. That is the cost of the word's
letters c₁ … c_L and of an end mark c_{L+1}. Each is predicted from the K
letters before it, by a model that is interpolated with shorter contexts:

  −log p(word) = −Σₖ log p_K(cₖ | cₖ₋K … cₖ₋₁)

  p_j(c | s) = (n(s c) + A p_{j−1}(c | s')) / (n(s) + A)

where s is a context of j letters, n counts occurrences in a list of rare words,
s' is s without its first letter, and p₋₁ is uniform over the end mark and all
code points of Unicode (Dirichlet smoothing, MacKay and Peto 1995). Each p_j
sums to 1, so that the probabilities of all possible words do, too.

A text repeats its unknown words, as a play repeats the names of its roles. A
cache predicts each unknown word from those before it (Kuhn and De Mori 1990, A
cache-based natural language model for speech recognition). It interpolates as
above, but with absolute discounting, as in a Pitman–Yor process with one table
for each word (Teh 2006, A hierarchical Bayesian language model based on
Pitman–Yor processes):

  p(w) = (max(m(w) − D, 0) + (A + D u) p_letters(w)) / (m + A)

where m unknown words precede it, m(w) of them equal to w, u of them distinct,
and p_letters is the probability above. It sums to 1 as well.

>>> rare = ["unthrift", "unbless", "unused"]
>>> listed, new, foreign = spelling_nats(rare, ["unused", "unthink", "雪の王"])
>>> bool(listed < new < foreign)
True
>>> first, again = spelling_nats(rare, ["雪の王", "雪の王"], cached=True)
>>> bool(again < 5 < 45 < first)  # 4.5 = log((1 + A) / (1 − D)) for `again`
True
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

CONTEXT = 4  # K, in letters; fewer at the beginning of a word
PSEUDO_COUNT = 8.0  # A: weight of the shorter context, or of the letters
DISCOUNT = 0.9  # D: taken from the count of each word in the cache
END = "\n\n"  # the end mark; two characters, so different from every letter
CODE_POINTS = 0x110000


def spelling_nats(
  rare: Sequence[str], words: Sequence[str], cached: bool = False
) -> np.ndarray:
  """Return the cost of spelling each of N words, in nats, float64 [N].

  Args:
    rare: distinct rare words, to count letters in; may be empty.
    words: the N words to spell, in the order of the text.
    cached: whether each word is also predicted from the words before it.
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

  costs = np.array([nats(word) for word in words], np.float64)
  return _cached_nats(words, costs) if cached else costs


def _cached_nats(words: Sequence[str], costs: np.ndarray) -> np.ndarray:
  """Return each word's cost, from the words before it and its letters' cost."""
  counts: Counter[str] = Counter()
  nats = np.empty(len(words))
  for m, (word, cost) in enumerate(zip(words, costs, strict=True)):
    score = math.log(PSEUDO_COUNT + DISCOUNT * len(counts)) - cost
    if word in counts:  # the sum in logarithms: a long word's exp(−cost) is 0
      score = np.logaddexp(math.log(counts[word] - DISCOUNT), score)
    nats[m] = math.log(m + PSEUDO_COUNT) - score
    counts[word] += 1
  return nats


def _letters(word: str) -> Iterator[tuple[str, str]]:
  """Yield (at most K letters of context, letter), the end mark last."""
  for k, letter in enumerate([*word, END]):
    yield word[max(0, k - CONTEXT) : k], letter


def _suffixes(context: str) -> list[str]:
  """Return all suffixes of context, from "" to context itself."""
  return [context[k:] for k in range(len(context), -1, -1)]
