import jax
import numpy as np
import pytest

from experiments.comparison.corpus import read_corpus
from experiments.comparison.models import make_models
from experiments.comparison.training import (
  evaluation_steps,
  sample_steps,
  train_cell,
)
from experiments.trainer.errors import Diverged
from lstm_jax.language import stateful_loss

TOO_LARGE = 3e38  # a learning rate whose first update diverges


def test_evaluations_and_samples_include_the_first_and_the_last_step():
  assert evaluation_steps(120) == [0, 10, 20, 50, 100, 120]
  assert evaluation_steps(5) == [0, 5]
  assert sample_steps(1200) == [0, 100, 1000, 1200]
  assert sample_steps(100) == [0, 100]


@pytest.mark.exhaustive
def test_a_cell_is_trained_and_its_losses_are_those_of_its_weights(
  comparison, key
):
  corpus = read_corpus(comparison)
  cell = make_models(["rnn"], comparison.model, corpus.tokenizer.size)["rnn"]
  keys, progress = jax.random.split(key, 2), []

  def on_step(*values):
    progress.append(values)

  trained = train_cell(cell, corpus, comparison, 0.03, 30, keys, on_step)
  assert [step for step, _, _ in progress] == [*range(1, 31)]
  assert all(loss > 0 and rate > 0 for _, loss, rate in progress)
  rows = trained.evaluations
  assert [row["step"] for row in rows] == [0, 10, 20, 30]
  weights = trained.initial_params, trained.final_params
  for row, seeds in zip((rows[0], rows[-1]), weights, strict=True):
    expected = [
      stateful_loss(cell.model, params, corpus.val) for params in seeds
    ]
    assert np.abs(np.array(row["val_loss"]) - expected).max() < 1e-6
  assert max(rows[-1]["val_loss"]) < min(rows[0]["val_loss"]) - 0.3
  assert rows[-1]["val_loss"][0] != rows[-1]["val_loss"][1]
  first, last = trained.samples
  assert (first["step"], last["step"]) == (0, 30)
  assert len(last["words_in_train"]) == 2 and len(last["text"]) == 200
  assert set(last["text"]) <= set(corpus.tokenizer.symbols)


@pytest.mark.exhaustive
def test_a_loss_that_is_not_finite_ends_the_training(comparison, key):
  corpus = read_corpus(comparison)
  cell = make_models(["rnn"], comparison.model, corpus.tokenizer.size)["rnn"]
  keys = jax.random.split(key, 2)
  with pytest.raises(
    Diverged, match=r"rnn: the training loss is not finite at step 2$"
  ):
    train_cell(cell, corpus, comparison, TOO_LARGE, 30, keys)
