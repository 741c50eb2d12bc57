"""The text of a run: its corpus, cut into splits and into tokens."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, assert_never

import numpy as np

from experiments.trainer.config import DataConfig
from experiments.trainer.named_corpora import locate
from lstm_jax.language import (
  BatchingConfig,
  CharTokenizer,
  Tokenizer,
  WordTokenizer,
  middle_slice,
  read_text,
  split,
)

SPLITS = {"dev": "development", "val": "validation", "test": "test"}


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


def text_sha256(text: str) -> str:
  """Return the SHA-256 of a text in UTF-8."""
  return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def check_unchanged(config: DataConfig, now: str, before: str) -> None:
  """Raise ValueError unless a corpus has the same SHA-256 as before."""
  if now != before:
    raise ValueError(
      f"corpus {config.corpus} has changed since this program started"
    )


def read_corpus_text(corpus: str) -> str:
  """Return the text of a corpus, which is a path or a name.

  Raises:
    ValueError: it is empty, or cannot be read or downloaded.
  """
  if not corpus:  # as a path, it would be the current directory
    raise ValueError("corpus must be a file or a name, got ''")
  path = locate(corpus)
  try:
    return read_text(path)
  except ValueError as error:
    raise ValueError(f"corpus {error}") from None


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
    found = Split(part, tokenizer.encode(part))
    if len(found.tokens) < 2:
      raise ValueError(
        f"the corpus is too short: its {SPLITS[name]} split must have at least "
        f"2 tokens, got {len(found.tokens)}"
      )
    return found

  sha256 = text_sha256(text)
  if "dev" in ranges:
    return Corpus(text, tokenizer, train, evaluated("dev"), None, sha256)
  val = evaluated("val")
  test = evaluated("test") if "test" in ranges else None
  return Corpus(text, tokenizer, train, val, test, sha256)


def split_ranges(config: DataConfig, text: str) -> dict[str, tuple[int, int]]:
  """Return where each split of a corpus begins and ends, in characters.

  The range "train" is the whole training split, and includes the development
  split.

  Raises:
    ValueError: the text is too short, or its paragraphs are too long to cut a
      development split between two of them.
  """
  rest, ranges = text, {}
  if config.test_fraction:
    rest = _without_end(text, "test_fraction", config.test_fraction)
    ranges["test"] = len(rest), len(text)
  train = _without_end(rest, "val_fraction", config.val_fraction)
  ranges |= {"train": (0, len(train)), "val": (len(train), len(rest))}
  if config.dev_fraction:
    try:
      ranges["dev"] = middle_slice(train, config.dev_fraction)
    except ValueError as error:
      raise ValueError(
        f"--dev_fraction={config.dev_fraction} does not fit {config.corpus}: "
        f"{error}"
      ) from None
  return ranges


def _without_end(text: str, flag: str, fraction: float) -> str:
  """Return a text without the split at its end, whose share is a flag's value.

  Raises:
    ValueError: one of the two parts has fewer than two characters.
  """
  try:
    rest, _ = split(text, fraction)
  except ValueError:
    raise ValueError(
      f"the corpus is too short: --{flag}={fraction} must cut a text of "
      f"{len(text):,} characters into two of at least 2"
    ) from None
  return rest


def default_split(config: DataConfig) -> str:
  """Return the key, in SPLITS, of the split that a run is evaluated on.

  It is the development split, if the run has one, or else the test split, or
  else the validation split.
  """
  if config.dev_fraction:
    return "dev"
  return "test" if config.test_fraction else "val"


def training_ranges(
  ranges: dict[str, tuple[int, int]],
) -> list[tuple[int, int]]:
  """Return the pieces of a corpus that its model is trained on."""
  first, last = ranges["train"]
  if "dev" not in ranges:
    return [(first, last)]
  begin, end = ranges["dev"]
  return [(first, begin), (end, last)]


@contextmanager
def naming_flags(data: DataConfig, batching: BatchingConfig) -> Iterator[None]:
  """Name, in a ValueError about the batches, the flags that determine them.

  The flag of a split or a late batch size that the run does not have is left
  out, because not every program has that flag.
  """
  try:
    yield
  except ValueError as error:
    settings = {
      "batch_size": batching.batch_size,
      "late_batch_size": batching.late_batch_size,
      "seq_len": batching.seq_len,
      "dev_fraction": data.dev_fraction,
      "test_fraction": data.test_fraction,
      "val_fraction": data.val_fraction,
    }
    named = [f"--{name}={value}" for name, value in settings.items() if value]
    raise ValueError(
      f"{', '.join(named[:-1])} and {named[-1]} do not fit {data.corpus}: "
      f"{error}"
    ) from None


def make_tokenizer(config: DataConfig, text: str, train: str) -> Tokenizer:
  """Return the tokenizer of a run.

  Args:
    config: names the kind of tokens, and min_count.
    text: the whole corpus. If tokens are characters, all of its characters are
      known.
    train: the training split. If tokens are words, a word is known if it occurs
      there min_count times or more.

  Raises:
    ValueError: there are fewer than two known tokens.
  """
  tokenizer: Tokenizer
  match config.tokenizer:
    case "character":
      tokenizer = CharTokenizer.from_text(text)
    case "word":
      tokenizer = WordTokenizer.from_text(train, config.min_count)
    case _ as unknown:
      assert_never(unknown)
  if tokenizer.size - len(tokenizer.unknown_tokens) < 2:
    raise ValueError(
      f"there is nothing to predict: corpus {config.corpus} has only one "
      f"{tokenizer.unit} to learn, {tokenizer.symbols[0]!r}"
    )
  return tokenizer


def stored_tokenizer(kind: str, fields: dict[str, Any]) -> Tokenizer:
  """Return the tokenizer whose fields a checkpoint holds as JSON.

  Raises:
    KeyError, TypeError, ValueError: they are not the fields of a tokenizer.
  """
  match kind:
    case "character":
      return CharTokenizer("".join(fields["symbols"]))
    case "word":
      return WordTokenizer(tuple(fields["symbols"]), tuple(fields["rare"]))
  raise ValueError(f"tokenizer must be character or word, got {kind!r}")


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
