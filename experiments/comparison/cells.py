"""What is compared: the configuration, the corpus, and a model of each cell.

The hidden size of the LSTM is given. Each other cell gets the hidden size whose
number of parameters, with embedding and readout, is nearest to the LSTM's. An
sLSTM has the largest number of heads, up to 4, that divides its hidden size;
more heads mean fewer parameters. Its hidden size is a multiple of 4 here, so
that it has 4 heads, and the number of parameters increases with the size.
At the default sizes, the numbers of parameters differ from the LSTM's by less
than 0.7 %; in the recall task, whose models are smaller, by less than 2.5 %.
"""

import dataclasses
from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.analysis.text_stats import shuffled, text_stats, words
from experiments.trainer import data
from experiments.trainer.config import (
  CELLS,
  LARGEST,
  DataConfig,
  JobConfig,
)
from experiments.trainer.own_cell import init_shapes
from experiments.trainer.records import only
from lstm_jax.cells.slstm import HEADS
from lstm_jax.language import (
  Batches,
  BatchingConfig,
  LanguageModel,
  ModelConfig,
  Tokenizer,
  language_model,
  make_batches,
)
from lstm_jax.language.options import check_options, option
from lstm_jax.training import OptimizerConfig

MOST_TIMES = 256  # the LSTM's hidden size: a minimal GRU needs many units
MULTIPLES = {"slstm": HEADS}  # hidden sizes are multiples of this, or of 1


@dataclass(frozen=True)
class CompareConfig:
  """The settings of `compare_cells`.

  Each plain field is a flag, and so are those fields of a nested configuration
  that `only(...)` names.
  """

  data: DataConfig = only(DataConfig(), "corpus", "val_fraction")
  # Sizes of the LSTM; the other cells get the nearest number of parameters.
  model: ModelConfig = only(
    ModelConfig(hidden_size=160), "embedding_size", "hidden_size"
  )
  batching: BatchingConfig = only(BatchingConfig(), "batch_size", "seq_len")
  # The optimizer's rate is 1: the updates of each model that is trained are
  # multiplied by the learning rate of that model.
  optimizer: OptimizerConfig = only(
    OptimizerConfig(learning_rate=1.0, weight_decay=0.3), "weight_decay"
  )
  job: JobConfig = only(JobConfig(), "devices")  # which share the models
  cells: tuple[str, ...] = option(
    ("rnn", "gru", "lstm"),
    "Cell to compare. Repeat the flag for several; lstm must be among them, "
    "since the others get its number of parameters and its time.",
    choices=tuple(CELLS),
  )
  num_seeds: int = option(
    3,
    "Number of models of each cell, which differ in their initial weights and "
    "are trained together.",
    bounds="[1, inf)",
  )
  seed: int = option(
    0,
    "Seed of the key that all random numbers are derived from.",
    bounds=f"[0, {LARGEST}]",
  )
  num_steps: int = option(
    1000,
    "Training steps of the LSTM, and of every cell with equal steps.",
    bounds="[1, inf)",
  )
  learning_rate: tuple[float, ...] = option(
    (5e-3, 1e-2, 2e-2),
    "Peak learning rate. Repeat the flag to try several: each cell takes the "
    "one with the lowest loss on the end of the training split. While that is "
    "the largest or the smallest, twice or half of it is tried too, at most 8 "
    "times. A single one is taken without a trial.",
    bounds="(0, inf)",
  )
  trial_steps: int = option(
    300,
    "Training steps with which each learning rate is tried.",
    bounds="[1, inf)",
  )
  equal_time: bool = option(
    True,
    "Also train the other cells for the time that the LSTM's training takes.",
  )
  timing_rounds: int = option(
    11,
    "Training steps of each cell that are timed; the median is used.",
    bounds="[1, inf)",
  )
  context: int = option(
    512,
    "Longest context for which the validation loss is measured, in characters.",
    bounds="[1, inf)",
  )
  gradient_steps: int = option(
    200,
    "Longest distance, in time steps, for which the gradient of a character's "
    "loss with respect to an earlier state is measured.",
    bounds="[1, inf)",
  )
  delay: tuple[int, ...] = option(
    (1, 2, 5, 10, 20, 50, 100, 200, 500),
    "Recall task: blanks between a symbol and the step that names it. Repeat "
    "the flag for several.",
    bounds="[1, inf)",
  )
  recall_hidden_size: int = option(
    32,
    "Hidden units of the LSTM in the recall task; the other cells get the "
    "nearest number of parameters.",
    bounds="[1, inf)",
  )
  recall_steps: int = option(
    300,
    "Training steps for each delay of the recall task; 0 leaves it out.",
    bounds="[0, inf)",
  )
  recall_learning_rate: tuple[float, ...] = option(
    (1e-3, 3e-3, 1e-2, 3e-2),
    "Peak learning rate in the recall task. Repeat the flag to try several: "
    "the best for each cell, kind of initial biases and delay is reported.",
    bounds="(0, inf)",
  )

  def __post_init__(self):
    check_options(self)
    if "lstm" not in self.cells or len({*self.cells}) < len(self.cells):
      raise ValueError(
        f"cells must be distinct and include lstm, got {', '.join(self.cells)}"
      )
    for name in ("learning_rate", "delay", "recall_learning_rate"):
      values = getattr(self, name)
      if len({*values}) < len(values):
        raise ValueError(
          f"{name} must have distinct values, got {', '.join(map(str, values))}"
        )


class Corpus(NamedTuple):
  """A text, cut into a training and a validation split."""

  tokenizer: Tokenizer
  train: np.ndarray  # tokens of the training split, int32 [N]
  val: np.ndarray  # tokens of the validation split
  batches: Batches  # of the training split
  known_words: tuple[set[str], set[str]]  # of the training and validation split
  statistics: dict[str, Any]  # for the record


def read_corpus(config: CompareConfig) -> Corpus:
  """Read, split and describe the corpus.

  Raises:
    ValueError: the file cannot be read or is too short.
  """
  text, tokenizer, train, val, *_ = data.read_corpus(config.data)
  needed = max(config.context, config.gradient_steps) + 1
  if len(val.tokens) < needed:
    raise ValueError(
      f"context and gradient_steps need a validation split of at least "
      f"{needed:,} characters, got {len(val.tokens):,} of {config.data.corpus}"
    )
  batching = config.batching
  with data.naming_flags(config.data, batching):
    batches = make_batches(train.tokens, batching.batch_size, batching.seq_len)
  val_text = val.text
  # If the splits meet within a line, drop its rest, unless nothing follows it.
  if not train.text.endswith("\n"):
    val_text = val_text.partition("\n")[2] or val_text
  known_words = set(words(train.text)), set(words(val_text))
  texts = {
    "training text": train.text,
    "validation text": val_text,
    "validation text, lines shuffled": shuffled(val_text),
  }
  statistics = {
    "num_characters": len(text),
    "vocabulary_size": tokenizer.size,
    "num_val_characters": len(val.tokens),
    "steps_per_epoch": batches.num_batches,
    "text_statistics": {
      title: text_stats([content], *known_words)._asdict()
      for title, content in texts.items()
    },
  }
  return Corpus(
    tokenizer, train.tokens, val.tokens, batches, known_words, statistics
  )


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
    return dataclasses.replace(config, cell=CELLS[cell], hidden_size=size)

  def count(cell: str, size: int) -> int:
    return count_parameters(sized(cell, size), vocabulary_size)

  target = count("lstm", config.hidden_size)
  models = {}
  for cell in cells:
    size, multiple = config.hidden_size, MULTIPLES.get(cell, 1)
    if cell != "lstm":
      limit = MOST_TIMES * size
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
