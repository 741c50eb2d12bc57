"""What a unit tracks: features of a text, and how well each unit tells them.

A feature is a number for each character, or each longer piece that is read at
once, of what has been read up to and with it. A unit is scored by the
correlation of its signal with a feature that counts, and for a feature that is
true or false by the area under the ROC curve: the chance that the signal is
larger where it is true, ½ where it says nothing.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from lstm_jax.language.word_tokenizer import HEADLESS, TAILLESS

_QUOTE = re.compile(
  rf"""
  (?P<apostrophe> ['’](?i:{HEADLESS})(?!\w)  # 'tis
  | (?<!\w)(?i:{TAILLESS})['’](?!\w)         # th'
  | (?<=\w)['’](?=\w) )                      # o'er
  | (?P<opens> (?<![\w.,;:!?])["'“‘](?=[\w"'“‘]) )
  | (?P<closes> (?<=\S)["'”’] )
  | (?P<ends> \n\s*\n )
  """,
  re.VERBOSE,
)
_NAME = re.compile(
  r"(?:\A|(?<=\n\n))[A-Z][\w.'’-]*(?: (?:[A-Z][\w.'’-]*|of|and|the))*:(?=\n)"
)
_WORD = re.compile(r"(?<!\w)(?<!\w['’-])\w")  # o'er and self-love are one


class Feature(NamedTuple):
  """A feature of a text."""

  name: str
  of: Callable[[str], np.ndarray]  # a text -> its characters', bool or int

  def of_pieces(self, pieces: Sequence[str]) -> np.ndarray:
    """Return the feature of each piece of a text, [N].

    It is true of a piece if it is of one of its characters; what counts is
    taken at the last.
    """
    values = self.of("".join(pieces))
    ends = np.cumsum([len(piece) for piece in pieces])
    if values.dtype != bool:
      return values[ends - 1]
    return np.logical_or.reduceat(values, [0, *ends[:-1]])


def line_position(text: str) -> np.ndarray:
  """Return how many characters have been read since the last line break."""
  breaks = np.array([c == "\n" for c in text])
  here = np.arange(len(text))
  return here - np.maximum.accumulate(np.where(breaks, here, -1))


def inside_quotes(text: str) -> np.ndarray:
  """Return whether a quotation is open, as far as letters tell.

  A blank line ends it, since stanzas open theirs anew. An apostrophe after a
  plural (lovers') is taken for an end.
  """
  inside, opened = np.zeros(len(text), bool), -1
  for match in _QUOTE.finditer(text):
    if match["opens"]:
      opened = match.start() if opened < 0 else opened
    elif not match["apostrophe"] and opened >= 0:
      inside[opened : match.start()] = True
      opened = -1
  if opened >= 0:
    inside[opened:] = True
  return inside


def word_starts(text: str) -> np.ndarray:
  """Return whether a character is the first of a word."""
  return _marked(text, [(m.start(), m.end()) for m in _WORD.finditer(text)])


def speaker_names(text: str) -> np.ndarray:
  """Return whether a character is of a speaker's name, or the colon after it.

  A name is a line of capitalised words after a blank line, which ends in a
  colon.
  """
  return _marked(text, [match.span() for match in _NAME.finditer(text)])


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
    feature: [N], not constant.
  """
  x = levels - levels.mean(axis=1, keepdims=True, dtype=np.float64)
  y = feature - feature.mean()
  scale = np.sqrt((x * x).sum(axis=1) * (y * y).sum())
  return x @ y / np.where(scale > 0, scale, 1)


def area(levels: np.ndarray, feature: np.ndarray) -> np.ndarray:
  """Return each unit's area under the ROC curve; ties count half.

  Args:
    levels: the units' signals in 256 levels, uint8 [H, N].
    feature: bool [N], not constant.
  """
  true, false = (
    _histograms(levels[:, feature]),
    _histograms(levels[:, ~feature]),
  )
  below = np.cumsum(false, axis=1) - false / 2
  return (true * below).sum(axis=1) / (feature.sum() * (~feature).sum())


def scores(levels: np.ndarray, feature: np.ndarray) -> np.ndarray:
  """Return the area of a feature that is true or false, else correlation."""
  return (area if feature.dtype == bool else correlation)(levels, feature)


def _histograms(levels: np.ndarray) -> np.ndarray:
  """Return how often each unit has each of 256 levels, [H, 256]."""
  units = len(levels)
  flat = levels + 256 * np.arange(units)[:, None]
  return np.bincount(flat.ravel(), minlength=256 * units).reshape(units, 256)


def _marked(text: str, spans: list[tuple[int, int]]) -> np.ndarray:
  marked = np.zeros(len(text), bool)
  for start, end in spans:
    marked[start:end] = True
  return marked
