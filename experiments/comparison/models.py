"""The compared language models: one of each cell, all of equal size.

The hidden size of the LSTM is given. Each other cell gets the hidden size whose
number of parameters, with embedding and readout, is nearest to the LSTM's. At
the default sizes, one hidden unit is less than 1 % of the parameters.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax

from experiments.trainer.config import CELLS
from lstm_jax.language import LanguageModel, ModelConfig, language_model

LARGEST = 256  # hidden sizes of the LSTM; a minimal GRU of its count has many


class CellModel(NamedTuple):
  """A language model with one layer of a cell."""

  name: str  # of the cell
  hidden_size: int
  num_parameters: int
  model: LanguageModel


def make_models(
  cells: Iterable[str], config: ModelConfig, vocabulary_size: int
) -> dict[str, CellModel]:
  """Return a model of each cell, all as large as an LSTM of these sizes."""

  def make(cell: str, size: int) -> LanguageModel:
    changed = replace(config, cell=CELLS[cell], hidden_size=size)
    return language_model(changed, vocabulary_size)

  def count(cell: str, size: int) -> int:
    return count_parameters(make(cell, size))

  target = count("lstm", config.hidden_size)
  models = {}
  for cell in cells:
    size = nearest_size(
      partial(count, cell), target, LARGEST * config.hidden_size
    )
    models[cell] = CellModel(cell, size, count(cell, size), make(cell, size))
  return models


def nearest_size(count: Callable[[int], int], target: int, limit: int) -> int:
  """Return the size in 1 … limit whose count is nearest to the target.

  Args:
    count: an increasing function of the size.
    target: the wanted count.
    limit: the largest size.
  """
  sizes = range(1, limit + 1)
  above = min(bisect_left(sizes, target, key=count) + 1, limit)
  below = max(above - 1, 1)
  return min(below, above, key=lambda size: abs(count(size) - target))


def count_parameters(model: LanguageModel) -> int:
  """Return the number of trainable parameters of a model."""
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  return sum(leaf.size for leaf in jax.tree.leaves(shapes))
