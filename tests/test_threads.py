"""Threads that call the library at the same time."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from lstm_jax import gru
from lstm_jax.cells import made, make_hard_sigmoid
from lstm_jax.language import ModelConfig, language_model, model
from lstm_jax.training import (
  OptimizerConfig,
  ensemble,
  make_ensemble_train_step,
  make_optimizer,
  make_train_step,
  optimizer,
  train_step,
)

STEP = "uncompiled_train_step"
SLOPE, RATE, SIZE = 0.123, 0.0123, 123  # used by no other test: none is cached


@pytest.mark.parametrize(
  ("module", "name", "call"),
  [
    (
      made,
      "MadeCell",
      lambda: gru.with_activations(gates=make_hard_sigmoid(SLOPE)),
    ),
    (
      model,
      "LanguageModel",
      lambda: language_model(ModelConfig(hidden_size=4), SIZE),
    ),
    (
      optimizer,
      "learning_rate",
      lambda: make_optimizer(OptimizerConfig(learning_rate=RATE), SIZE),
    ),
    # Without a model and an optimizer: only a call of the step needs them.
    (train_step, STEP, lambda: make_train_step(None, None, ema_decay=RATE)),
    (
      ensemble,
      STEP,
      lambda: make_ensemble_train_step(None, None, ema_decay=RATE),
    ),
  ],
  ids=["cell", "model", "optimizer", "train_step", "ensemble_train_step"],
)
def test_equal_calls_of_two_threads_return_one_object(
  monkeypatch, module, name, call
):
  """While it makes its object, `call` calls `name` of `module`."""
  make = getattr(module, name)

  def slow(*args, **kwargs):
    time.sleep(0.02)  # so that the other thread calls it too
    return make(*args, **kwargs)

  monkeypatch.setattr(module, name, slow)
  with ThreadPoolExecutor(2) as threads:
    first, second = [threads.submit(call) for _ in range(2)]
  assert first.result() is second.result()
