"""What a text looks like: words that exist, lengths of lines, rhymes.

Figures of form, cheap enough to follow while a model learns. They are told of
the corpus as well, which says what they can reach.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

# Letters, with the apostrophes and hyphens between them: tatter'd, self-love.
WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
VOWELS = "aeiouyàáâäèéêëìíîïòóôöùúûü"


class Writing(NamedTuple):
  """The figures of some texts; None where there is nothing to count."""

  in_training: float | None  # share of the words that the training text has
  in_held_out: float | None  # likewise, the held-out text
  line_length: float | None  # mean, in characters, of lines that are not empty
  rhymes: float | None  # share of the lines


def words(text: str) -> list[str]:
  """Return the words of a text in order, in lower case."""
  return WORD.findall(text.lower())


def lines(text: str) -> list[str]:
  """Return the lines that end and are not empty, without space around them."""
  ended = text.split("\n")[:-1]
  return [line.strip() for line in ended if line.strip()]


def writing(
  texts: Iterable[str], training: set[str], held_out: set[str]
) -> Writing:
  """Return the figures of texts, each beginning with a whole word and line.

  A text may end anywhere: the word and the line that its end cuts do not count.

  Args:
    texts: what was written.
    training: the words of the training text.
    held_out: the words of the held-out text.
  """
  texts = list(texts)
  found = [w for text in texts for w in words(_whole_words(text))]
  each = [lines(text) for text in texts]
  lengths = [len(line) for several in each for line in several]
  rhyming = [r for several in each for r in _rhyming(several)]
  return Writing(
    in_training=_mean([word in training for word in found]),
    in_held_out=_mean([word in held_out for word in found]),
    line_length=_mean(lengths),
    rhymes=_mean(rhyming),
  )


def shuffled(text: str, seed: int = 0) -> str:
  """Return the lines of a text in another order: what rhymes by chance."""
  order = np.random.default_rng(seed).permutation(lines(text))
  return "".join(f"{line}\n" for line in order)


def ending(line: str) -> str:
  """Return the sound that a line ends in, as far as letters tell it.

  The last group of vowels of its last word and what follows; a last e after a
  consonant is silent and belongs to the group before.
  """
  found = words(line)
  if not found:
    return ""
  word = found[-1]
  pattern = f"[{VOWELS}]+[^{VOWELS}]+e?$|[{VOWELS}]+$"
  match = re.search(pattern, word)
  return match[0] if match else word


def _rhyming(several: list[str]) -> list[bool]:
  """Return whether each line ends as one of the two after it, or before it."""
  last = [(words(line) or [""])[-1] for line in several]
  ends = [ending(line) for line in several]

  def rhyme(i, j):
    return ends[i] != "" and ends[i] == ends[j] and last[i] != last[j]

  count = len(several)
  return [
    any(rhyme(i, j) for j in range(max(0, i - 2), min(count, i + 3)) if j != i)
    for i in range(count)
  ]


def _whole_words(text: str) -> str:
  """Return a text without the word that its end may have cut."""
  return re.sub(r"[\w'’-]+\Z", "", text)


def _mean(values: list) -> float | None:
  return float(np.mean(values)) if values else None
