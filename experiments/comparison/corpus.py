"""The corpus that the cells learn, and statistics of its text."""

from typing import Any, NamedTuple

import numpy as np

from experiments.analysis.text_stats import shuffled, text_stats, words
from experiments.comparison.config import CompareConfig
from lstm_jax.language import (
  Batches,
  CharTokenizer,
  make_batches,
  read_text,
  split,
)


class Corpus(NamedTuple):
  """A text, cut into a training and a validation split."""

  tokenizer: CharTokenizer
  train: np.ndarray  # tokens of the training split, int32 [N]
  val: np.ndarray  # tokens of the validation split
  batches: Batches  # of the training split
  known_words: tuple[set[str], set[str]]  # of the training and validation split
  statistics: dict[str, Any]  # for the record


def read_corpus(config: CompareConfig) -> Corpus:
  """Read, split and describe the corpus.

  Raises:
    ValueError: the file cannot be read or is too short.
  """
  text = read_text(config.corpus)
  tokenizer = CharTokenizer.from_text(text)
  train, val = split(tokenizer.encode(text), config.val_fraction)
  needed = max(config.context, config.gradient_steps) + 1
  if len(val) < needed:
    raise ValueError(
      f"context and gradient_steps need a validation split of at least "
      f"{needed:,} characters, got {len(val):,} of {config.corpus}"
    )
  batches = make_batches(train, config.batch_size, config.seq_len)
  train_text, val_text = tokenizer.decode(train), tokenizer.decode(val)
  known_words = set(words(train_text)), set(words(val_text))
  texts = {
    "training text": train_text,
    "validation text": val_text,
    "validation text, lines shuffled": shuffled(val_text),
  }
  statistics = {
    "num_characters": len(text),
    "vocabulary_size": tokenizer.size,
    "num_val_characters": len(val),
    "steps_per_epoch": batches.num_batches,
    "text_statistics": {
      title: text_stats([content], *known_words)._asdict()
      for title, content in texts.items()
    },
  }
  return Corpus(tokenizer, train, val, batches, known_words, statistics)
