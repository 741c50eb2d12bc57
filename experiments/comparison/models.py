"""The compared language models: one of each cell, all of equal size.

The hidden size of the LSTM is given. Each other cell gets the hidden size whose
number of parameters, with embedding and readout, is nearest to the LSTM's. An
sLSTM has the largest number of heads, up to 4, that divides its hidden size;
more heads mean fewer parameters. Its hidden size is a multiple of 4 here, so
that it has 4 heads, and the number of parameters increases with the size.
At the default sizes, the numbers of parameters differ from the LSTM's by less
than 0.7 %; in the recall task, whose models are smaller, by less than 2.5 %.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import lru_cache, partial
from typing import NamedTuple

import jax

from experiments.trainer.config import CELLS
from experiments.trainer.own_cell import init_shapes
from lstm_jax.cells.slstm import HEADS
from lstm_jax.language import LanguageModel, ModelConfig, language_model

LARGEST = 256  # times the LSTM's hidden size: a minimal GRU needs many units
MULTIPLES = {"slstm": HEADS}  # hidden sizes are multiples of this, or of 1


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

  def sized(cell: str, size: int) -> ModelConfig:
    return replace(config, cell=CELLS[cell], hidden_size=size)

  def count(cell: str, size: int) -> int:
    return count_parameters(sized(cell, size), vocabulary_size)

  target = count("lstm", config.hidden_size)
  models = {}
  for cell in cells:
    size, multiple = config.hidden_size, MULTIPLES.get(cell, 1)
    if cell != "lstm":
      limit = LARGEST * size
      size = nearest_size(partial(count, cell), target, limit, multiple)
    model = language_model(sized(cell, size), vocabulary_size)
    models[cell] = CellModel(cell, size, count(cell, size), model)
  return models


def nearest_size(
  count: Callable[[int], int], target: int, limit: int, multiple: int = 1
) -> int:
  """Return the size in 1 … limit whose count is nearest to the target.

  Args:
    count: a function of the size that increases over the multiples.
    target: the wanted count.
    limit: the largest size, itself a multiple of `multiple`.
    multiple: only multiples of this number are sizes.
  """
  sizes = range(multiple, limit + 1, multiple)
  index = bisect_left(sizes, target, key=count)
  nearest = sizes[max(index - 1, 0) : index + 1]
  return min(nearest, key=lambda size: abs(count(size) - target))


@lru_cache(maxsize=1024)
def count_parameters(config: ModelConfig, vocabulary_size: int) -> int:
  """Return the number of trainable parameters of a language model."""
  model = language_model(config, vocabulary_size)
  shapes = init_shapes(model.init)
  return sum(leaf.size for leaf in jax.tree.leaves(shapes))
