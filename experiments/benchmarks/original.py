"""An LSTM, its gradient and Adagrad in NumPy, timed beside our training step.

The code follows the equations one character at a time, with batch size 1, in
the manner of Karpathy's min-char-rnn. That program is the original of many
others, hence the name of the recipe and of this module. When timed, NumPy
computes in float64 and our compiled step in float32.
`experiments/recipes/original.flags` is the same training in our programs;
`tests/training/test_original_recipe.py` runs it in float64, and checks that its
losses equal this code's to 1e-9 over 200 training steps.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import lax

from experiments.benchmarks.timing import Peer, compile_program
from lstm_jax.language import ModelConfig, language_model
from lstm_jax.training import (
  OptimizerConfig,
  init_state,
  make_optimizer,
  make_train_step,
)

CLIP, LEARNING_RATE = 5.0, 0.05
VOCABULARY_SIZE = 64
MODEL = ModelConfig(embedding_size=4, hidden_size=32)
SEQ_LEN = 64


def sigmoid(a):
  """Return σ(a)."""
  return 1 / (1 + np.exp(-a))


def loss_and_gradient(weights, state, tokens, targets):
  """Run the LSTM over a sequence and backpropagate through it.

  Args:
    weights: embedding [V, E], w_x [E, 4H], w_h [H, 4H], b [4H], readout [H, V]
      and its bias [V].
    state: h and c before the sequence, each [H].
    tokens: T integers.
    targets: the token that follows each.

  Returns:
    (loss, gradient, state): nats per token; the gradient of each weight; h and
    c after the sequence.
  """
  table, w_x, w_h, b, w_y, b_y = weights
  h, c = state
  hidden = len(h)
  residuals, loss = [], 0.0
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
    loss -= np.log(p[target])
    residuals.append(
      (token, target, x, h_before, c_before, i, f, g, o, c, h, p)
    )
  gradient = [np.zeros_like(w) for w in weights]
  dtable, dw_x, dw_h, db, dw_y, db_y = gradient
  dh, dc = np.zeros(hidden), np.zeros(hidden)
  for token, target, x, h_before, c_before, i, f, g, o, c_t, h_t, p in reversed(
    residuals
  ):
    dy = p.copy()
    dy[target] -= 1
    dy /= len(tokens)
    dw_y += np.outer(h_t, dy)
    db_y += dy
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
    dtable[token] += w_x @ da
    dw_x += np.outer(x, da)
    dw_h += np.outer(h_before, da)
    db += da
    dh, dc = w_h @ da, dc * f
  return loss / len(tokens), gradient, (h, c)


def adagrad(weights, gradient, squares):
  """Take one Adagrad step with the clipped gradient, in place.

  squares holds the sums of the squares of all clipped gradients so far.
  """
  for w, g, s in zip(weights, gradient, squares, strict=True):
    g = np.clip(g, -CLIP, CLIP)
    s += g * g
    w -= LEARNING_RATE * g / np.sqrt(s + 1e-8)


def _params_and_tokens() -> tuple[Any, np.ndarray]:
  """Return initial parameters and random tokens, [SEQ_LEN + 1]."""
  params = language_model(MODEL, VOCABULARY_SIZE).init(jax.random.key(0))
  rng = np.random.default_rng(0)
  return params, rng.integers(0, VOCABULARY_SIZE, SEQ_LEN + 1)


def numpy_program() -> Peer:
  """Return one training step in NumPy, float64."""
  params, tokens = _params_and_tokens()
  leaves = params.embedding, *params.layers[0], params.readout, params.bias
  weights = [np.array(leaf, np.float64) for leaf in leaves]
  squares = [np.zeros_like(w) for w in weights]
  state = np.zeros(MODEL.hidden_size), np.zeros(MODEL.hidden_size)

  def run():
    nonlocal state
    loss, gradient, state = loss_and_gradient(
      weights, state, tokens[:-1], tokens[1:]
    )
    adagrad(weights, gradient, squares)
    return loss

  return Peer(run)


def compiled_program(num_steps: int) -> Callable[[], Peer]:
  """Return a function that makes one program of num_steps training steps."""

  def make() -> Peer:
    params, tokens = _params_and_tokens()
    config = OptimizerConfig(
      optimizer="adagrad",
      learning_rate=LEARNING_RATE,
      schedule="constant",
      warmup_steps=0,
      clip_norm=0.0,
      clip_value=CLIP,
    )
    optimizer = make_optimizer(config, num_steps)
    model = language_model(MODEL, VOCABULARY_SIZE)
    train_step = make_train_step(model, optimizer)
    batches = np.repeat(tokens[None, :, None].astype(np.int32), num_steps, 0)

    def train_steps(state, batches):
      def body(state, tokens):
        return train_step(state, tokens[:-1], tokens[1:])

      return lax.scan(body, state, batches)

    state = init_state(model, optimizer, params, 1)  # batch size 1
    program, seconds, size = compile_program(
      train_steps, state, batches, donate=(0,)
    )

    def run():
      nonlocal state
      state, metrics = program(state, batches)
      return metrics.loss

    return Peer(run, seconds, size)

  return make
