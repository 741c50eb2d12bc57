"""Search for continuations of a prompt that a language model finds likely.

The cost of a continuation is −log p in nats, the sum of its tokens' costs. The
probabilities are always those of the model itself, at temperature 1 and without
rules such as top-k, however the tokens were drawn.

  best of N    draws N continuations, and takes the one of the lowest cost
  beam search  keeps the N likeliest prefixes and extends each by every token;
               with N ≥ Vⁿ⁻¹ it finds the likeliest of all Vⁿ continuations of
               n tokens

  >>> from lstm_jax.language import ModelConfig, language_model
  >>> model = language_model(ModelConfig(hidden_size=8), vocabulary_size=5)
  >>> params = model.init(jax.random.key(0))
  >>> prompt = np.array([3, 1])
  >>> n, beam_size = 3, 25  # V² = 25: the search finds the likeliest of all
  >>> tokens, nats = beam_search(model, params, prompt, n, beam_size=beam_size)
  >>> tokens.shape, nats.shape, bool((nats[1:] >= nats[:-1]).all())
  ((25, 3), (25,), True)
  >>> key = jax.random.key(0)
  >>> _, found = sample_best(model, params, key, prompt, n, best_of=4)
  >>> bool(found > nats[0] - 1e-5)
  True
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lstm_jax.cells.checks import check_count
from lstm_jax.language.arguments import vocabulary_size_of
from lstm_jax.language.drawing import (
  DrawingRules,
  checked_rules,
)
from lstm_jax.language.evaluate import chunk_length
from lstm_jax.language.loss import cross_entropy
from lstm_jax.language.model import LanguageModel
from lstm_jax.language.params import LanguageParams
from lstm_jax.language.programs import per_model
from lstm_jax.language.sampling import (
  advance,
  check_prompt,
  filled,
  read_prompt,
  sample,
)
from lstm_jax.language.tokens import check_range
from lstm_jax.sequence.chunks import joined, scan_chunks


def continuation_nats(
  model: LanguageModel,
  params: LanguageParams,
  prompt: np.ndarray,
  tokens: np.ndarray,
) -> np.ndarray:
  """Return −log p of each of N continuations of a prompt, in nats, float64 [N].

  Args:
    model: the language model.
    params: its weights.
    prompt: int [P], P ≥ 1.
    tokens: the continuations, int [N, n], N and n ≥ 1.

  Raises:
    ValueError: params are not `LanguageParams`, or the prompt or tokens have
      another shape, or are not all integers in [0, V).
  """
  vocabulary_size = vocabulary_size_of(params)
  check_prompt(prompt, vocabulary_size)
  if np.ndim(tokens) != 2 or not np.size(tokens):
    raise ValueError(
      f"tokens must be [N, n], N and n ≥ 1, got {np.shape(tokens)}"
    )
  check_range("tokens", tokens, vocabulary_size)
  columns = np.asarray(tokens, np.int32).T
  nats = _continuation_nats(model)(params, filled(prompt), columns)
  return np.asarray(nats).sum(axis=0, dtype=np.float64)


def sample_best(
  model: LanguageModel,
  params: LanguageParams,
  key: jax.Array,
  prompt: np.ndarray,
  length: int,
  *,
  best_of: int,
  **rules: Any,
) -> tuple[np.ndarray, float]:
  """Return the likeliest of N samples, int32 [n], and its −log p in nats.

  Args:
    model: the language model.
    params: its weights.
    key: a typed PRNG key.
    prompt: the tokens to continue, int [P], P ≥ 1.
    length: n, the number of tokens to draw.
    best_of: N, the number of samples.
    **rules: how tokens are drawn: further arguments of `sample`, but for
      num_samples.

  Raises:
    ValueError: as `sample`; or best_of is not an integer ≥ 1.
  """
  check_count("best_of", best_of)
  samples = sample(
    model, params, key, prompt, length, num_samples=best_of, **rules
  )
  nats = continuation_nats(model, params, prompt, samples)
  best = int(nats.argmin())
  return samples[best], float(nats[best])


def beam_search(
  model: LanguageModel,
  params: LanguageParams,
  prompt: np.ndarray,
  length: int,
  *,
  beam_size: int,
  suppress_tokens: Sequence[int] = (),
) -> tuple[np.ndarray, np.ndarray]:
  """Return the continuations of a beam search, the likeliest first.

  Args:
    model: the language model.
    params: its weights.
    prompt: the tokens to continue, int [P], P ≥ 1.
    length: n, the number of tokens of each continuation.
    beam_size: N, the number of prefixes that are kept after each token.
    suppress_tokens: tokens that no continuation has.

  Returns:
    (tokens, nats): int32 [N, n], and their −log p in nats, float64 [N]. If
    there are fewer than N continuations, the last rows hold none: their nats
    are infinite, and their tokens mean nothing and may be suppressed ones.

  Raises:
    ValueError: params are not `LanguageParams`; the prompt is not [P] with
      P ≥ 1, or not all integers in [0, V); length or beam_size is not an
      integer ≥ 1, or N V is not below 2³¹; or suppress_tokens are not integers
      in [0, V), or leave no token.
  """
  vocabulary_size = vocabulary_size_of(params)
  check_prompt(prompt, vocabulary_size)
  check_count("length", length)
  check_count("beam_size", beam_size)
  if int(beam_size) * vocabulary_size >= 2**31:  # top_k's indices are int32
    raise ValueError(
      f"beam_size times the {vocabulary_size:,} tokens of the vocabulary must "
      f"be below {2**31:,}, got {beam_size:,}"
    )
  rules = DrawingRules(suppress_tokens=suppress_tokens)
  rules = checked_rules(rules, vocabulary_size)
  options = int(length), int(beam_size), rules.suppress_tokens
  tokens, nats, least = _beam_search(model)(options, params, filled(prompt))
  total = np.asarray(least).sum(dtype=np.float64)
  return np.asarray(tokens), total + np.asarray(nats, np.float64)


@per_model
def _continuation_nats(model, params, prompt, tokens):
  """Return nats [n, N] of tokens [n, N], which are read by chunks of time.

  With a large vocabulary, a readout of one token after another would take most
  of the time: 450 ms instead of 73 at V 32,000, n 100, N 1, H 256.
  """

  def body(state, read, predicted):
    state, logits = model.apply(params, state, read)
    return state, cross_entropy(logits, predicted)

  carry = read_prompt(model, params, prompt, tokens.shape[1])
  first = cross_entropy(carry.logits, tokens[0])[None]
  if len(tokens) == 1:
    return first
  count, vocabulary_size = carry.logits.shape
  chunk = min(chunk_length(vocabulary_size, count), len(tokens) - 1)
  arrays = tokens[:-1], tokens[1:]
  _, nats = scan_chunks(body, carry.state, arrays, chunk)
  return jnp.concatenate([first, joined(nats)])


@partial(per_model, num_static=1)
def _beam_search(model, options, params, prompt):
  """Return (tokens [N, n], nats [N], least [n]).

  The cost of a continuation is its entry of nats plus the sum of least. After
  each token, the least cost is subtracted from the costs of all prefixes, so
  that a long sum is not rounded.
  """
  length, width, suppress_tokens = options

  def body(search, t):
    carry, nats, tokens = search
    costs = -jax.nn.log_softmax(carry.logits)
    costs = costs.at[:, list(suppress_tokens)].set(jnp.inf)
    totals = nats[:, None] + costs  # of each prefix with each next token
    best, index = lax.top_k(-totals.ravel(), width)
    prefix, token = jnp.divmod(index, costs.shape[1])
    state = jax.tree.map(
      lambda leaf: leaf[prefix] if leaf.ndim else leaf, carry.state
    )
    tokens = tokens[prefix].at[:, t].set(token)
    nats, least = best[0] - best, -best[0]
    return (advance(model, params, state, token[None]), nats, tokens), least

  carry = read_prompt(model, params, prompt, width)
  # All prefixes are the same at first: only one counts.
  nats = jnp.full(width, jnp.inf, carry.logits.dtype).at[0].set(0)
  tokens = jnp.zeros((width, length), jnp.int32)
  search = carry, nats, tokens
  (_, nats, tokens), least = lax.scan(body, search, jnp.arange(length))
  return tokens, nats, least
