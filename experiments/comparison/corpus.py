"""The corpus that the cells learn, and statistics of its text."""

from typing import Any, NamedTuple

import numpy as np

from experiments.analysis.text_stats import shuffled, text_stats, words
from experiments.comparison.config import CompareConfig
from experiments.trainer import data
from lstm_jax.language import Batches, Tokenizer, make_batches


class Corpus(NamedTuple):
  """A text, cut into a training and a validation split."""

  tokenizer: Tokenizer
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
  text, tokenizer, train, val, *_ = data.read_corpus(config.data)
  needed = max(config.context, config.gradient_steps) + 1
  if len(val.tokens) < needed:
    raise ValueError(
      f"context and gradient_steps need a validation split of at least "
      f"{needed:,} characters, got {len(val.tokens):,} of {config.data.corpus}"
    )
  batching = config.batching
  with data.naming_flags(config.data, batching):
    batches = make_batches(train.tokens, batching.batch_size, batching.seq_len)
  val_text = val.text
  # If the splits meet within a line, drop its rest, unless nothing follows it.
  if not train.text.endswith("\n"):
    val_text = val_text.partition("\n")[2] or val_text
  known_words = set(words(train.text)), set(words(val_text))
  texts = {
    "training text": train.text,
    "validation text": val_text,
    "validation text, lines shuffled": shuffled(val_text),
  }
  statistics = {
    "num_characters": len(text),
    "vocabulary_size": tokenizer.size,
    "num_val_characters": len(val.tokens),
    "steps_per_epoch": batches.num_batches,
    "text_statistics": {
      title: text_stats([content], *known_words)._asdict()
      for title, content in texts.items()
    },
  }
  return Corpus(
    tokenizer, train.tokens, val.tokens, batches, known_words, statistics
  )
