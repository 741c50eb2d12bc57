"""How a run says what its tokens are and what they cost, in one line."""

import math

import numpy as np

from lstm_jax.language import Tokenizer
from lstm_jax.language.evaluate import nats_per_character


def loss_title(nats: float, vocabulary: Tokenizer) -> str:
  """Return a loss as a title says it: of words, their perplexity."""
  if vocabulary.unit == "character":
    return f"{nats:.4f} nats per character"
  return f"perplexity {perplexity(nats):,.1f} per {vocabulary.unit}"


def perplexity(nats: float) -> float:
  """Return exp(nats); infinity where that is no float."""
  return float(np.exp(nats))


def tokens_told(vocabulary: Tokenizer, held_out: np.ndarray) -> str:
  """Return how many tokens are known, and how many are held out."""
  if not vocabulary.unknown_tokens:
    return f"{vocabulary.size} distinct, {len(held_out):,} held out"
  known = vocabulary.size - len(vocabulary.unknown_tokens)
  unknown = np.isin(held_out, vocabulary.unknown_tokens).mean()
  return (
    f"{known:,} {vocabulary.unit}s known, {len(held_out):,} held out, "
    f"{unknown:.1%} of them unknown"
  )


def losses_told(vocabulary: Tokenizer, text: str, nats: float) -> str:
  """Return the mean nats of a text's tokens, and what that is per character."""
  total = nats * (len(vocabulary.encode(text)) - 1)
  spelt = nats_per_character(vocabulary, text, total)
  losses = f"{nats:.4f} nats per {vocabulary.unit}"
  if vocabulary.unknown_tokens:
    losses += (
      f", perplexity {perplexity(nats):,.1f}, {spelt:.4f} nats per character "
      "with unknown words spelt"
    )
  return f"{losses} ({spelt / math.log(2):.4f} bits)"
