"""Delayed recall: name a symbol that was shown before d blanks.

  time     0        1 … d    d + 1
  token    symbol   blanks   cue      → the symbol

One of 8 symbols is shown, then d blanks, then a cue, at which the symbol is to
be named. Nothing on the way says which it was, so a cell that names it has kept
it for d + 1 steps. The loss is on the answer alone, and its gradient must come
as far back. Each delay is learnt from scratch, without shorter ones first.

Reference: Hochreiter and Schmidhuber (1997), Long short-term memory, section 5,
whose tasks have the same parts.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lstm_jax.language import LanguageModel, cross_entropy
from lstm_jax.training import OptimizerConfig, make_optimizer

SYMBOLS = 8  # K; chance is 1 / K
BLANK, CUE = SYMBOLS, SYMBOLS + 1
VOCABULARY = CUE + 1
EMBEDDING = 16
BATCH = 32  # sequences an update
TESTS = 512  # sequences that are judged
AT_ONCE = 50  # updates in one call: a short one costs less than a call


class Recall(NamedTuple):
  """What an ensemble of S seeds has learnt of one delay, at its best rate."""

  learning_rate: float
  accuracy: list[float]  # of each seed, on sequences drawn anew
  nats: list[float | None]  # of the answer, likewise; None if it diverged


def draw(key: jax.Array, delay: int, batch: int) -> tuple[jax.Array, jax.Array]:
  """Return (tokens [d + 2, B], the symbols to be named at the end [B])."""
  symbols = jax.random.randint(key, (batch,), 0, SYMBOLS, jnp.int32)
  blanks = jnp.full((delay, batch), BLANK, jnp.int32)
  cue = jnp.full((1, batch), CUE, jnp.int32)
  return jnp.concatenate([symbols[None], blanks, cue]), symbols


def learn(
  model: LanguageModel,
  keys: jax.Array,
  delay: int,
  num_steps: int,
  learning_rates: tuple[float, ...],
) -> Recall:
  """Train ensembles from scratch on one delay, and judge the best of them.

  Args:
    model: over `VOCABULARY` tokens.
    keys: of the seeds, [S]: weights and sequences.
    delay: d, the blanks between symbol and cue.
    num_steps: of `BATCH` new sequences each.
    learning_rates: of Adam, at the peak of the schedule. Each trains an
      ensemble; the one of the lowest mean nats is returned.
  """
  # Adam's change is proportional to its rate, which so needs no compiling.
  config = OptimizerConfig(learning_rate=1.0, weight_decay=0.0)
  rule = make_optimizer(config, num_steps)

  def read(params, key, batch):
    tokens, symbols = draw(key, delay, batch)
    _, logits = model.apply(params, model.initial_state((batch,)), tokens)
    return logits[-1], symbols

  def loss(params, key):
    return cross_entropy(*read(params, key, BATCH)).mean()

  def start(key):
    params = model.init(key)
    return params, rule.init(params)

  def updates(member, key, steps, rate):
    def body(member, step):
      params, state = member
      gradient = jax.grad(loss)(params, jax.random.fold_in(key, step))
      change, state = rule.update(gradient, state, params)
      change = jax.tree.map(lambda c: rate.astype(c.dtype) * c, change)
      return (optax.apply_updates(params, change), state), None

    return jax.lax.scan(body, member, steps)[0]

  def judge(member, key):
    logits, symbols = read(member[0], key, TESTS)
    right = (logits.argmax(-1) == symbols).mean()
    return right, cross_entropy(logits, symbols).mean()

  split = jax.vmap(lambda key: jax.random.split(key, 3), out_axes=1)
  keys_init, keys_train, keys_test = split(keys)
  begin, judge_all = jax.jit(jax.vmap(start)), jax.jit(jax.vmap(judge))
  train = jax.jit(jax.vmap(updates, (0, 0, None, None)))
  steps = jnp.arange(num_steps)
  found: list[tuple[float, Recall]] = []
  for rate in learning_rates:
    members = begin(keys_init)
    for first in range(0, num_steps, AT_ONCE):
      some = steps[first : first + AT_ONCE]
      members = train(members, keys_train, some, jnp.asarray(rate))
    accuracy, nats = (np.asarray(x) for x in judge_all(members, keys_test))
    known = [float(n) if np.isfinite(n) else None for n in nats]
    mean = float(nats.mean()) if None not in known else math.inf
    found.append((mean, Recall(rate, accuracy.tolist(), known)))
  return min(found, key=lambda pair: pair[0])[1]


def longest(accuracies: dict[int, float], above: float = 0.9) -> int:
  """Return the longest delay up to which every accuracy is above, or 0."""
  last = 0
  for delay in sorted(accuracies):
    if accuracies[delay] <= above:
      break
    last = delay
  return last
