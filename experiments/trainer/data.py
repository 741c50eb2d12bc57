"""The text of a run in splits and tokens, and parts of it to evaluate."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from experiments.trainer.config import DataConfig
from experiments.trainer.corpus import read_corpus_text, text_sha256
from lstm_jax.language import (
  BatchingConfig,
  CharTokenizer,
  Tokenizer,
  WordTokenizer,
  middle_slice,
  split,
)

SPLITS = {"dev": "development", "val": "validation", "test": "test"}
Range = tuple[int, int]  # of characters: the first, and the first after them


class Split(NamedTuple):
  """A part of the corpus."""

  text: str
  tokens: np.ndarray  # int32 [N]
  # Index of the first token after a development split that was cut out.
  gap: int | None = None


class Corpus(NamedTuple):
  """The corpus of a run, cut into splits.

  The splits follow one another in the text. If a development split was cut out
  of the middle of the training split, `val` holds it and `test` nothing (None);
  the text after the training split is then not evaluated.
  """

  text: str
  tokenizer: Tokenizer
  train: Split
  val: Split  # its loss chooses the best weights
  test: Split | None  # evaluated once, at the end
  sha256: str  # of the text


def read_corpus(config: DataConfig) -> Corpus:
  """Read, split and tokenize the corpus of a run.

  Raises:
    ValueError: it cannot be read, cannot be split (`split_ranges`), or has
      fewer than two distinct tokens to predict; or an evaluated split has fewer
      than two tokens.
  """
  text = read_corpus_text(config.corpus)
  ranges = split_ranges(config, text)
  pieces = [text[slice(*piece)] for piece in training_ranges(ranges)]
  tokenizer = make_tokenizer(config, text, "".join(pieces))
  tokens = [tokenizer.encode(piece) for piece in pieces]
  gap = len(tokens[0]) if len(tokens) > 1 else None
  train = Split("".join(pieces), np.concatenate(tokens), gap)

  def evaluated(name: str) -> Split:
    part = text[slice(*ranges[name])]
    tokens = tokenizer.encode(part)
    if len(tokens) < 2:
      message = f"{SPLITS[name]} split must have at least 2 tokens, got "
      raise ValueError(f"the {message}{len(tokens)}")
    return Split(part, tokens)

  val = evaluated("dev" if "dev" in ranges else "val")
  has_test = "test" in ranges and "dev" not in ranges
  test = evaluated("test") if has_test else None
  return Corpus(text, tokenizer, train, val, test, text_sha256(text))


def split_ranges(config: DataConfig, text: str) -> dict[str, Range]:
  """Return where each split of a corpus begins and ends, in characters.

  The range "train" is the whole training split, and includes the development
  split.

  Raises:
    ValueError: the text is too short, or its paragraphs are too long to cut a
      development split between two of them.
  """
  rest, ranges = text, {}
  with naming_flags(config):
    if config.test_fraction:
      rest, _ = split(text, config.test_fraction)
      ranges["test"] = len(rest), len(text)
    train, _ = split(rest, config.val_fraction)
    ranges |= {"train": (0, len(train)), "val": (len(train), len(rest))}
    if config.dev_fraction:
      ranges["dev"] = middle_slice(train, config.dev_fraction)
  return ranges


def default_split(config: DataConfig) -> str:
  """Return the split that a run is evaluated on: dev, or else test, or val."""
  if config.dev_fraction:
    return "dev"
  return "test" if config.test_fraction else "val"


def training_ranges(ranges: dict[str, Range]) -> list[Range]:
  """Return the pieces of a corpus that its model is trained on."""
  first, last = ranges["train"]
  if "dev" not in ranges:
    return [(first, last)]
  begin, end = ranges["dev"]
  return [(first, begin), (end, last)]


@contextmanager
def naming_flags(
  data: DataConfig, batching: BatchingConfig | None = None
) -> Iterator[None]:
  """Name, in a ValueError about splits or batches, the flags that are not 0."""
  try:
    yield
  except ValueError as error:
    sizes = "batch_size", "late_batch_size", "seq_len"
    settings = {n: getattr(batching, n) for n in sizes if batching}
    for name in ("dev_fraction", "test_fraction", "val_fraction"):
      settings[name] = getattr(data, name)
    *others, last = (f"--{name}={v}" for name, v in settings.items() if v)
    named = f"{', '.join(others)} and {last} do" if others else f"{last} does"
    raise ValueError(f"{named} not fit {data.corpus}: {error}") from None


def make_tokenizer(config: DataConfig, text: str, train: str) -> Tokenizer:
  """Return the tokenizer of a run.

  It knows all characters of `text`, the whole corpus, or else the words that
  occur min_count times or more in `train`, the training split.

  Raises:
    ValueError: there are fewer than two known tokens.
  """
  tokenizer: Tokenizer = (
    CharTokenizer.from_text(text)
    if config.tokenizer == "character"
    else WordTokenizer.from_text(train, config.min_count)
  )
  if tokenizer.size - len(tokenizer.unknown_tokens) < 2:
    raise ValueError(
      f"there is nothing to predict: corpus {config.corpus} has only one "
      f"{tokenizer.unit} to learn, {tokenizer.symbols[0]!r}"
    )
  return tokenizer


def stored_tokenizer(kind: str, fields: dict[str, Any]) -> Tokenizer:
  """Return the tokenizer whose fields a checkpoint holds as JSON."""
  if kind == "character":
    return CharTokenizer("".join(fields["symbols"]))
  return WordTokenizer(tuple(fields["symbols"]), tuple(fields["rare"]))


def default_prompt(tokenizer: Tokenizer) -> np.ndarray:
  """Return the token of a line break, or else the first token, int32 [1]."""
  symbols = tokenizer.symbols
  return np.array([symbols.index("\n") if "\n" in symbols else 0], np.int32)


def in_vocabulary(tokenizer: Tokenizer, text: str) -> bool:
  """Return whether the tokenizer knows all characters or words of a text."""
  try:
    tokenizer.encode_known(text)
  except ValueError:
    return False
  return True


class Excerpt(NamedTuple):
  """A part of a text file, and where it stands there."""

  path: str
  whole: str  # the file's text
  split: str | None  # of SPLITS; None for shares
  begin: float  # as shares of the whole
  end: float
  first: int  # the same in characters
  last: int
  training: list[Range]  # of the training text beside it
  trained_on: int  # characters of it that the run was trained on

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
  config: DataConfig,
  sha256: str,
  path: str = "",
  split: str | None = None,
  begin: float | None = None,
  end: float | None = None,
) -> Excerpt:
  """Return a part of the corpus of a run, or of another file.

  Args:
    config: of the run.
    sha256: of its corpus.
    path: another file; empty for the corpus itself. Unless its text is that of
      the corpus, all text before the excerpt counts as training text.
    split: a key of SPLITS; if not given, the run's `default_split`, or in
      another file, the text from the share on at which the test split, or else
      the validation split, of the corpus begins.
    begin: share of the text before the excerpt, in place of the split's.
    end: share of the text at which the excerpt ends. If only `begin` is given,
      it ends at the end of the text.

  Raises:
    ValueError: the text cannot be read, or has changed since the run; the run
      has no such split; a split is named beside another file or shares; or the
      shares leave fewer than two characters.
  """
  whole = read_corpus_text(path or config.corpus)
  is_corpus = text_sha256(whole) == sha256
  if not path and not is_corpus:
    # The part to evaluate may now hold text that the run was trained on.
    raise ValueError(
      f"corpus {config.corpus} has changed since the run started"
    )
  by_shares = bool(path) or (begin, end) != (None, None)
  if split and by_shares:
    raise ValueError(
      f"--split={split} is a part of the run's corpus: pass it without "
      "--corpus, --begin and --end"
    )
  ranges = split_ranges(config, whole) if is_corpus else {}
  first, last = 0, len(whole)
  if not path:
    split = split or default_split(config)
    if split not in ranges:
      raise ValueError(
        f"the run has no {SPLITS[split]} split: its --{split}_fraction is 0"
      )
    first, last = ranges[split]
  if begin is None:
    begin = first / len(whole)
    if last == len(whole):  # the share in the flag, not rounded to characters
      begin = 1 - (config.test_fraction or config.val_fraction)
  if by_shares:
    split, end = None, 1.0 if end is None else end
    # Rounding may put share * len(whole) just below an integer: 0.29 * 100 is
    # 28.99…, for example.
    first, last = (int(share * len(whole) + 1e-6) for share in (begin, end))
    if last - first < 2:
      raise ValueError(
        "--begin and --end must be shares of the corpus with at least 2 "
        f"characters between them, got {begin} and {end} of {len(whole):,} "
        "characters"
      )
  beside, inside = list[Range](), 0
  for start, stop in training_ranges(ranges) if ranges else [(0, first)]:
    beside += [(start, min(stop, first)), (max(start, last), stop)]
    inside += max(0, min(stop, last) - max(start, first))
  beside = [(start, stop) for start, stop in beside if start < stop]
  where, end = path or config.corpus, last / len(whole) if end is None else end
  return Excerpt(where, whole, split, begin, end, first, last, beside, inside)
