"""Dynamic evaluation: the weights keep learning from the text they predicted.

The text is divided into segments of S tokens. The weights θ predict a segment;
then, with g the gradient of the segment's mean loss,

  θ ← θ − η g / (r + ε) + min(λ r / r̄, 1) ⊙ (θ₀ − θ)

where r is the root mean square of each weight's gradient over the batches of
the training text, r̄ its mean over all weights, θ₀ are the trained weights, and
ε = 0.001 r̄. The gradient is truncated at the segment's beginning.

Reference: Krause, Kahembwe, Murray and Renals (2018), Dynamic evaluation of
neural sequence models: the rule "RMS + RMS global prior".
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lstm_jax.cells.checks import as_number, check_count
from lstm_jax.cells.precision import cast_like, upcast
from lstm_jax.language.arguments import vocabulary_size_of
from lstm_jax.language.batching import Batches
from lstm_jax.language.evaluate import (
  CHUNK,
  check_tokens,
  cut_windows,
  group_windows,
  next_power_of_2,
  predict,
)
from lstm_jax.language.loss import cross_entropy
from lstm_jax.language.model import LanguageModel
from lstm_jax.language.params import LanguageParams
from lstm_jax.language.programs import per_model
from lstm_jax.language.readout import MAX_LOGITS
from lstm_jax.language.tokens import check_range

EPSILON = 1e-3  # ε, relative to the mean of r
MAX_NATS = 1e4  # at this loss of one token, dynamic evaluation has diverged


class Divergence(ValueError):
  """Dynamic evaluation diverged, as it does at too large a learning rate."""


class DynamicEvalConfig(NamedTuple):
  """Hyperparameters of dynamic evaluation."""

  rate: float  # η, the learning rate
  decay: float  # λ in [0, 1], the decay towards the trained weights θ₀
  segment: int = 20  # S, tokens in a segment


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
    ValueError: params are not `LanguageParams`; tokens are not [N] with N ≥ 2,
      or not all integers in [0, V); the segment is not an integer ≥ 1, the rate
      not in [0, inf) or the decay not in [0, 1]; or scale is that of other
      weights.
    Divergence: the loss of a token reaches 10,000 nats or is not finite.
  """
  nats = _scan(model, params, tokens, scale, config, full=False)
  return nats.astype(np.float64)


def dynamic_log_probs(
  model: LanguageModel,
  params: LanguageParams,
  tokens: np.ndarray,
  scale: LanguageParams,
  config: DynamicEvalConfig,
) -> np.ndarray:
  """Return the distribution predicted at each place by dynamic evaluation.

  Its entry [k, tokens[k + 1]] is the negative of entry k of `dynamic_nats`,
  which has the same arguments and raises the same errors.

  Returns:
    Logarithms of the probabilities of every token, [N − 1, V].
  """
  return _scan(model, params, tokens, scale, config, full=True)


def _scan(model, params, tokens, scale, config, full):
  """Return nats [N − 1], or the distributions [N − 1, V] if `full`."""
  check_tokens(tokens, vocabulary_size_of(params))
  tokens = np.asarray(tokens, np.int32)
  rate = as_number("rate", config.rate)
  decay = as_number("decay", config.decay)
  size = check_count("segment", config.segment)
  if not 0 <= rate < math.inf or not 0 <= decay <= 1:
    raise ValueError(
      f"rate must be in [0, inf) and decay in [0, 1], got {rate} and {decay}"
    )
  if _form(scale) != _form(params):
    raise ValueError("scale must be from gradient_scale of the same weights")
  segments = cut_windows(tokens, size)[..., None]  # [n, S + 1, 1]
  carry, parts, losses = (upcast(params), model.initial_state((1,))), [], []
  # A power of 2 for a short text, so that many lengths share a few programs.
  count = min(next_power_of_2(len(segments)), max(1, CHUNK // size))
  for group in group_windows(segments, count):
    carry, (nats, log_probs) = _scan_segments(model)(
      full, params, scale, (rate, decay), carry, group
    )
    losses.append(np.asarray(nats).ravel())
    if full:
      parts.append(np.asarray(log_probs).reshape(-1, log_probs.shape[-1]))
    if not (losses[-1] < MAX_NATS).all():
      break
  result = np.concatenate(losses)[: len(tokens) - 1]
  diverged = np.flatnonzero(~(result < MAX_NATS))  # also NaN
  if diverged.size:
    advice = f"try a rate below {rate}" if rate else "even at a rate of 0"
    place = diverged[0] + 2  # counted from 1; the first token has no loss
    raise Divergence(
      f"dynamic evaluation diverges at token {place} of {len(tokens)}: {advice}"
    )
  return np.concatenate(parts)[: len(tokens) - 1] if full else result


def _form(params: Any) -> Any:
  """Return the types and the shapes of a tree of arrays."""
  leaves, structure = jax.tree.flatten(params)
  return structure, [*map(np.shape, leaves)]


def gradient_scale(
  model: LanguageModel, params: LanguageParams, epoch: Batches
) -> LanguageParams:
  """Return r, the root mean square of each weight's gradient over batches.

  It is in float32, or in the weights' dtype where that is wider.

  Args:
    model: the language model.
    params: its weights.
    epoch: the batches of the training text.

  Raises:
    ValueError: params are not `LanguageParams`, or tokens are not all integers
      in [0, V).
  """
  vocabulary_size = vocabulary_size_of(params)
  check_range("tokens", epoch.tokens, vocabulary_size)
  state = model.initial_state(epoch.tokens.shape[1:])
  squares = upcast(jax.tree.map(jnp.zeros_like, params))
  lengths = np.diff(epoch.cuts)
  # The last batch is padded to the longest length, because a batch of another
  # length would need a compiled program of its own. With more logits than one
  # chunk of the readout may have, the loss is that of `model.loss`, which does
  # not store them all: it takes no padding.
  logits = int(lengths.max()) * epoch.tokens.shape[1] * vocabulary_size
  padded = logits <= MAX_LOGITS
  rest = lengths.max() - lengths[-1] if padded else 0
  filled = np.pad(epoch.tokens, [(0, rest), (0, 0)])
  ends = [*epoch.cuts[1:-1], epoch.cuts[-1] + rest]
  spans = zip(epoch.cuts[:-1], ends, lengths, strict=True)
  for first, last, length in spans:
    rows = filled[first : last + 1]
    squares, state = _add_squares(model)(
      params, squares, state, rows, length if padded else None
    )
  count = epoch.num_batches
  return jax.tree.map(lambda s: jnp.sqrt(s / count), squares)


@per_model
def _add_squares(model, params, squares, state, tokens, length):
  """Add the squares of the gradient of the mean loss of `length` time steps.

  A length of None stands for all of them.
  """

  def mean_nats(params, state):
    if length is None:
      return model.loss(params, state, tokens[:-1], tokens[1:])
    nats, state = predict(model, params, state, tokens)
    mask = (jnp.arange(len(nats)) < length).astype(nats.dtype)
    return (nats.mean(axis=1) * mask).sum() / mask.sum(), state

  gradient, state = jax.grad(mean_nats, has_aux=True)(params, state)
  return jax.tree.map(lambda s, g: s + g * g, squares, upcast(gradient)), state


@partial(per_model, num_static=1)
def _scan_segments(model, full, trained, scale, numbers, carry, segments):
  """Scan over segments: predict each, then take a training step on it.

  Returns (carry, (nats [n, S], log probabilities [n, S, V] or None)).
  """
  rate, decay = numbers
  leaves = jax.tree.leaves(scale)
  mean = sum(leaf.sum() for leaf in leaves) / sum(leaf.size for leaf in leaves)
  mean = jnp.where(mean > 0, mean, 1)  # r̄ is 0 if every gradient was 0

  def step(theta, gradient, theta_0, r):
    gradient, theta_0 = upcast((gradient, theta_0))
    pull = jnp.minimum(decay * r / mean, 1) * (theta_0 - theta)
    return theta - rate * gradient / (r + EPSILON * mean) + pull

  def mean_nats(params, state, tokens):
    if len(tokens) == 2:
      # For one time step, `apply` may compute the table W_e W_x, anew for each
      # segment as the weights change. `loss` does not, nor does `apply` for two
      # time steps; XLA removes this call unless `full` needs its logits.
      nats, after = model.loss(params, state, tokens[:-1], tokens[1:])
      logits = model.apply(params, state, tokens)[1][:-1]
      nats_of_each = nats[None]
    else:
      after, logits = model.apply(params, state, tokens[:-1])
      nats_of_each = cross_entropy(logits, tokens[1:])[:, 0]
      nats = nats_of_each.mean()
    log_probs = jax.nn.log_softmax(logits)[:, 0] if full else None
    return nats, ((nats_of_each, log_probs), after)

  def body(carry, tokens):
    thetas, state = carry  # thetas upcast: bfloat16 would lose small steps
    gradient, (predicted, state) = jax.grad(mean_nats, has_aux=True)(
      cast_like(thetas, trained), state, tokens
    )
    thetas = jax.tree.map(step, thetas, gradient, trained, scale)
    return (thetas, state), predicted

  return lax.scan(body, carry, segments)
