"""The recipe `original` against NumPy: forward, backward, Adagrad by hand.

The recipe (`experiments/recipes/original.flags`) trains in the manner of
min-char-rnn. `experiments/benchmarks/original.py` implements the
equations in float64, with batch size 1. From the same initial weights, the
library must compute the same losses.
"""

import dataclasses
from itertools import islice, repeat
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import flags

from experiments.benchmarks.original import adagrad, loss_and_gradient
from experiments.trainer.config import TrainConfig
from experiments.trainer.records import config_from_flags, define_flags
from lstm_jax.language import (
  CharTokenizer,
  language_model,
  make_batches,
  read_text,
  split,
)
from lstm_jax.training import init_state, make_optimizer, make_train_step, train

ROOT = Path(__file__).parents[2]
NUM_STEPS = 200


def recipe():
  """Return the configuration of the flagfile."""
  values = flags.FlagValues()
  holders = define_flags(TrainConfig(), values)
  path = ROOT / "experiments/recipes/original.flags"
  values(["train", f"--flagfile={path}"])
  return config_from_flags(TrainConfig(), holders)


@pytest.mark.exhaustive
def test_the_first_200_losses_equal_those_of_numpy():
  config = recipe()
  text = read_text(ROOT / "data/shakespeare.txt")
  tokenizer = CharTokenizer.from_text(text)
  # So little text that training goes past its end, where the state is reset.
  training, _ = split(tokenizer.encode(text[:8000]), config.data.val_fraction)
  batches = make_batches(
    training, config.batching.batch_size, config.batching.seq_len
  )
  assert batches.num_batches < NUM_STEPS

  shape = dataclasses.replace(config.model, dtype=np.float64)
  model = language_model(shape, tokenizer.size)
  params = model.init(jax.random.key(config.seed))
  (layer,) = params.layers
  leaves = params.embedding, *layer, params.readout, params.bias
  weights = [np.array(leaf) for leaf in leaves]
  assert [w.shape for w in weights] == [
    (64, 4), (4, 128), (32, 128), (128,), (32, 64), (64,)
  ]  # fmt: skip

  optimizer = make_optimizer(config.optimizer, NUM_STEPS)
  state = init_state(model, optimizer, params, config.batching.batch_size)
  train_step = make_train_step(model, optimizer)
  steps = islice(train(train_step, state, repeat(batches)), NUM_STEPS)
  losses = [float(metrics.loss) for _, metrics in steps]

  expected = []
  squares = [np.zeros_like(w) for w in weights]
  for step in range(NUM_STEPS):
    index = step % batches.num_batches
    if index == 0:
      carry = np.zeros(32), np.zeros(32)
    start = index * config.batching.seq_len
    sequence = training[start : start + config.batching.seq_len + 1]
    loss, gradient, carry = loss_and_gradient(
      weights, carry, sequence[:-1], sequence[1:]
    )
    expected.append(loss)
    adagrad(weights, gradient, squares)

  assert np.abs(np.array(losses) - expected).max() < 1e-9
  assert expected[-1] < expected[0] - 0.5  # and it learns
