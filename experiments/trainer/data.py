"""What a run reads: its corpus, cut into parts and into tokens."""

import hashlib
from typing import NamedTuple

import numpy as np

from experiments.trainer.config import TrainConfig, make_vocabulary
from lstm_jax.language import Tokenizer, read_text, split


class Part(NamedTuple):
  """A part of the corpus."""

  text: str
  tokens: np.ndarray  # int32 [N]


class Corpus(NamedTuple):
  """A corpus as a run reads it."""

  text: str
  vocabulary: Tokenizer
  training: Part
  watched: Part  # whose loss chooses the best: development or held-out text
  held_out: Part

  @property
  def sha256(self) -> str:
    """Of the whole text."""
    return sha256_of(self.text)


def sha256_of(text: str) -> str:
  """Return the SHA-256 of a text in UTF-8."""
  return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def read_again(corpus: str, sha256: str | None) -> str:
  """Return the corpus of a run, given the file and the hash of then, if kept.

  Raises:
    ValueError: it cannot be read, or has changed since the run began: what is
      held out of it now may be what the run has learnt.
  """
  text = read_text(corpus)
  if sha256 not in (None, sha256_of(text)):
    raise ValueError(f"corpus {corpus} has changed since the run began")
  return text


def read_corpus(config: TrainConfig) -> Corpus:
  """Read, cut and encode the corpus of a run.

  Raises:
    ValueError: it cannot be read, is too short to be cut, or has nothing to
      choose between.
  """
  text = read_text(config.corpus)
  learnt, held_out = split(text, config.val_fraction)
  watched = held_out
  if config.development:
    learnt, watched = split(learnt, config.development)
  vocabulary = make_vocabulary(config, text, learnt)
  parts = [Part(t, vocabulary.encode(t)) for t in (learnt, watched, held_out)]
  corpus = Corpus(text, vocabulary, *parts)
  shortest = [len(part.tokens) for part in (corpus.held_out, corpus.watched)]
  if min(shortest) < 2:
    raise ValueError(
      f"the corpus is too short: what is held out has {shortest[0]} tokens, "
      f"what is watched {shortest[1]}, and each needs at least 2"
    )
  return corpus
