"""Loss of a language model on a text, by three protocols of evaluation.

  cold      consecutive windows of the text, each from the zero state, as a
            model with a context of that length is evaluated
  stateful  one pass over the text, with the state carried from the first token
            to the last
  dynamic   as stateful, and the weights are trained on each segment of the text
            once it is predicted

Each returns the loss of every token but the first, in nats, so that protocols
can be compared position by position; the loss of the text is their mean.

Dynamic evaluation divides the text into segments of S tokens. The weights θ
predict a segment; then, with g the gradient of the segment's mean loss,

  θ ← θ − η g / (r + ε) + λ (θ₀ − θ) ⊙ min(r / mean r, 1 / λ)

where r is the root mean square of each weight's gradient over the training
text, θ₀ are the trained weights, and ε is 0.001 times the mean of r.

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
from lstm_jax.language.model import LanguageModel
from lstm_jax.language.params import LanguageParams
from lstm_jax.language.tokenizer import Tokenizer

CHUNK = 1000  # time steps in one call, which limits the memory of the logits
MAX_LOGITS = 2**21  # logits in one call of cold_nats: 32,768 tokens at V 64
EPSILON = 1e-3  # ε, relative to the mean of r
MAX_NATS = 1e4  # loss of one token above which dynamic evaluation has diverged


class Divergence(ValueError):
  """Dynamic evaluation diverged: the learning rate is too large."""


class DynamicEvalConfig(NamedTuple):
  """Hyperparameters of dynamic evaluation."""

  rate: float  # η, the learning rate
  decay: float  # λ in [0, 1], the decay towards the initial weights
  segment: int = 20  # S, tokens in a segment


def stateful_loss(
  model: LanguageModel, params: LanguageParams, tokens: np.ndarray
) -> float:
  """Return the mean loss of tokens[1:] in one pass, in nats per token.

  It is the mean of `stateful_nats`.
  """
  return float(stateful_nats(model, params, tokens).mean())


def stateful_nats(
  model: LanguageModel, params: LanguageParams, tokens: np.ndarray
) -> np.ndarray:
  """Return the loss of each token given all tokens before it, [N − 1].

  This is stateful evaluation: one pass from the zero state, with the state
  carried over the whole text.

  Args:
    model: the language model.
    params: its weights.
    tokens: the text, int32 [N], N ≥ 2.

  Returns:
    Nats of tokens[1:], float64.

  Raises:
    ValueError: there are fewer than two tokens.
  """
  _check(tokens)
  state, losses = model.initial_state((1,)), []
  for chunk in _windows(tokens, CHUNK):
    nats, state = _nats(model, params, state, chunk[:, None])
    losses.append(np.asarray(nats[:, 0], np.float64))
  return np.concatenate(losses)[: len(tokens) - 1]


def cold_nats(
  model: LanguageModel,
  params: LanguageParams,
  tokens: np.ndarray,
  window: int = 256,
) -> np.ndarray:
  """Return the loss of each token given its window of the text, [N − 1].

  This is evaluation with a cold start: the text is divided into consecutive
  windows, and each begins at the zero state. Window k reads
  tokens[k·W : (k + 1)·W] and predicts the token after each of them, so that its
  first prediction sees one token and its last sees W. The last window may be
  shorter.

  Args:
    model: the language model.
    params: its weights.
    tokens: the text, int32 [N], N ≥ 2.
    window: W ≥ 1, in tokens.

  Returns:
    Nats of tokens[1:], float64.

  Raises:
    ValueError: there are fewer than two tokens, or W is below 1.
  """
  _check(tokens)
  if window < 1:
    raise ValueError(f"a window must have at least 1 token, got {window}")
  windows, losses = _windows(tokens, window), []
  logits = (windows.shape[1] - 1) * len(params.bias)  # of one window
  num_batches = -(-len(windows) // max(1, MAX_LOGITS // logits))
  for batch in _groups(windows, -(-len(windows) // num_batches)):
    state = model.initial_state(batch.shape[:1])
    nats, _ = _nats(model, params, state, batch.T)
    losses.append(np.asarray(nats, np.float64).T.ravel())
  return np.concatenate(losses)[: len(tokens) - 1]


def dynamic_nats(
  model: LanguageModel,
  params: LanguageParams,
  tokens: np.ndarray,
  scale: LanguageParams,
  config: DynamicEvalConfig,
) -> np.ndarray:
  """Return the loss of each token by dynamic evaluation, [N − 1].

  The state is carried over the whole text, as in `stateful_nats`. After each
  segment the weights take a training step on it, as in the module's docstring.

  Args:
    model: the language model.
    params: θ₀, its trained weights; they are not changed.
    tokens: the text, int32 [N], N ≥ 2.
    scale: r, from `gradient_scale`.
    config: learning rate, decay and segment length.

  Returns:
    Nats of tokens[1:], float64.

  Raises:
    ValueError: there are fewer than two tokens, or a number is out of its
      range.
    Divergence: the loss of a token reaches 10,000 nats or is not finite.
  """
  _check(tokens)
  size, rate, decay = config.segment, config.rate, config.decay
  if size < 1 or not rate >= 0 or not 0 <= decay <= 1:
    raise ValueError(
      "segment must be ≥ 1, rate ≥ 0 and decay in [0, 1], "
      f"got {size}, {rate} and {decay}"
    )
  segments = _windows(tokens, size)[..., None]  # [n, S + 1, 1]
  rates = float(rate), float(decay)
  carry, losses = (params, model.initial_state((1,))), []
  for group in _groups(segments, min(len(segments), max(1, CHUNK // size))):
    carry, nats = _scan_segments(model, params, scale, rates, carry, group)
    losses.append(np.asarray(nats, np.float64).ravel())
    if not (losses[-1] < MAX_NATS).all():
      break
  result = np.concatenate(losses)[: len(tokens) - 1]
  diverged = np.flatnonzero(~(result < MAX_NATS))  # also NaN
  if diverged.size:
    raise Divergence(
      f"dynamic evaluation diverges at token {diverged[0] + 1} of "
      f"{len(tokens)}: try a rate below {rate}"
    )
  return result


def gradient_scale(
  model: LanguageModel, params: LanguageParams, epoch: Batches
) -> LanguageParams:
  """Return r, the root mean square of each weight's gradient over batches.

  Args:
    model: the language model.
    params: its weights.
    epoch: the batches of the training text.
  """
  state = model.initial_state(epoch.tokens.shape[1:])
  squares = jax.tree.map(jnp.zeros_like, params)
  lengths = np.diff(epoch.cuts)
  # The last batch is filled up, so that one compiled program reads them all.
  rest = lengths.max() - lengths[-1]
  filled = np.pad(epoch.tokens, [(0, rest), (0, 0)])
  ends = [*epoch.cuts[1:-1], epoch.cuts[-1] + rest]
  spans = zip(epoch.cuts[:-1], ends, lengths, strict=True)
  for first, last, length in spans:
    rows = filled[first : last + 1]
    squares, state = _add_squares(model, params, squares, state, rows, length)
  count = epoch.num_batches
  return jax.tree.map(lambda s: jnp.sqrt(s / count), squares)


def nats_per_character(tokenizer: Tokenizer, text: str, nats: float) -> float:
  """Return the loss of a text in nats per character.

  The figure makes models over words and over characters comparable: to the loss
  of the tokens it adds the cost of spelling out each unknown word. The first
  token is not predicted and counts as one character, so that for tokens that
  are characters this is the mean over tokens. The text's characters are all
  counted, also the spaces that `normalize` removes before words are tokens.

  Args:
    tokenizer: the tokenizer of the text.
    text: the text.
    nats: the sum of the losses of the text's tokens[1:], in nats.

  Raises:
    ValueError: the text has fewer than two characters.
  """
  if len(text) < 2:
    raise ValueError(f"a loss needs at least 2 characters, got {len(text)}")
  spelling = float(tokenizer.spelling_nats(text)[1:].sum())
  return (nats + spelling) / (len(text) - 1)


def _check(tokens: np.ndarray) -> None:
  if len(tokens) < 2:
    raise ValueError(f"a loss needs at least 2 tokens, got {len(tokens)}")


def _windows(tokens: np.ndarray, length: int) -> np.ndarray:
  """Return windows of W + 1 tokens, each from the last token of the one before.

  The last window is filled up with token 0, so that one compiled program reads
  them all; what it predicts there is to be cut off.

  Args:
    tokens: the text, int32 [N].
    length: W, which a shorter text limits to N − 1.

  Returns:
    int32 [n, W + 1].
  """
  length = min(length, len(tokens) - 1)
  num_windows = -(-(len(tokens) - 1) // length)
  filled = np.zeros(num_windows * length + 1, tokens.dtype)
  filled[: len(tokens)] = tokens
  starts = np.arange(num_windows) * length
  return filled[starts[:, None] + np.arange(length + 1)]


def _groups(windows: np.ndarray, size: int) -> np.ndarray:
  """Return windows [n, ...] in groups of m, [n / m, m, ...].

  The last group is filled up with windows of zeros, for the same reason.
  """
  missing = -len(windows) % size
  filled = np.pad(windows, [(0, missing)] + [(0, 0)] * (windows.ndim - 1))
  return filled.reshape(-1, size, *windows.shape[1:])


def _predict(model, params, state, tokens):
  """Return (nats [T, ...] of tokens[1:], state) for tokens [T + 1, ...]."""
  state, logits = model.apply(params, state, tokens[:-1])
  return cross_entropy(logits, tokens[1:]), state


_nats = partial(jax.jit, static_argnums=0)(_predict)


@partial(jax.jit, static_argnums=0)
def _add_squares(model, params, squares, state, tokens, length):
  """Add the squares of the gradient of the mean loss of `length` time steps."""

  def mean_nats(params, state):
    nats, state = _predict(model, params, state, tokens)
    counts = (jnp.arange(len(nats)) < length).astype(nats.dtype)
    return (nats.mean(axis=1) * counts).sum() / counts.sum(), state

  gradient, state = jax.grad(mean_nats, has_aux=True)(params, state)
  return jax.tree.map(lambda s, g: s + g * g, squares, gradient), state


@partial(jax.jit, static_argnums=0)
def _scan_segments(model, initial, scale, rates, carry, segments):
  """Scan over segments: predict each, then take a training step on it."""
  rate, decay = rates
  leaves = jax.tree.leaves(scale)
  mean = sum(leaf.sum() for leaf in leaves) / sum(leaf.size for leaf in leaves)

  def step(theta, gradient, theta_0, r):
    pull = jnp.minimum(decay * r / mean, 1) * (theta_0 - theta)
    return theta - rate * gradient / (r + EPSILON * mean) + pull

  def mean_nats(params, state, tokens):
    nats, state = _predict(model, params, state, tokens)
    return nats.mean(), (nats[:, 0], state)

  def body(carry, tokens):
    params, state = carry
    gradient, (nats, state) = jax.grad(mean_nats, has_aux=True)(
      params, state, tokens
    )
    params = jax.tree.map(step, params, gradient, initial, scale)
    return (params, state), nats

  return lax.scan(body, carry, segments)
