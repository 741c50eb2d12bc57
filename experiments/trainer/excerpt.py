"""A part of a text that a run is evaluated on."""

from typing import NamedTuple

import numpy as np

from experiments.trainer.config import DataConfig
from experiments.trainer.data import (
  SPLITS,
  default_split,
  read_corpus_text,
  split_ranges,
  text_sha256,
  training_ranges,
)
from lstm_jax.language import Tokenizer


class Part(NamedTuple):
  """Which part of a text to read."""

  split: str | None = None  # of SPLITS; None for the default, or for shares
  begin: float | None = None  # share of the text before the part
  end: float | None = None  # share of the text at which the part ends


OWN_SPLIT = Part()  # the `default_split` of the run


class Excerpt(NamedTuple):
  """A part of a text file, and where it stands there."""

  path: str
  whole: str  # the file's text
  split: str | None  # of SPLITS; None for shares
  begin: float  # as shares of the whole
  end: float
  first: int  # the same in characters
  last: int
  training: list[tuple[int, int]]  # ranges of the training text beside it
  trained_on: int = 0  # characters of it that the run was trained on

  @property
  def text(self) -> str:
    """The excerpt itself."""
    return self.whole[self.first : self.last]

  def encode(self, tokenizer: Tokenizer, first: int, last: int) -> np.ndarray:
    """Return the tokens of the characters first, ..., last − 1 of the file.

    Raises:
      ValueError: a character is unknown; the message says where it is.
    """
    try:
      return tokenizer.encode(self.whole[first:last])
    except ValueError as error:
      part = f"{self.path}, from character {first:,} on"
      raise ValueError(f"{part}: {error}") from None


def read_excerpt(
  config: DataConfig, sha256: str, path: str = "", part: Part = OWN_SPLIT
) -> Excerpt:
  """Return a part of the corpus of a run, or of another file.

  Args:
    config: of the run.
    sha256: of its corpus.
    path: another file; empty for the corpus itself. Unless its text is that of
      the corpus, all text before the excerpt counts as training text.
    part: of the text. Without a split and shares, it is the run's
      `default_split`. In another file, it then reaches from the share at which
      the test split, or else the validation split, of the corpus begins to the
      end of the file. With only an end, it begins where it would begin without
      one; with only a beginning, it reaches to the end of the text.

  Raises:
    ValueError: the text cannot be read, or has changed since the run; there is
      no such split, or the run has none; a split is named beside another file
      or shares; or the shares leave fewer than two characters.
  """
  whole = read_corpus_text(path or config.corpus)
  if not path and text_sha256(whole) != sha256:
    # The part to evaluate may now hold text that the run was trained on.
    raise ValueError(
      f"corpus {config.corpus} has changed since the run started"
    )
  if part.split and (path or part.begin is not None or part.end is not None):
    raise ValueError(
      f"--split={part.split} is a part of the run's corpus: pass it without "
      "--corpus, --begin and --end"
    )
  last_share = config.test_fraction or config.val_fraction
  if path:
    begin = 1 - last_share if part.begin is None else part.begin
    same = text_sha256(whole) == sha256
    training = training_ranges(split_ranges(config, whole)) if same else None
    return _by_shares(path, whole, begin, part.end, training)
  ranges = split_ranges(config, whole)
  training = training_ranges(ranges)
  if part.begin is not None:
    return _by_shares(config.corpus, whole, part.begin, part.end, training)
  split = part.split or default_split(config)
  if split not in SPLITS:
    raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
  if split not in ranges:
    raise ValueError(
      f"the run has no {SPLITS[split]} split: its --{split}_fraction is 0"
    )
  first, last = ranges[split]
  begin, end = first / len(whole), last / len(whole)
  if last == len(whole):  # the share in the flag, not rounded to characters
    begin = 1 - last_share
  if part.end is not None:
    return _by_shares(config.corpus, whole, begin, part.end, training)
  return Excerpt(config.corpus, whole, split, begin, end, first, last, training)


def _by_shares(
  path: str,
  whole: str,
  begin: float,
  end: float | None,
  training: list[tuple[int, int]] | None,
) -> Excerpt:
  """Return the excerpt between two shares of a text.

  Args:
    path: of the text.
    whole: the text.
    begin: share of the text before the excerpt.
    end: share at which it ends; None for the end of the text.
    training: ranges of the training text; None for all before the excerpt.

  Raises:
    ValueError: the excerpt would have fewer than two characters.
  """
  end = 1.0 if end is None else end
  first = last = 0
  if 0 <= begin < end <= 1:  # False if a share is NaN
    # Rounding may put share * len(whole) just below an integer: 0.29 * 100 is
    # 28.99…, for example.
    first, last = (int(share * len(whole) + 1e-6) for share in (begin, end))
  if last - first < 2:
    raise ValueError(
      "--begin and --end must be shares of the corpus with at least 2 "
      f"characters between them, got {begin} and {end} of {len(whole):,} "
      "characters"
    )
  beside, inside = [], 0
  for start, stop in [(0, first)] if training is None else training:
    beside += [(start, min(stop, first)), (max(start, last), stop)]
    inside += max(0, min(stop, last) - max(start, first))
  beside = [(start, stop) for start, stop in beside if start < stop]
  return Excerpt(path, whole, None, begin, end, first, last, beside, inside)
