"""Held-out loss of every prediction of a text, by three protocols.

  cold      windows that follow one another, each from the zero state: what a
            model with a context of that length sees
  stateful  one pass, the state carried from the first token to the last
  dynamic   as stateful, and the weights go on learning from what has been read

Each gives the nats of tokens[1:], every one of them once, so that protocols
compare position by position; the loss is their mean. Dynamic evaluation reads
segments of S tokens. Those of a segment are predicted with the weights θ before
it; then, with g the gradient of its mean loss,

  θ ← θ − η g / (r + ε) + λ (θ₀ − θ) ⊙ min(r / mean r, 1 / λ)

where r is the root mean square of each weight's gradient over the training
text, θ₀ are the weights at the start, and ε is 0.001 of the mean of r.

Reference: Krause, Kahembwe, Murray and Renals (2018), Dynamic evaluation of
neural sequence models, section 4.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lstm_jax.language.batching import Batches
from lstm_jax.language.loss import cross_entropy
from lstm_jax.language.model import LanguageModel, LanguageParams
from lstm_jax.language.text import Tokenizer

CHUNK = 1024  # predictions a call: bounds the memory that the logits take
LOGITS = 2**21  # of cold windows at once: 32,768 predictions at V 64
EPSILON = 1e-3
ABSURD = 1e4  # nats of one prediction: no weights that still predict have it


class Divergence(ValueError):
  """Weights that went on learning until they predicted nothing."""


class DynamicEvalConfig(NamedTuple):
  """How dynamic evaluation learns."""

  rate: float  # η
  decay: float  # λ, in [0, 1]
  segment: int = 20  # S


def stateful_loss(
  model: LanguageModel, params: LanguageParams, tokens: np.ndarray
) -> float:
  """Return the mean of `stateful_nats`."""
  return float(stateful_nats(model, params, tokens).mean())


def stateful_nats(
  model: LanguageModel, params: LanguageParams, tokens: np.ndarray
) -> np.ndarray:
  """Return the nats of tokens[1:], each given all before it, [N − 1].

  Args:
    model: the language model; it reads from the zero state.
    params: its weights.
    tokens: the text, int32 [N], N ≥ 2.

  Raises:
    ValueError: there are fewer than two tokens.
  """
  _check(tokens)
  state, found = model.initial_state((1,)), []
  for start in range(0, len(tokens) - 1, CHUNK):
    chunk = tokens[start : start + CHUNK + 1, None]
    nats, state = _nats(model, params, state, chunk)
    found.append(np.asarray(nats[:, 0], np.float64))
  return np.concatenate(found)


def cold_nats(
  model: LanguageModel,
  params: LanguageParams,
  tokens: np.ndarray,
  window: int = 256,
) -> np.ndarray:
  """Return the nats of tokens[1:], each given its window, [N − 1].

  Window k predicts tokens[k·W + 1 : (k + 1)·W + 1] from the W tokens before
  them, its first from one; the last window may be shorter.

  Args:
    model: the language model; it reads every window from the zero state.
    params: its weights.
    tokens: the text, int32 [N], N ≥ 2.
    window: W ≥ 1.

  Raises:
    ValueError: there are fewer than two tokens, or W is below 1.
  """
  _check(tokens)
  if window < 1:
    raise ValueError(f"a window must have at least 1 token, got {window}")
  whole = (len(tokens) - 1) // window
  starts, rows = np.arange(whole) * window, np.arange(window + 1)[:, None]
  at_once, found = max(1, LOGITS // (window * len(params.bias))), []
  for first in range(0, whole, at_once):
    chunk = tokens[starts[first : first + at_once] + rows]
    state = model.initial_state(chunk.shape[1:])
    nats, _ = _nats(model, params, state, chunk)
    found.append(np.asarray(nats, np.float64).T.ravel())
  rest = tokens[whole * window :, None]
  if len(rest) > 1:
    nats, _ = _nats(model, params, model.initial_state((1,)), rest)
    found.append(np.asarray(nats[:, 0], np.float64))
  return np.concatenate(found)


def dynamic_nats(
  model: LanguageModel,
  params: LanguageParams,
  tokens: np.ndarray,
  scale: LanguageParams,
  how: DynamicEvalConfig,
) -> np.ndarray:
  """Return the nats of tokens[1:] under weights that go on learning, [N − 1].

  Args:
    model: the language model; it reads from the zero state.
    params: its weights at the start; they are not changed.
    tokens: the text, int32 [N], N ≥ 2.
    scale: r, from `gradient_scale`.
    how: rate, decay and segment.

  Raises:
    ValueError: there are fewer than two tokens, or a number is out of its
      range.
    Divergence: the rate makes a prediction cost 10,000 nats, infinity or NaN.
  """
  _check(tokens)
  if how.segment < 1 or not how.rate >= 0 or not 0 <= how.decay <= 1:
    raise ValueError(
      "a segment must be ≥ 1, the rate ≥ 0 and the decay in [0, 1], "
      f"got {how.segment}, {how.rate} and {how.decay}"
    )
  size = how.segment
  whole = (len(tokens) - 1) // size
  starts, row = np.arange(whole) * size, np.arange(size + 1)[None, :]
  segments = tokens[starts[:, None] + row][..., None]  # [n, S + 1, 1]
  rates = float(how.rate), float(how.decay)
  carry = params, model.initial_state((1,))
  (last, state), nats = _learning(model, params, scale, rates, carry, segments)
  found = [np.asarray(nats, np.float64).ravel()]
  rest = tokens[whole * size :, None]
  if len(rest) > 1:
    nats, _ = _nats(model, last, state, rest)
    found.append(np.asarray(nats[:, 0], np.float64))
  result = np.concatenate(found)
  wrong = np.flatnonzero(~(result < ABSURD))  # NaN is not less
  if wrong.size:
    first = int(wrong[0])
    raise Divergence(
      f"dynamic evaluation diverges at token {first + 1} of {len(tokens)}: "
      f"a rate below {how.rate} may not"
    )
  return result


def gradient_scale(
  model: LanguageModel, params: LanguageParams, streams: Batches
) -> LanguageParams:
  """Return r, the root mean square of each weight's gradient, over blocks."""
  state = model.initial_state(streams.tokens.shape[1:])
  squares = jax.tree.map(jnp.zeros_like, params)
  for block in streams.batches():
    squares, state = _add_squares(model, params, squares, state, *block)
  count = streams.num_batches
  return jax.tree.map(lambda s: jnp.sqrt(s / count), squares)


def nats_per_character(vocabulary: Tokenizer, text: str, nats: float) -> float:
  """Return what a model pays for each character of text, in nats.

  To what it pays for its tokens comes what it costs to spell those that stand
  for unknown words. The first token is given, not predicted, and counts as one
  character: so this is the mean over tokens where tokens are characters, and a
  model over words compares with it. Blanks that `words.normal` drops count.

  Args:
    vocabulary: what the text was encoded by.
    text: the text.
    nats: the sum over tokens[1:] of the text's tokens.

  Raises:
    ValueError: the text has fewer than two characters.
  """
  if len(text) < 2:
    raise ValueError(f"a loss needs at least 2 characters, got {len(text)}")
  return (nats + float(vocabulary.spelling(text)[1:].sum())) / (len(text) - 1)


def _check(tokens: np.ndarray) -> None:
  if len(tokens) < 2:
    raise ValueError(f"a loss needs at least 2 tokens, got {len(tokens)}")


def _read(model, params, state, tokens):
  """Return (nats [T, ...], state) of tokens [T + 1, ...]."""
  state, logits = model.apply(params, state, tokens[:-1])
  return cross_entropy(logits, tokens[1:]), state


_nats = partial(jax.jit, static_argnums=0)(_read)


@partial(jax.jit, static_argnums=0)
def _add_squares(model, params, squares, state, tokens, targets):
  gradient_of = jax.grad(model.loss, has_aux=True)
  gradient, state = gradient_of(params, state, tokens, targets)
  return jax.tree.map(lambda s, g: s + g * g, squares, gradient), state


@partial(jax.jit, static_argnums=0)
def _learning(model, start, scale, rates, carry, segments):
  """Scan over segments: read one with the weights so far, then learn it."""
  rate, decay = rates
  leaves = jax.tree.leaves(scale)
  mean = sum(leaf.sum() for leaf in leaves) / sum(leaf.size for leaf in leaves)

  def learn(theta, gradient, first, r):
    pull = jnp.minimum(decay * r / mean, 1) * (first - theta)
    return theta - rate * gradient / (r + EPSILON * mean) + pull

  def mean_nats(params, state, tokens):
    nats, state = _read(model, params, state, tokens)
    return nats.mean(), (nats[:, 0], state)

  def body(carry, tokens):
    params, state = carry
    gradient, (nats, state) = jax.grad(mean_nats, has_aux=True)(
      params, state, tokens
    )
    return (jax.tree.map(learn, params, gradient, start, scale), state), nats

  return lax.scan(body, carry, segments)
