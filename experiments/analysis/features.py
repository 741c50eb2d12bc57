"""Features of a text, and how well each unit of a model tracks them.

A feature has a value for each character of a text: a count, or whether
something is true. A unit is scored by how its signal, such as its h at each
character, relates to the feature: by correlation for a count, and for a truth
value by the area under the ROC curve, the probability that the signal is larger
where the feature is true (½ means no relation).
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from experiments.analysis.text_stats import with_letters
from lstm_jax.language.word_tokenizer import CLIPPED_END, CLIPPED_START

_QUOTE = re.compile(
  rf"""
  (?P<apostrophe> ['’](?i:{CLIPPED_START})(?!\w)  # 'tis
  | (?<!\w)(?i:{CLIPPED_END})['’](?!\w)         # th'
  | (?<=\w)['’](?=\w) )                      # o'er
  | (?P<opens> (?<![\w.,;:!?])["'“‘](?=[\w"'“‘]) )
  | (?P<closes> (?<=\S)["'”’] )
  | (?P<blank_line> \n\s*\n )
  """,
  re.VERBOSE,
)
_NAME = re.compile(
  r"(?:\A|(?<=\n\n))[^\W\d_][\w.'’-]*(?: [^\W\d_][\w.'’-]*)*:(?=\n)"
)
# The first letter of a word. o'er and self-love are one word each.
_WORD = re.compile(r"(?<!\w)(?<!\w['’-])\w")


class Feature(NamedTuple):
  """A feature of a text."""

  name: str
  compute: Callable[[str], np.ndarray]  # text -> bool or int [characters]

  def of_pieces(self, pieces: Sequence[str]) -> np.ndarray:
    """Return the feature of each piece of a text, [N].

    A piece is what one token adds to the text: a character, or a word with the
    space before it. A piece has the count of its last character, and a truth
    value is true for a piece if it is true for any of its characters.
    """
    values = self.compute("".join(pieces))
    ends = np.cumsum([len(piece) for piece in pieces])
    if values.dtype != bool:
      return values[ends - 1]
    return np.logical_or.reduceat(values, [0, *ends[:-1]])


def line_position(text: str) -> np.ndarray:
  """Return the place of each character in its line, from 1; 0 for a break."""
  breaks = np.array([c == "\n" for c in text])
  index = np.arange(len(text))
  return index - np.maximum.accumulate(np.where(breaks, index, -1))


def inside_quotes(text: str) -> np.ndarray:
  """Return whether each character is inside a quotation.

  The opening mark is inside, the closing mark is not. A blank line ends a
  quotation, since a quotation of several stanzas opens again in each. The
  apostrophe of a plural (lovers') is mistaken for a closing mark.
  """
  inside, opened = np.zeros(len(text), bool), -1
  for match in _QUOTE.finditer(with_letters(text)):
    if match["opens"]:
      opened = match.start() if opened < 0 else opened
    elif not match["apostrophe"] and opened >= 0:  # closes, or a blank line
      inside[opened : match.start()] = True
      opened = -1
  if opened >= 0:
    inside[opened:] = True
  return inside


def word_starts(text: str) -> np.ndarray:
  """Return whether each character is the first of a word."""
  letters = with_letters(text)
  return _mask(text, [match.span() for match in _WORD.finditer(letters)])


def speaker_names(text: str) -> np.ndarray:
  """Return whether each character belongs to a speaker's name or its colon.

  A name is a line of capitalized words that ends in a colon, at the start of
  the text or after a blank line. It may contain "of", "and" and "the".
  """
  matches = _NAME.finditer(with_letters(text))
  return _mask(text, [m.span() for m in matches if _is_capitalized(m[0])])


FEATURES = (
  Feature("line position", line_position),
  Feature("inside quotes", inside_quotes),
  Feature("word starts", word_starts),
  Feature("speaker names", speaker_names),
)


def correlation(levels: np.ndarray, feature: np.ndarray) -> np.ndarray:
  """Return each unit's correlation with a feature; 0 for a constant unit.

  Args:
    levels: the units' signals, [H, N]; scale and offset do not matter.
    feature: its values, [N], not constant.

  Returns:
    [H], between -1 and 1.
  """
  x = levels - levels.mean(axis=1, keepdims=True, dtype=np.float64)
  y = feature - feature.mean()
  scale = np.sqrt((x * x).sum(axis=1) * (y * y).sum())
  return x @ y / np.where(scale > 0, scale, 1)


def roc_area(levels: np.ndarray, feature: np.ndarray) -> np.ndarray:
  """Return each unit's area under the ROC curve; ties count half.

  Args:
    levels: the units' signals, quantized to 256 levels, uint8 [H, N].
    feature: its values, bool [N], not constant.

  Returns:
    [H], between 0 and 1.
  """
  true, false = (
    _histograms(levels[:, feature]),
    _histograms(levels[:, ~feature]),
  )
  # How many characters where the feature is false have a lower level.
  below = np.cumsum(false, axis=1) - false / 2
  return (true * below).sum(axis=1) / (feature.sum() * (~feature).sum())


def scores(levels: np.ndarray, feature: np.ndarray) -> np.ndarray:
  """Return `roc_area` for a feature of truth values, else `correlation`."""
  return (roc_area if feature.dtype == bool else correlation)(levels, feature)


def varies(feature: np.ndarray) -> bool:
  """Return whether a feature, [N], is not constant, so that it has scores."""
  return bool((feature != feature[0]).any())


def measure(feature: np.ndarray) -> str:
  """Return the name of what `scores` returns for a feature."""
  return "AUC" if feature.dtype == bool else "r"


def _is_capitalized(name: str) -> bool:
  """Return whether the words of a name are capitalized.

  Words after the first may also be "of", "and" or "the".
  """
  first, *others = name.rstrip(":").split(" ")
  return first[0].isupper() and all(
    word[0].isupper() or word in ("of", "and", "the") for word in others
  )


def _histograms(levels: np.ndarray) -> np.ndarray:
  """Return how often each unit has each of 256 levels, [H, 256]."""
  units = len(levels)
  flat = levels + 256 * np.arange(units)[:, None]
  return np.bincount(flat.ravel(), minlength=256 * units).reshape(units, 256)


def _mask(text: str, spans: list[tuple[int, int]]) -> np.ndarray:
  """Return whether each character of a text is in one of the spans."""
  mask = np.zeros(len(text), bool)
  for start, end in spans:
    mask[start:end] = True
  return mask
