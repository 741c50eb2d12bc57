"""How one token is drawn from a language model's logits y.

Suppressed tokens are left out first. The token is drawn from softmax(y/τ) with
temperature τ; τ = 0 takes the most likely one (greedy). Before the draw, three
rules keep only some of the tokens. They are applied in this order, each to the
tokens that the previous rule has kept, with probabilities scaled to sum to 1:

  top-k  the k most likely tokens
  top-p  the smallest set of most likely tokens whose probabilities sum to p or
         more: nucleus sampling (Holtzman et al. 2020, The curious case of
         neural text degeneration)
  min-p  the tokens whose probability is at least p times that of the most
         likely one (Nguyen et al. 2024, Turning up the heat: min-p sampling for
         creative and coherent LLM outputs)

Tokens as likely as the least likely one that a rule keeps are kept as well.

  >>> logits = jnp.log(jnp.array([0.1, 0.45, 0.25, 0.2]))
  >>> jnp.isfinite(keep_top_p(logits, 0.6)).tolist()
  [False, True, True, False]
  >>> jnp.isfinite(keep_min_p(logits, 0.4)).tolist()
  [False, True, True, True]
"""

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lstm_jax.cells.checks import as_number, check_count

TINY = float(np.finfo(np.float32).tiny)  # XLA may treat smaller numbers as 0
HUGE = 1 / TINY  # XLA may treat the reciprocal of a larger temperature as 0


class DrawingRules(NamedTuple):
  """How a token is drawn; `sampling.sample` states the range of each field."""

  temperature: float = 1.0
  top_k: int | None = None
  top_p: float | None = None
  min_p: float | None = None
  suppress_tokens: Sequence[int] = ()


def checked_rules(rules: DrawingRules, vocabulary_size: int) -> DrawingRules:
  """Check rules; return them as Python values, for a static argument of `jit`.

  Raises:
    ValueError: a rule is out of range, or all tokens are suppressed.
  """
  temperature, top_k, top_p, min_p, suppress_tokens = rules
  temperature = as_number("temperature", temperature)
  top_p = None if top_p is None else as_number("top_p", top_p)
  min_p = None if min_p is None else as_number("min_p", min_p)
  if not 0 <= temperature <= HUGE:
    raise ValueError(
      f"temperature must be in [0, {HUGE:.1e}], got {temperature}"
    )
  if top_k is not None:
    top_k = check_count("top_k", top_k)
  if top_p is not None and not 0 < top_p <= 1:
    raise ValueError(f"top_p must be in (0, 1], got {top_p}")
  if min_p is not None and not 0 <= min_p <= 1:
    raise ValueError(f"min_p must be in [0, 1], got {min_p}")
  try:
    suppress_tokens = tuple(map(operator.index, suppress_tokens))
  except TypeError:
    raise ValueError(
      f"suppress_tokens must be integers, got {suppress_tokens!r}"
    ) from None
  if not all(0 <= token < vocabulary_size for token in suppress_tokens):
    raise ValueError(
      f"suppress_tokens must be in [0, {vocabulary_size}), got "
      f"{', '.join(map(str, suppress_tokens))}"
    )
  if len(set(suppress_tokens)) >= vocabulary_size:
    raise ValueError(
      f"suppress_tokens must leave at least one of {vocabulary_size} tokens, "
      "got all of them"
    )
  return DrawingRules(temperature, top_k, top_p, min_p, suppress_tokens)


def split_rules(rules: DrawingRules) -> tuple[DrawingRules, dict[str, Any]]:
  """Return (static, numbers); `static._replace(**numbers)` are the rules.

  With the numbers as arguments that are traced, texts that are drawn at many
  temperatures share one program. A greedy temperature and a top-p of 1 stay
  static, because their programs are others.
  """
  numbers: dict[str, Any] = {"min_p": rules.min_p}
  if rules.top_p != 1:
    numbers["top_p"] = rules.top_p
  if rules.temperature >= TINY:
    numbers["temperature"] = rules.temperature
  numbers = {name: x for name, x in numbers.items() if x is not None}
  absent: dict[str, Any] = dict.fromkeys(numbers)
  return rules._replace(**absent), numbers


def check_key(key: jax.Array) -> None:
  """Raise ValueError unless a PRNG key is of JAX's default kind."""
  impl, usual = map(jax.random.key_impl, (key, jax.random.key(0)))
  if impl != usual:
    raise ValueError(f"key must be of the kind {usual}, got {impl}")


def keep_top_k(logits: jax.Array, k: int) -> jax.Array:
  """Return logits [..., V] with −∞ below the k-th largest."""
  kth = lax.top_k(logits, min(k, logits.shape[-1]))[0][..., -1:]
  return jnp.where(logits >= kth, logits, -jnp.inf)


def keep_top_p(logits: jax.Array, p: float) -> jax.Array:
  """Return logits [..., V] with −∞ outside the nucleus of probability p."""
  if _is_static(p) and p == 1:  # rounding must not leave any out
    return logits
  descending = jnp.flip(jnp.sort(logits, axis=-1), axis=-1)
  probability = jax.nn.softmax(descending, axis=-1)
  before = jnp.cumsum(probability, axis=-1) - probability
  last = jnp.sum(before < p, axis=-1, keepdims=True).clip(min=1) - 1
  threshold = jnp.take_along_axis(descending, last, axis=-1)
  return jnp.where(logits >= threshold, logits, -jnp.inf)


def keep_min_p(logits: jax.Array, p: float) -> jax.Array:
  """Return logits [..., V], −∞ for probabilities below p times the largest."""
  ratio = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
  return jnp.where(ratio >= p, logits, -jnp.inf)


def draw(rules: DrawingRules, key: jax.Array, logits: jax.Array) -> jax.Array:
  """Return a token for each row of logits [..., V], int32 [...]."""
  if rules.suppress_tokens:
    logits = logits.at[..., list(rules.suppress_tokens)].set(-jnp.inf)
  if _is_static(rules.temperature) and rules.temperature < TINY:
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)
  largest = logits.max(axis=-1, keepdims=True)
  logits = (logits - largest) / rules.temperature
  if rules.top_k is not None:
    logits = keep_top_k(logits, rules.top_k)
  if rules.top_p is not None:
    logits = keep_top_p(logits, rules.top_p)
  if rules.min_p is not None:
    logits = keep_min_p(logits, rules.min_p)
  return jax.random.categorical(key, logits).astype(jnp.int32)


def _is_static(number: Any) -> bool:
  """Return whether a number is not traced."""
  return not isinstance(number, jax.core.Tracer)
