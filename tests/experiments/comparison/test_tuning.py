import jax
import pytest

from experiments.comparison.corpus import read_corpus
from experiments.comparison.models import make_models
from experiments.comparison.tuning import seconds_per_step, try_learning_rates
from experiments.trainer.errors import Diverged
from experiments.trainer.records import replace

TOO_LARGE = 3e38  # a learning rate at which training diverges at once


def test_learning_rates_are_compared_and_those_that_diverge_left_out(
  comparison, key
):
  corpus = read_corpus(comparison)
  cell = make_models(comparison.model, corpus.tokenizer.size)["rnn"]

  def losses(*rates):
    config = replace(comparison, learning_rate=rates)
    return try_learning_rates(cell, corpus.train, config, key)

  found = losses(TOO_LARGE, 1e-9, 0.03)
  assert list(found) == [1e-9, 0.03]
  assert found[0.03] < found[1e-9] - 0.2
  with pytest.raises(Diverged, match="rnn diverges at each learning rate of"):
    losses(TOO_LARGE)


def test_every_cell_is_timed(comparison, key):
  corpus = read_corpus(comparison)
  cell = make_models(comparison.model, corpus.tokenizer.size)["rnn"]
  keys = jax.random.split(key, 2)
  seconds = seconds_per_step({"rnn": cell}, corpus.batches, comparison, keys)
  assert list(seconds) == ["rnn"] and 0 < seconds["rnn"] < 10
