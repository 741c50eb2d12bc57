"""Statistics of generated text: known words, line lengths, rhymes.

They are cheap enough to compute at every evaluation of a model in training. The
same statistics of the corpus show what values a good model reaches.
"""

import re
import unicodedata
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

# Letters, with the apostrophes and hyphens between them: tatter'd, self-love.
WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
VOWELS = "aeiouyàáâäèéêëìíîïòóôöùúûü"


class TextStats(NamedTuple):
  """Statistics of some texts; None where there is nothing to count."""

  words_in_train: float | None  # share of words that the training text has
  words_in_val: float | None  # share of words that the validation text has
  line_length: float | None  # mean number of characters of the `lines`
  rhymes: float | None  # share of the `lines` that rhyme, judged by spelling


def with_letters(text: str) -> str:
  """Return text with a letter in place of each combining mark.

  Combining marks are accents and vowel signs, which `re` does not count as
  letters. The marks after an emoji stay: U+FE00 to U+FE0F, and enclosing ones.
  """
  marks = {
    ord(character): "x"
    for character in set(text)
    if unicodedata.category(character) in ("Mn", "Mc")
    and not "\ufe00" <= character <= "\ufe0f"
  }
  return text.translate(marks)


def words(text: str) -> list[str]:
  """Return the words of a text in order, in lower case."""
  text = text.lower()
  matches = WORD.finditer(with_letters(text))
  return [text[slice(*match.span())] for match in matches]


def lines(text: str) -> list[str]:
  """Return the lines that end in a line break, stripped, without blank ones."""
  complete = text.split("\n")[:-1]
  return [line.strip() for line in complete if line.strip()]


def text_stats(
  texts: Iterable[str], train_words: set[str], val_words: set[str]
) -> TextStats:
  """Return the statistics of texts, such as the samples of a model.

  Each must begin at the start of a line, but may end anywhere: a word or line
  cut off by its end does not count.

  Args:
    texts: the texts that a model has written.
    train_words: the `words` of the training text.
    val_words: the `words` of the validation text.

  Raises:
    TypeError: texts is a str.
  """
  if isinstance(texts, str):
    raise TypeError("texts must be a list of texts, got a str")
  texts = list(texts)
  all_words = [w for text in texts for w in words(_whole_words(text))]
  lines_by_text = [lines(text) for text in texts]
  return TextStats(
    words_in_train=_mean([word in train_words for word in all_words]),
    words_in_val=_mean([word in val_words for word in all_words]),
    line_length=_mean([len(line) for some in lines_by_text for line in some]),
    rhymes=_mean([r for some in lines_by_text for r in _rhyming(some)]),
  )


def shuffled(text: str) -> str:
  """Return the `lines` of a text in random order: they rhyme only by chance."""
  found = lines(text)
  order = np.random.default_rng(0).permutation(len(found))
  return "".join(f"{found[k]}\n" for k in order)


def ending(word: str) -> str:
  """Return the letters of a word's last sound, guessed from its spelling.

  They are its last group of VOWELS and what follows. A last e after a consonant
  is silent, and belongs to the group before, if there is one. Other letters,
  such as œ, count as consonants: the ending of cœur is ur. That of a word
  without VOWELS is the whole word, so that words of other scripts never rhyme.
  """
  pattern = f"[{VOWELS}]+[^{VOWELS}]+e?$|[{VOWELS}]+$"
  match = re.search(pattern, word)
  return match[0] if match else word


def _rhyming(text_lines: list[str]) -> list[bool]:
  """Return whether each line rhymes with another at most two lines away.

  The lines are not empty. Two lines rhyme if the endings of their last words
  are equal and these words are not. A line without words rhymes with none.
  """
  last_words = [(words(line) or [""])[-1] for line in text_lines]
  endings = [ending(word) for word in last_words]

  def rhyme(i, j):
    same_ending = endings[i] != "" and endings[i] == endings[j]
    return same_ending and last_words[i] != last_words[j]

  count = len(text_lines)
  return [
    any(rhyme(i, j) for j in range(max(0, i - 2), min(count, i + 3)) if j != i)
    for i in range(count)
  ]


def _whole_words(text: str) -> str:
  """Return a text without a word at its very end, which may have been cut."""
  letters, end = with_letters(text), len(text)
  while end and re.match(r"[\w'’-]", letters[end - 1]):
    end -= 1
  return text[:end]


def _mean(values: list) -> float | None:
  return float(np.mean(values)) if values else None
