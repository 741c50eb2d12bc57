"""The original recipe against NumPy: forward, backward and Adagrad by hand.

Everything below is written from the equations, in float64, for one stream; the
library is given the same initial weights and must have the same losses.
"""

import dataclasses
from pathlib import Path

import jax
import numpy as np

from experiments.config import TrainConfig, model_config, optimizer_config
from lstm_jax.language import (
  characters,
  language_model,
  make_streams,
  read_text,
  split,
)
from lstm_jax.training import init_state, make_optimizer, make_update, train

ROOT = Path(__file__).parents[2]
UPDATES = 200


def recipe():
  """Return the configuration that the flagfile describes."""
  lines = (ROOT / "experiments/recipes/original.flags").read_text().split("\n")
  flags = dict(line[2:].split("=") for line in lines if line.startswith("--"))
  fields = {f.name: f.default for f in dataclasses.fields(TrainConfig)}
  return TrainConfig(**{k: type(fields[k])(v) for k, v in flags.items()})


def sigmoid(a):
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


def test_the_first_200_losses_are_those_of_numpy():
  config = recipe()
  text = read_text(ROOT / "data/shakespeare.txt")
  vocabulary = characters(text)
  # A piece of the text whose end is reached, so that the reset is seen too.
  training, _ = split(vocabulary.encode(text[:8000]), config.split)
  streams = make_streams(training, config.num_streams, config.num_steps)
  assert streams.num_blocks < UPDATES

  shape = model_config(config, vocabulary.size)
  model = language_model(dataclasses.replace(shape, dtype=np.float64))
  params = model.init(jax.random.key(config.seed))
  (layer,) = params.layers
  leaves = params.embedding, *layer, params.readout, params.bias
  weights = [np.array(leaf) for leaf in leaves]
  assert [w.shape for w in weights] == [
    (64, 4), (4, 128), (32, 128), (128,), (32, 64), (64,)
  ]  # fmt: skip

  rule = make_optimizer(optimizer_config(config), UPDATES)
  state = init_state(model, rule, params, config.num_streams)
  update = make_update(model, rule)
  found = [
    float(metrics.loss) for _, metrics in train(update, state, streams, UPDATES)
  ]

  expected = []
  memory = [np.zeros_like(w) for w in weights]
  for step in range(UPDATES):
    block = step % streams.num_blocks
    if block == 0:
      carry = np.zeros(32), np.zeros(32)
    start = block * config.num_steps
    piece = training[start : start + config.num_steps + 1]
    nats, gradient, carry = block_gradient(
      weights, carry, piece[:-1], piece[1:]
    )
    expected.append(nats)
    for w, g, m in zip(weights, gradient, memory, strict=True):
      g = np.clip(g, -5, 5)
      m += g * g
      w -= 0.05 * g / np.sqrt(m + 1e-8)

  assert np.abs(np.array(found) - expected).max() < 1e-9
  assert expected[-1] < expected[0] - 0.5  # and it learns
