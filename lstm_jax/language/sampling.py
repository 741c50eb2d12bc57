"""Sampling: what a language model writes after a prompt.

Temperature τ draws from softmax(y/τ); τ → 0 is the likeliest token (greedy).
Top-k keeps the k likeliest tokens. Top-p, the nucleus of Holtzman et al.
(2020, The curious case of neural text degeneration), keeps the fewest likeliest
tokens whose probabilities at this temperature add up to p or more.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lstm_jax.language.model import LanguageModel, LanguageParams

TINY = float(np.finfo(np.float32).tiny)  # a temperature that is 0 to float32


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
  never: tuple[int, ...] = (),
) -> np.ndarray:
  """Return tokens that continue the prompt; the same key, the same tokens.

  Args:
    model: the language model.
    params: its weights.
    key: a typed PRNG key.
    prompt: the tokens to continue, int [P], P ≥ 1; not part of the result.
    length: n, how many tokens to draw.
    num_samples: N, how many continuations, drawn at once.
    temperature: τ ≥ 0; 0 is greedy.
    top_k: k ≥ 1, or None for all tokens.
    top_p: 0 < p ≤ 1, or None for all tokens.
    never: tokens that are not drawn, such as a vocabulary's stand-ins. Those
      that are have the probabilities that the model gives them without.

  Returns:
    int32 [N, n].

  Raises:
    ValueError: the prompt is empty, a number is out of its range, or every
      token is never to be drawn.
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
  if len(set(never)) >= len(params.bias):
    raise ValueError(f"never leaves none of {len(params.bias)} tokens to draw")
  prompts = np.repeat(np.asarray(prompt, np.int32)[:, None], num_samples, 1)
  options = int(length), float(temperature), top_k, top_p, never
  return np.asarray(_sample(model, options, params, key, prompts))


def keep_top_k(logits: jax.Array, k: int) -> jax.Array:
  """Return logits [..., V], −∞ but for the k largest (more where they tie)."""
  kth = lax.top_k(logits, min(k, logits.shape[-1]))[0][..., -1:]
  return jnp.where(logits >= kth, logits, -jnp.inf)


def keep_top_p(logits: jax.Array, p: float) -> jax.Array:
  """Return logits [..., V], −∞ outside the nucleus of probability p."""
  descending = jnp.flip(jnp.sort(logits, axis=-1), axis=-1)
  probability = jax.nn.softmax(descending, axis=-1)
  before = jnp.cumsum(probability, axis=-1) - probability
  last = jnp.sum(before < p, axis=-1, keepdims=True).clip(min=1) - 1
  threshold = jnp.take_along_axis(descending, last, axis=-1)
  return jnp.where(logits >= threshold, logits, -jnp.inf)


@partial(jax.jit, static_argnums=(0, 1))
def _sample(model, options, params, key, prompts):
  length, temperature, top_k, top_p, never = options

  def draw(key, logits):
    if never:
      logits = logits.at[..., list(never)].set(-jnp.inf)
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
