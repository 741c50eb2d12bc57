"""The original recipe: an LSTM, its gradient and Adagrad in NumPy, one stream.

Written from the equations, one character at a time, as such programs were
before there were compilers for them. `tests/training/test_original_recipe.py`
holds this project's compiled update to it, to 1e-9 over 200 updates.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import lax

from experiments.benchmarks.peers.proof import Peer, compiled
from lstm_jax.language import ModelConfig, language_model
from lstm_jax.training import (
  OptimizerConfig,
  init_state,
  make_optimizer,
  make_train_step,
)

CLIP, LEARNING_RATE = 5.0, 0.05
MODEL = ModelConfig(64, embedding_size=4, hidden_size=32)
STEPS = 64


def sigmoid(a):
  """Return σ(a)."""
  return 1 / (1 + np.exp(-a))


def block_gradient(weights, state, tokens, targets):
  """Return (mean nats, gradient of each weight, state after the block)."""
  table, w_x, w_h, b, w_y, b_y = weights
  h, c = state
  hidden = len(h)
  saved, nats = [], 0.0
  for token, target in zip(tokens, targets, strict=True):
    x = table[token]
    a = x @ w_x + h @ w_h + b
    i, f = sigmoid(a[:hidden]), sigmoid(a[hidden : 2 * hidden])
    g, o = np.tanh(a[2 * hidden : 3 * hidden]), sigmoid(a[3 * hidden :])
    h_before, c_before = h, c
    c = f * c + i * g
    h = o * np.tanh(c)
    y = h @ w_y + b_y
    p = np.exp(y - y.max())
    p /= p.sum()
    nats -= np.log(p[target])
    saved.append((token, target, x, h_before, c_before, i, f, g, o, c, h, p))
  d = [np.zeros_like(w) for w in weights]
  dh, dc = np.zeros(hidden), np.zeros(hidden)
  for token, target, x, h_before, c_before, i, f, g, o, c_t, h_t, p in saved[
    ::-1
  ]:
    dy = p.copy()
    dy[target] -= 1
    dy /= len(tokens)
    d[4] += np.outer(h_t, dy)
    d[5] += dy
    dh = dh + w_y @ dy
    dc = dc + dh * o * (1 - np.tanh(c_t) ** 2)
    da = np.concatenate(
      [
        dc * g * i * (1 - i),
        dc * c_before * f * (1 - f),
        dc * i * (1 - g * g),
        dh * np.tanh(c_t) * o * (1 - o),
      ]
    )
    d[0][token] += w_x @ da
    d[1] += np.outer(x, da)
    d[2] += np.outer(h_before, da)
    d[3] += da
    dh, dc = w_h @ da, dc * f
  return nats / len(tokens), d, (h, c)


def adagrad(weights, gradient, memory):
  """Move the weights against their clipped gradient, in place."""
  for w, g, m in zip(weights, gradient, memory, strict=True):
    g = np.clip(g, -CLIP, CLIP)
    m += g * g
    w -= LEARNING_RATE * g / np.sqrt(m + 1e-8)


def _block() -> tuple[Any, np.ndarray]:
  """Return initial parameters and random text [STEPS + 1]."""
  params = language_model(MODEL).init(jax.random.key(0))
  draw = np.random.default_rng(0)
  return params, draw.integers(0, MODEL.vocabulary_size, STEPS + 1)


def numpy_program() -> Peer:
  """One update in NumPy, float64."""
  params, text = _block()
  leaves = params.embedding, *params.layers[0], params.readout, params.bias
  weights = [np.array(leaf, np.float64) for leaf in leaves]
  memory = [np.zeros_like(w) for w in weights]
  carry = [(np.zeros(MODEL.hidden_size), np.zeros(MODEL.hidden_size))]

  def run():
    nats, gradient, carry[0] = block_gradient(
      weights, carry[0], text[:-1], text[1:]
    )
    adagrad(weights, gradient, memory)
    return nats

  return Peer(run)


def compiled_program(updates: int) -> Callable[[], Peer]:
  """Return a maker of this project's update, so many of them in one call."""

  def make() -> Peer:
    params, text = _block()
    config = OptimizerConfig(
      rule="adagrad",
      learning_rate=LEARNING_RATE,
      schedule="constant",
      warmup_steps=0,
      clip_norm=None,
      clip_value=CLIP,
    )
    rule = make_optimizer(config, 10**6)
    model = language_model(MODEL)
    update = make_train_step(model, rule)
    tokens = np.repeat(text[None, :, None].astype(np.int32), updates, 0)

    def several(state, tokens):
      def body(state, block):
        return update(state, block[:-1], block[1:])

      return lax.scan(body, state, tokens)

    kept = [init_state(model, rule, params, 1)]
    program, seconds, size = compiled(several, *kept, tokens, donate=(0,))

    def run():
      kept[0], metrics = jax.block_until_ready(program(*kept, tokens))
      return metrics.loss

    return Peer(run, seconds, size)

  return make
