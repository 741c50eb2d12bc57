"""A small language model, and a text of 47 tokens, to train it on."""

from itertools import islice, repeat

import numpy as np

from lstm_jax.language import ModelConfig, language_model, make_batches
from lstm_jax.training import (
  OptimizerConfig,
  init_state,
  make_optimizer,
  make_train_step,
  train,
)

MODEL = language_model(ModelConfig(embedding_size=3, hidden_size=5), 9)
STREAMS = make_batches(np.arange(47, dtype=np.int32) % 9, 3, 4)


def start(key, **options):
  """Return (train step, state), with these options of the optimizer."""
  rule = make_optimizer(OptimizerConfig(**options), 100)
  state = init_state(MODEL, rule, MODEL.init(key), 3)
  return make_train_step(MODEL, rule), state


def steps(train_step, state, number, key=None):
  """Yield (state, metrics) after each of some steps, the text over and over."""
  return islice(train(train_step, state, repeat(STREAMS), key), number)
