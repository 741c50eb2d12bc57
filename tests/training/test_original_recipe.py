"""The original recipe against NumPy: forward, backward and Adagrad by hand.

`benchmarks.peers.original` is written from the equations, in float64, for one
stream; the library is given the same initial weights and must have the same
losses.
"""

import dataclasses
from itertools import islice, repeat
from pathlib import Path

import jax
import numpy as np

from experiments.benchmarks.peers.original import adagrad, block_gradient
from experiments.trainer.config import (
  TrainConfig,
  model_config,
  optimizer_config,
)
from lstm_jax.language import (
  characters,
  language_model,
  make_batches,
  read_text,
  split,
)
from lstm_jax.training import init_state, make_optimizer, make_train_step, train

ROOT = Path(__file__).parents[2]
UPDATES = 200


def recipe():
  """Return the configuration that the flagfile describes."""
  lines = (ROOT / "experiments/recipes/original.flags").read_text().split("\n")
  flags = dict(line[2:].split("=") for line in lines if line.startswith("--"))
  fields = {f.name: f.default for f in dataclasses.fields(TrainConfig)}
  return TrainConfig(**{k: type(fields[k])(v) for k, v in flags.items()})


def test_the_first_200_losses_are_those_of_numpy():
  config = recipe()
  text = read_text(ROOT / "data/shakespeare.txt")
  vocabulary = characters(text)
  # A piece of the text whose end is reached, so that the reset is seen too.
  training, _ = split(vocabulary.encode(text[:8000]), config.val_fraction)
  streams = make_batches(training, config.batch_size, config.seq_len)
  assert streams.num_batches < UPDATES

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
  state = init_state(model, rule, params, config.batch_size)
  update = make_train_step(model, rule)
  steps = islice(train(update, state, repeat(streams)), UPDATES)
  found = [float(metrics.loss) for _, metrics in steps]

  expected = []
  memory = [np.zeros_like(w) for w in weights]
  for step in range(UPDATES):
    block = step % streams.num_batches
    if block == 0:
      carry = np.zeros(32), np.zeros(32)
    start = block * config.seq_len
    piece = training[start : start + config.seq_len + 1]
    nats, gradient, carry = block_gradient(
      weights, carry, piece[:-1], piece[1:]
    )
    expected.append(nats)
    adagrad(weights, gradient, memory)

  assert np.abs(np.array(found) - expected).max() < 1e-9
  assert expected[-1] < expected[0] - 0.5  # and it learns
