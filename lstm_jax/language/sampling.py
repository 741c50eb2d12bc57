"""Sampling from a language model: the continuation of a prompt.

Each token is drawn from softmax(y/τ) with temperature τ; τ = 0 takes the most
likely token (greedy). Top-k sampling keeps the k most likely tokens. Top-p or
nucleus sampling (Holtzman et al. 2020, The curious case of neural text
degeneration) keeps the smallest set of most likely tokens whose probabilities
at this temperature sum to p or more.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lstm_jax.language.model import LanguageModel
from lstm_jax.language.params import LanguageParams

TINY = float(np.finfo(np.float32).tiny)  # lower temperatures are 0 in float32


def sample(
  model: LanguageModel,
  params: LanguageParams,
  key: jax.Array,
  prompt: np.ndarray,
  length: int,
  *,
  num_samples: int = 1,
  temperature: float = 1.0,
  top_k: int | None = None,
  top_p: float | None = None,
  suppress_tokens: tuple[int, ...] = (),
) -> np.ndarray:
  """Sample tokens that continue a prompt.

  Args:
    model: the language model.
    params: its weights.
    key: a typed PRNG key.
    prompt: the tokens to continue, int [P], P ≥ 1; not part of the result.
    length: n, the number of tokens to draw.
    num_samples: N, the number of continuations.
    temperature: τ ≥ 0; 0 is greedy.
    top_k: k ≥ 1, or None for all tokens.
    top_p: 0 < p ≤ 1, or None for all tokens.
    suppress_tokens: tokens that are never drawn, such as the unknown tokens of
      a tokenizer. The probabilities of the others are scaled to sum to 1.

  Returns:
    int32 [N, n].

  Raises:
    ValueError: the prompt is empty, a number is out of its range, or all tokens
      are suppressed.
  """
  if np.ndim(prompt) != 1 or len(prompt) < 1:
    raise ValueError(
      f"the prompt must be [P] with P ≥ 1, got {np.shape(prompt)}"
    )
  if length < 1 or num_samples < 1:
    raise ValueError(
      "length and num_samples must be at least 1, "
      f"got {length} and {num_samples}"
    )
  if not 0 <= temperature < float("inf"):
    raise ValueError(f"temperature must be finite and ≥ 0, got {temperature}")
  if top_k is not None and top_k < 1:
    raise ValueError(f"top_k must be ≥ 1, got {top_k}")
  if top_p is not None and not 0 < top_p <= 1:
    raise ValueError(f"top_p must be in (0, 1], got {top_p}")
  if len(set(suppress_tokens)) >= len(params.bias):
    raise ValueError(
      f"suppress_tokens must leave at least one of {len(params.bias)} tokens, "
      "got all of them"
    )
  prompts = np.repeat(np.asarray(prompt, np.int32)[:, None], num_samples, 1)
  options = int(length), float(temperature), top_k, top_p, suppress_tokens
  return np.asarray(_sample(model, options, params, key, prompts))


def keep_top_k(logits: jax.Array, k: int) -> jax.Array:
  """Return logits [..., V] with −∞ below the k-th largest."""
  kth = lax.top_k(logits, min(k, logits.shape[-1]))[0][..., -1:]
  return jnp.where(logits >= kth, logits, -jnp.inf)


def keep_top_p(logits: jax.Array, p: float) -> jax.Array:
  """Return logits [..., V] with −∞ outside the nucleus of probability p."""
  descending = jnp.flip(jnp.sort(logits, axis=-1), axis=-1)
  probability = jax.nn.softmax(descending, axis=-1)
  before = jnp.cumsum(probability, axis=-1) - probability
  last = jnp.sum(before < p, axis=-1, keepdims=True).clip(min=1) - 1
  threshold = jnp.take_along_axis(descending, last, axis=-1)
  return jnp.where(logits >= threshold, logits, -jnp.inf)


@partial(jax.jit, static_argnums=(0, 1))
def _sample(model, options, params, key, prompts):
  length, temperature, top_k, top_p, suppress_tokens = options

  def draw(key, logits):
    if suppress_tokens:
      logits = logits.at[..., list(suppress_tokens)].set(-jnp.inf)
    if temperature < TINY:
      return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = (logits - logits.max(axis=-1, keepdims=True)) / temperature
    if top_k is not None:
      logits = keep_top_k(logits, top_k)
    if top_p is not None:
      logits = keep_top_p(logits, top_p)
    return jax.random.categorical(key, logits).astype(jnp.int32)

  def body(carry, key):
    state, logits = carry
    tokens = draw(key, logits)
    state, logits = model.apply(params, state, tokens[None])
    return (state, logits[0]), tokens

  state = model.initial_state(prompts.shape[1:])
  state, logits = model.apply(params, state, prompts)
  keys = jax.random.split(key, length)
  _, tokens = lax.scan(body, (state, logits[-1]), keys)
  return tokens.T
