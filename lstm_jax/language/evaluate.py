"""Held-out loss: every prediction of a text, in one pass, the state carried."""

from functools import partial

import jax
import numpy as np

from lstm_jax.language.model import LanguageModel, LanguageParams

CHUNK = 1024  # steps a call: bounds the memory that the logits take


def stateful_loss(
  model: LanguageModel, params: LanguageParams, tokens: np.ndarray
) -> float:
  """Return the mean nats per token of tokens[1:], each given all before it.

  The model reads from the zero state, as one stream, and its state is carried
  from the first token to the last.

  Args:
    model: the language model.
    params: its weights.
    tokens: the text, int32 [N], N ≥ 2.

  Raises:
    ValueError: there are fewer than two tokens.
  """
  predictions = len(tokens) - 1
  if predictions < 1:
    raise ValueError(f"a loss needs at least 2 tokens, got {len(tokens)}")
  state = model.initial_state((1,))
  nats = 0.0
  for start in range(0, predictions, CHUNK):
    chunk = tokens[start : start + CHUNK + 1, None]
    mean, state = _loss(model, params, state, chunk[:-1], chunk[1:])
    nats += float(mean) * (len(chunk) - 1)
  return nats / predictions


@partial(jax.jit, static_argnums=0)
def _loss(model, params, state, tokens, targets):
  return model.loss(params, state, tokens, targets)
