"""The sizes at which cells have as many parameters as the LSTM."""

import pytest

from experiments.comparison.config import CompareConfig
from experiments.comparison.models import (
  count_parameters,
  make_models,
  nearest_size,
)
from lstm_jax import gru, rnn, slstm
from lstm_jax.language import ModelConfig


@pytest.mark.exhaustive
def test_each_cell_has_the_size_with_the_nearest_number_of_parameters():
  default = CompareConfig().model
  models = make_models(CompareConfig().cells, default, 64)
  target = models["lstm"].num_parameters
  assert models["lstm"].hidden_size == default.hidden_size
  for name, cell in (("rnn", rnn), ("gru", gru)):
    size = models[name].hidden_size
    misses = [
      abs(count_parameters(config, 64) - target)
      for config in (
        ModelConfig(cell, default.embedding_size, s)
        for s in (size - 1, size, size + 1)
      )
    ]
    assert misses[1] == abs(models[name].num_parameters - target)
    assert misses[1] == min(misses)
    assert misses[1] / target < 0.01
  assert models["rnn"].hidden_size > models["gru"].hidden_size


def test_the_nearest_size_is_above_or_below_or_at_the_limits():
  # The number of parameters is the square of the size, which is at most 20.
  square = {size: size * size for size in range(1, 21)}.__getitem__
  assert nearest_size(square, 26, 20) == 5
  assert nearest_size(square, 35, 20) == 6
  assert nearest_size(square, 0, 20) == 1
  assert nearest_size(square, 1000, 20) == 20


def test_the_nearest_size_is_one_of_the_multiples():
  square = {size: size * size for size in range(4, 21, 4)}.__getitem__
  found = [nearest_size(square, x, 20, 4) for x in (0, 17, 39, 41, 256, 1000)]
  assert found == [4, 4, 4, 8, 16, 20]


@pytest.mark.exhaustive
def test_the_size_of_an_slstm_is_the_nearest_multiple_of_four():
  sizes = ModelConfig(hidden_size=32, embedding_size=8)
  models = make_models(("slstm", "lstm"), sizes, 10)
  model, target = models["slstm"], models["lstm"].num_parameters
  misses = {
    size: abs(count_parameters(config, 10) - target)
    for size in (52, 56, 60)
    for config in [ModelConfig(slstm, 8, size)]
  }
  assert model.hidden_size == min(misses, key=misses.get) == 56
  assert abs(model.num_parameters - target) == misses[56]


@pytest.mark.exhaustive
def test_a_minimal_gru_can_have_as_many_parameters_as_a_large_lstm():
  models = make_models(("min_gru", "lstm"), ModelConfig(hidden_size=464), 64)
  counts = {name: model.num_parameters for name, model in models.items()}
  assert abs(counts["min_gru"] / counts["lstm"] - 1) < 0.01
