"""The cells that are compared: equal in parameters, each at its own rate.

Equal parameters: the size of the LSTM is given; each other cell has the hidden
size whose count of all parameters, embedding and readout included, is nearest
to the LSTM's. One unit of H is less than 1 % at the default sizes.

Learning rates: one rate for all would favour the cell it was chosen for. Every
cell tries each rate for a while on the training text less its end, and takes
the one with the lowest loss on that end. The held-out text has no part in it.

Equal time: the seconds of an update, measured in turns, give each cell as many
updates as fit into the LSTM's time.
"""

import math
from bisect import bisect_left
from collections.abc import Callable
from functools import partial
from itertools import islice, repeat
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.benchmarks.timing import measure
from experiments.cli import Diverged
from experiments.comparison.config import CompareConfig
from experiments.trainer.config import CELLS
from lstm_jax.language import (
  Batches,
  LanguageModel,
  ModelConfig,
  language_model,
  make_batches,
  split,
  stateful_loss,
)
from lstm_jax.training import (
  OptimizerConfig,
  init_ensemble,
  init_state,
  make_ensemble_train_step,
  make_optimizer,
  make_train_step,
  train,
)

NAMES = "rnn", "gru", "lstm"
DEVELOPMENT = 0.1  # of the training text: its end, which judges the rates


class Contender(NamedTuple):
  """A cell at the size that makes it equal to the others."""

  name: str
  hidden_size: int
  parameters: int
  model: LanguageModel


def contenders(
  vocabulary_size: int, embedding_size: int, hidden_size: int
) -> dict[str, Contender]:
  """Return the cells with as many parameters as an LSTM of hidden_size."""

  def config(name: str, size: int) -> ModelConfig:
    return ModelConfig(
      vocabulary_size, CELLS[name], embedding_size, hidden_size=size
    )

  def count(name: str, size: int) -> int:
    return count_parameters(language_model(config(name, size)))

  wanted = count("lstm", hidden_size)
  found = {}
  for name in NAMES:
    size = nearest(partial(count, name), wanted, 8 * hidden_size)
    model = language_model(config(name, size))
    found[name] = Contender(name, size, count(name, size), model)
  return found


def nearest(count: Callable[[int], int], wanted: int, limit: int) -> int:
  """Return the size in 1 … limit whose count is nearest; count must grow."""
  sizes = range(1, limit + 1)
  above = min(bisect_left(sizes, wanted, key=count) + 1, limit)
  below = max(above - 1, 1)
  return min(below, above, key=lambda size: abs(count(size) - wanted))


def count_parameters(model: LanguageModel) -> int:
  """Return how many numbers a model learns."""
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def trial(
  contender: Contender,
  training: np.ndarray,
  rates: list[float],
  config: CompareConfig,
  key: jax.Array,
) -> dict[float, float]:
  """Return the nats that each rate reaches on the end of the training text.

  A rate at which training diverges is left out.

  Raises:
    Diverged: it does at every rate.
  """
  rest, development = split(training, DEVELOPMENT)
  streams = make_batches(rest, config.batch_size, config.seq_len)
  model, updates, found = contender.model, config.trial_steps, {}
  params = model.init(key)
  for rate in rates:
    rule = make_optimizer(
      OptimizerConfig(learning_rate=rate, weight_decay=config.weight_decay),
      updates,
    )
    state = init_state(model, rule, params, config.batch_size)
    for now, _ in islice(
      train(make_train_step(model, rule), state, repeat(streams)), updates
    ):
      state = now
    nats = stateful_loss(model, state.params, development)
    if math.isfinite(nats):
      found[rate] = nats
  if not found:
    raise Diverged(f"{contender.name} diverges at each rate of {rates}")
  return found


def seconds_per_update(
  every: dict[str, Contender], keys: jax.Array, streams: Batches, rounds: int
) -> dict[str, float]:
  """Return each cell's median seconds of an ensemble's update, in turns."""
  block = streams.batch(0)
  rule = make_optimizer(OptimizerConfig(), rounds + 1)

  def program(contender: Contender) -> Callable[[], Any]:
    model = contender.model
    params = jax.vmap(model.init)(keys)
    batch_size = streams.tokens.shape[1]
    states = [init_ensemble(model, rule, params, batch_size)]
    update = make_ensemble_train_step(model, rule)

    def run():
      state, metrics = update(states.pop(), *block)
      states.append(state)
      return jax.block_until_ready((state, metrics))

    return run

  programs = {name: program(one) for name, one in every.items()}
  seconds = measure(programs, rounds)
  return {name: float(np.median(each)) for name, each in seconds.items()}
