"""Sampling from a language model: the continuation of a prompt.

The module `drawing` says how each token is drawn. `sample` draws whole
continuations in one compiled loop; a `TextStream` (the module `text_stream`)
returns a text part by part, so that it can be printed while it is drawn.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lstm_jax.cells.checks import check_count
from lstm_jax.language.arguments import vocabulary_size_of
from lstm_jax.language.drawing import (
  DrawingRules,
  checked_rules,
  draw,
  split_rules,
)
from lstm_jax.language.evaluate import next_power_of_2
from lstm_jax.language.model import LanguageModel
from lstm_jax.language.params import LanguageParams
from lstm_jax.language.programs import per_model
from lstm_jax.language.tokens import check_range

PART = 64  # tokens of a prompt that the model reads at once


class Prompt(NamedTuple):
  """A prompt [P], and what fills it up to one of few lengths.

  A program is compiled for each length of an array, but not for each P.
  """

  tokens: jax.Array  # [PART · 2^k]
  size: jax.Array  # P


class Carry(NamedTuple):
  """What a model carries along N texts: all that the next token depends on."""

  state: Any  # of each layer, [N, H]
  logits: jax.Array  # of the next token, [N, V]


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
  min_p: float | None = None,
  suppress_tokens: Sequence[int] = (),
) -> np.ndarray:
  """Sample tokens that continue a prompt.

  Args:
    model: the language model.
    params: its weights.
    key: a typed PRNG key.
    prompt: the tokens to continue, int [P], P ≥ 1; not part of the result.
    length: n ≥ 1, the number of tokens to draw.
    num_samples: N ≥ 1, the number of continuations.
    temperature: τ in [0, `drawing.HUGE`], about 8.5e37; 0 is greedy.
    top_k: k ≥ 1, or None for all tokens.
    top_p: 0 < p ≤ 1, or None for all tokens.
    min_p: 0 ≤ p ≤ 1, or None for all tokens.
    suppress_tokens: tokens that are never drawn, such as the unknown tokens of
      a tokenizer. The probabilities of the others are scaled to sum to 1.

  Returns:
    int32 [N, n].

  Raises:
    ValueError: params are not `LanguageParams`; the prompt is not [P] with
      P ≥ 1, or not all integers in [0, V); a number is out of its range; or
      all tokens are suppressed.
  """
  vocabulary_size = vocabulary_size_of(params)
  check_prompt(prompt, vocabulary_size)
  check_count("length", length)
  check_count("num_samples", num_samples)
  rules = DrawingRules(temperature, top_k, top_p, min_p, suppress_tokens)
  rules = checked_rules(rules, vocabulary_size)
  static, numbers = split_rules(rules)
  options = int(length), int(num_samples), static
  tokens = _sample(model)(options, numbers, params, key, filled(prompt))
  return np.asarray(tokens)


def check_prompt(prompt: np.ndarray, vocabulary_size: int) -> None:
  """Raise ValueError unless a prompt is [P], P ≥ 1, and all in [0, V)."""
  if np.ndim(prompt) != 1 or len(prompt) < 1:
    raise ValueError(
      f"the prompt must be [P] with P ≥ 1, got {np.shape(prompt)}"
    )
  check_range("the prompt", prompt, vocabulary_size)


def filled(prompt: np.ndarray) -> Prompt:
  """Return a prompt [P], P ≥ 1, as a `Prompt`."""
  size = len(prompt)
  tokens = np.zeros(max(PART, next_power_of_2(size)), np.int32)
  tokens[:size] = prompt
  return Prompt(jnp.asarray(tokens), jnp.int32(size))


def read_prompt(
  model: LanguageModel, params: LanguageParams, prompt: Prompt, count: int
) -> Carry:
  """Return the `Carry` of N texts after a prompt, from the zero state.

  The prompt, which is the same for all texts, is read once: PART tokens at a
  time, and then one by one. Only the logits of the last token are used, so that
  a compiled function computes no others.
  """

  def read(length, start, state):
    tokens = lax.dynamic_slice(prompt.tokens, (start,), (length,))
    return model.apply(params, state, tokens[:, None])[0]

  parts, last = (prompt.size - 1) // PART, prompt.size - 1
  state = lax.fori_loop(
    0,
    parts,
    lambda k, state: read(PART, k * PART, state),
    model.initial_state((1,)),
  )
  state = lax.fori_loop(parts * PART, last, partial(read, 1), state)
  carry = advance(model, params, state, prompt.tokens[last][None, None])
  # A state may have one number for all rows, such as a counter.
  return jax.tree.map(
    lambda leaf: jnp.repeat(leaf, count, axis=0) if leaf.ndim else leaf, carry
  )


def advance(
  model: LanguageModel, params: LanguageParams, state: Any, tokens: jax.Array
) -> Carry:
  """Return the `Carry` after tokens [P, N], from the state of N sequences."""
  state, logits = model.apply(params, state, tokens)
  return Carry(state, logits[-1])


@partial(per_model, num_static=1)
def _sample(model, options, numbers, params, key, prompt):
  length, count, static = options
  rules = static._replace(**numbers)

  def body(carry, t):
    tokens = draw(rules, jax.random.fold_in(key, t), carry.logits)
    return advance(model, params, carry.state, tokens[None]), tokens

  carry = read_prompt(model, params, prompt, count)
  _, tokens = lax.scan(body, carry, jnp.arange(length))
  return tokens.T
