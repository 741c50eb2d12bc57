import dataclasses

import jax
import numpy as np
import pytest

from experiments.cli import Diverged
from experiments.comparison.config import CompareConfig
from experiments.comparison.models import (
  contenders,
  count_parameters,
  nearest,
  seconds_per_update,
  trial,
)
from experiments.comparison.training import learn, looks, read_corpus, stages
from lstm_jax import gru, rnn
from lstm_jax.language import ModelConfig, language_model, stateful_loss


def test_the_sizes_are_those_of_most_equal_parameters():
  default = CompareConfig()
  every = contenders(64, default.embedding_size, default.hidden_size)
  wanted = every["lstm"].parameters
  assert every["lstm"].hidden_size == default.hidden_size
  for name, cell in (("rnn", rnn), ("gru", gru)):
    size = every[name].hidden_size
    misses = [
      abs(count_parameters(language_model(config)) - wanted)
      for config in (
        ModelConfig(64, cell, default.embedding_size, s)
        for s in (size - 1, size, size + 1)
      )
    ]
    assert misses[1] == abs(every[name].parameters - wanted)
    assert misses[1] == min(misses)
    assert misses[1] / wanted < 0.01
  assert every["rnn"].hidden_size > every["gru"].hidden_size


def test_the_nearest_size_may_lie_on_either_side_and_at_the_ends():
  square = {size: size * size for size in range(1, 21)}.__getitem__
  assert nearest(square, 26, 20) == 5
  assert nearest(square, 35, 20) == 6
  assert nearest(square, 0, 20) == 1
  assert nearest(square, 1000, 20) == 20


def test_looks_and_stages_begin_untrained_and_end_at_the_end():
  assert looks(120) == [0, 10, 20, 50, 100, 120]
  assert looks(5) == [0, 5]
  assert stages(1200) == [0, 100, 1000, 1200]
  assert stages(100) == [0, 100]


def test_a_trial_judges_each_rate_and_leaves_out_what_diverges(comparison, key):
  corpus = read_corpus(comparison)
  one = contenders(corpus.vocabulary.size, 4, 6)["rnn"]
  found = trial(one, corpus.training, [1e-9, 0.03], comparison, key)
  assert found[0.03] < found[1e-9] - 0.2
  found = trial(one, corpus.training, [3e38, 1e-9], comparison, key)
  assert list(found) == [1e-9]
  with pytest.raises(Diverged, match="rnn diverges at each rate of"):
    trial(one, corpus.training, [3e38], comparison, key)


def test_every_cell_is_timed(comparison, key):
  corpus = read_corpus(comparison)
  every = contenders(corpus.vocabulary.size, 4, 6)
  keys = jax.random.split(key, 2)
  seconds = seconds_per_update({"rnn": every["rnn"]}, keys, corpus.streams, 2)
  assert list(seconds) == ["rnn"] and 0 < seconds["rnn"] < 10


def test_a_cell_learns_and_its_figures_are_those_of_its_weights(
  comparison, console, key
):
  corpus = read_corpus(comparison)
  one = contenders(corpus.vocabulary.size, 4, 6)["rnn"]
  keys = jax.random.split(key, 2)
  learnt = learn(one, corpus, comparison, 0.03, 30, keys, console)
  rows = learnt.figures["held_out"]
  assert [row["step"] for row in rows] == [0, 10, 20, 30]
  for row, seeds in ((rows[0], learnt.untrained), (rows[-1], learnt.trained)):
    expected = [
      stateful_loss(one.model, params, corpus.held_out) for params in seeds
    ]
    assert np.abs(np.array(row["nats"]) - expected).max() < 1e-6
  assert max(rows[-1]["nats"]) < min(rows[0]["nats"]) - 0.3
  assert rows[-1]["nats"][0] != rows[-1]["nats"][1]
  first, last = learnt.figures["writing"]
  assert (first["step"], last["step"]) == (0, 30)
  assert len(last["in_training"]) == 2 and len(last["text"]) == 200
  assert set(last["text"]) <= set(corpus.vocabulary.symbols)
  with pytest.raises(Diverged, match="rnn: the training loss is not finite"):
    learn(one, corpus, comparison, 3e38, 30, keys, console)


def test_a_corpus_is_measured_as_what_is_written_is(comparison):
  figures = read_corpus(comparison).figures["writing"]
  assert figures["training text"]["in_training"] == 1
  assert figures["held-out text"]["in_held_out"] == 1
  assert 20 < figures["training text"]["line_length"] < 40
  short = dataclasses.replace(comparison, context=1000)
  with pytest.raises(ValueError, match="at least 1,001 characters, got 3"):
    read_corpus(short)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"learning_rate": ()}, "learning_rate must be positive and finite, got"),
    ({"learning_rate": (1.0, 0.0)}, r"finite, got \[1.0, 0.0\]"),
    ({"recall_learning_rate": (-1.0,)}, r"recall_learning_rate must be"),
    ({"delay": (5, 0)}, r"delays must be ≥ 1, got \[5, 0\]"),
    ({"seed": -1}, "seed must be ≥ 0, got -1"),
    ({"num_seeds": 0}, "num_seeds must be ≥ 1, got 0"),
  ],
)
def test_numbers_out_of_range_are_refused(change, message):
  with pytest.raises(ValueError, match=message):
    CompareConfig(**change)
