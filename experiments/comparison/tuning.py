"""The learning rate of each cell, and its training steps in equal time.

Learning rate: one rate for all cells would favour the cell that it was chosen
for. Each cell tries every rate for a number of training steps on the training
split without its end, and takes the rate with the lowest loss on that end. If
the best rate is the largest or the smallest, a better one may lie beyond it. So
twice or half of it is tried too, until the best rate is neither the largest nor
the smallest, or MOST_FURTHER rates were added. The validation split plays no
part in this choice.

Equal time: a training step of every cell is timed here. In `measurements` each
cell gets the number of training steps that takes as long as all of the LSTM's.
"""

import math
from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.timing import measure
from experiments.comparison.config import CompareConfig
from experiments.comparison.models import CellModel
from experiments.comparison.training import make_ensemble
from experiments.trainer import data
from experiments.trainer.loop import Diverged, Observer, fit
from lstm_jax.language import (
  Batches,
  make_batches,
  split,
  stateful_loss,
)
from lstm_jax.training import each_member

MOST_FURTHER = 8  # rates beyond those given
TRIAL_FRACTION = 0.1  # of the training split: its end, which judges the rates


class Trial(NamedTuple):
  """The training split, cut in two for the trials of learning rates."""

  batches: Batches  # to train on
  end: np.ndarray  # tokens whose loss judges the rates, int32 [N]


def make_trial(train_tokens: np.ndarray, config: CompareConfig) -> Trial:
  """Cut the training split in two.

  Raises:
    ValueError: without its end, it is shorter than one batch.
  """
  rest, end = split(train_tokens, TRIAL_FRACTION)
  batching = config.batching
  with data.naming_flags(config.data, batching):
    try:
      batches = make_batches(rest, batching.batch_size, batching.seq_len)
    except ValueError as error:
      raise ValueError(f"{error} to try learning rates on") from None
  return Trial(batches, end)


def try_learning_rates(
  cell: CellModel,
  trial: Trial,
  config: CompareConfig,
  key: jax.Array,
  rates: Sequence[float],
) -> dict[float, float]:
  """Return the loss of each learning rate on the end of the training split.

  All rates train together, from the same initial weights. Where training
  diverges the loss is infinite.

  Raises:
    Diverged: training diverges at every rate.
  """
  model, num_steps = cell.model, config.trial_steps
  keys = jnp.stack([key] * len(rates))
  state, train_step = make_ensemble(model, config, num_steps, keys, [*rates])
  state, _ = fit(
    train_step,
    state,
    repeat(trial.batches),
    num_steps,
    Observer(),
    evaluate_at=lambda step: False,
  )
  losses = {
    rate: stateful_loss(model, params, trial.end)
    for rate, params in zip(rates, each_member(state.params), strict=True)
  }
  if not any(map(math.isfinite, losses.values())):
    raise Diverged(f"{cell.name} diverges at each learning rate of {[*rates]}")
  return {r: x if math.isfinite(x) else math.inf for r, x in losses.items()}


def widen(
  rates: Sequence[float],
  try_rates: Callable[[Sequence[float]], dict[float, float]],
) -> dict[float, float]:
  """Return the finite losses of rates, and of further ones beyond their ends.

  Args:
    rates: several learning rates.
    try_rates: rates -> the loss of each, infinite where training diverges; it
      raises Diverged if training diverges at all of them.

  Raises:
    Diverged: training diverges at each of `rates`.
  """
  losses = try_rates(rates)
  for _ in range(MOST_FURTHER):
    best = min(losses, key=losses.__getitem__)
    largest, smallest = max(losses.keys()), min(losses.keys())
    if best == largest:
      further = 2 * best
    elif best == smallest:
      further = best / 2
    else:
      break
    try:
      losses |= try_rates([further])
    except Diverged:
      losses[further] = math.inf
  return {r: losses[r] for r in sorted(losses) if math.isfinite(losses[r])}


def seconds_per_step(
  models: dict[str, CellModel],
  batches: Batches,
  config: CompareConfig,
  keys: jax.Array,
) -> dict[str, float]:
  """Return each cell's median seconds of a step that trains all seeds."""
  batch, rounds = batches.batch(0), config.timing_rounds

  def make_run(cell: CellModel) -> Callable[[], Any]:
    # The same program as in training. Its time does not depend on the rate.
    state, train_step = make_ensemble(
      cell.model, config, config.num_steps, keys, [1e-3] * len(keys)
    )

    def run():
      nonlocal state
      state, metrics = jax.block_until_ready(train_step(state, *batch))
      return metrics

    return run

  runs = {name: make_run(cell) for name, cell in models.items()}
  seconds = measure(runs, rounds)
  return {name: float(np.median(times)) for name, times in seconds.items()}
