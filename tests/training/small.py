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

T, B, V = 4, 3, 9
MODEL = language_model(ModelConfig(embedding_size=3, hidden_size=5), V)
# 3 sequences of 16 time steps, in 4 batches.
EPOCH = make_batches(np.arange(47, dtype=np.int32) % V, B, T)


def start(key, **options):
  """Return (train step, state), with these options of the optimizer."""
  rule = make_optimizer(OptimizerConfig(**options), num_steps=100)
  state = init_state(MODEL, rule, MODEL.init(key), B)
  return make_train_step(MODEL, rule), state


def steps(train_step, state, number, key=None):
  """Yield (state, metrics) after each training step; the text repeats."""
  return islice(train(train_step, state, repeat(EPOCH), key), number)
