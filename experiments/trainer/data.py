"""The text of a run: its corpus, cut into splits and into tokens."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from experiments.trainer.config import DataConfig
from lstm_jax.language import (
  BatchingConfig,
  CharTokenizer,
  Tokenizer,
  WordTokenizer,
  read_text,
  split,
)


class Split(NamedTuple):
  """A part of the corpus."""

  text: str
  tokens: np.ndarray  # int32 [N]


class Corpus(NamedTuple):
  """The corpus of a run, whose splits follow one another."""

  text: str
  tokenizer: Tokenizer
  train: Split
  val: Split  # its loss chooses the best weights
  test: Split | None  # evaluated once, at the end

  @property
  def sha256(self) -> str:
    """Hash of the whole text."""
    return text_sha256(self.text)


def text_sha256(text: str) -> str:
  """Return the SHA-256 of a text in UTF-8."""
  return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def read_corpus(config: DataConfig) -> Corpus:
  """Read, split and tokenize the corpus of a run.

  Raises:
    ValueError: it cannot be read, is too short to be split, or has fewer than
      two distinct tokens to predict.
  """
  text = read_text(config.corpus)
  rest, test = text, None
  if config.test_fraction:
    rest, test = split(text, config.test_fraction)
  train, val = split(rest, config.val_fraction)
  tokenizer = make_tokenizer(config, text, train)
  train_split, val_split = (
    Split(part, tokenizer.encode(part)) for part in (train, val)
  )
  test_split = None if test is None else Split(test, tokenizer.encode(test))
  for name, part in (("validation", val_split), ("test", test_split)):
    if part and len(part.tokens) < 2:
      raise ValueError(
        f"the corpus is too short: its {name} split must have at least 2 "
        f"tokens, got {len(part.tokens)}"
      )
  return Corpus(text, tokenizer, train_split, val_split, test_split)


@contextmanager
def naming_flags(data: DataConfig, batching: BatchingConfig) -> Iterator[None]:
  """Have a ValueError of batches name the flags that decide them."""
  try:
    yield
  except ValueError as error:
    raise ValueError(
      f"--batch_size={batching.batch_size}, --seq_len={batching.seq_len}, "
      f"--val_fraction={data.val_fraction} and "
      f"--test_fraction={data.test_fraction} do not fit {data.corpus}: {error}"
    ) from None


def make_tokenizer(config: DataConfig, text: str, train: str) -> Tokenizer:
  """Return the tokenizer of a run.

  Args:
    config: names the kind of tokens, and how often a word must occur.
    text: the whole corpus; all of its characters are known.
    train: the training split; a word is known if it occurs there.

  Raises:
    ValueError: there are fewer than two known tokens.
  """
  tokenizer: Tokenizer
  if config.tokenizer == "word":
    tokenizer = WordTokenizer.from_text(train, config.min_count)
  else:
    tokenizer = CharTokenizer.from_text(text)
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
  """Return the token of a line break, or the first token, [1]."""
  symbols = tokenizer.symbols
  return np.array([symbols.index("\n") if "\n" in symbols else 0], np.int32)
