"""The measurements of a comparison, as the entries of comparison.json."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
from rich.console import Console

from experiments.analysis import recall
from experiments.analysis.context import bins, gradient_norms, nats_by_context
from experiments.analysis.recall import GATE_BIASES
from experiments.comparison.config import CompareConfig
from experiments.comparison.corpus import Corpus
from experiments.comparison.models import CellModel, make_models
from experiments.comparison.training import TrainedCell
from experiments.comparison.tuning import (
  make_trial,
  seconds_per_step,
  try_learning_rates,
  widen,
)
from experiments.trainer.config import CELLS
from experiments.trainer.distributed import members_mesh
from experiments.trainer.format import counted, format_milliseconds
from experiments.trainer.loop import Diverged
from lstm_jax.language import ModelConfig

EQUAL_STEPS, EQUAL_TIME = "equal steps", "equal time"  # the two budgets
USUAL_BIAS, CHRONO_BIAS = "usual", "chrono"  # initial biases in recall


def describe_cells(
  models: dict[str, CellModel],
  corpus: Corpus,
  config: CompareConfig,
  keys: jax.Array,
  trial_key: jax.Array,
  console: Console,
) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yield (cell, its size, speed and learning rate), and print each.

  The learning rate is None if training diverges at every one that is tried.

  Args:
    models: the model of each cell.
    corpus: the text.
    config: the learning rates to try, and how to time a training step.
    keys: one key for each of S seeds, [S].
    trial_key: draws the initial weights for the trials of learning rates.
    console: where to print.

  Raises:
    ValueError: the corpus is too short to try learning rates.
  """
  several = len(config.learning_rate) > 1
  trial = make_trial(corpus.train, config) if several else None
  seconds = seconds_per_step(models, corpus.batches, config, keys)
  width = max(map(len, models))
  for name, cell in models.items():
    losses: dict[float, float] = {}  # of the rates that did not diverge
    learning_rate: float | None = config.learning_rate[0]
    chosen = f"learning rate {learning_rate} (the only one given)"
    if trial:
      try_rates = partial(try_learning_rates, cell, trial, config, trial_key)
      try:
        losses = widen(config.learning_rate, try_rates)
      except Diverged:
        learning_rate, chosen = None, "diverged at each learning rate given"
      else:
        learning_rate = min(losses, key=losses.__getitem__)
        trials = [f"loss {loss:.3f} at {r}" for r, loss in losses.items()]
        chosen = f"learning rate {learning_rate} ({', '.join(trials)})"
    console.print(
      f"{name:{width}}  H {cell.hidden_size}, "
      f"{cell.num_parameters:,} parameters, "
      f"{format_milliseconds(1e3 * seconds[name])} ms per training step of "
      f"{counted(len(keys), 'seed')}, {chosen}",
      soft_wrap=True,
    )
    steps = round(config.num_steps * seconds["lstm"] / seconds[name])
    yield (
      name,
      {
        "hidden_size": cell.hidden_size,
        "num_parameters": cell.num_parameters,
        "seconds_per_step": seconds[name],
        "steps_in_equal_time": max(1, steps),
        "learning_rate": learning_rate,
        "learning_rate_trials": [
          {"learning_rate": rate, "loss": loss} for rate, loss in losses.items()
        ],
      },
    )


def plan_runs(
  cells: dict[str, dict[str, Any]], config: CompareConfig
) -> list[tuple[str, str, int]]:
  """Return (budget, cell, training steps) of each training run.

  The LSTM has one run for both budgets: equal time is the time of its run.
  """
  runs = [(EQUAL_STEPS, name, config.num_steps) for name in cells]
  if config.equal_time:
    runs += [
      (EQUAL_TIME, name, cells[name]["steps_in_equal_time"])
      for name in cells
      if name != "lstm"
    ]
  return runs


def finished(record: dict[str, Any]) -> list[dict[str, Any]]:
  """Return the training runs of a record that did not diverge."""
  return [run for run in record["runs"] if run["evaluations"]]


def diverged(record: dict[str, Any], cell: str) -> str:
  """Return the end of a cell's label: the budgets in which it diverged.

  It is "" if the cell diverged in none.
  """
  budgets = [
    run["budget"]
    for run in record["runs"]
    if run["cell"] == cell and not run["evaluations"]
  ]
  return f", diverged: {', '.join(budgets)}" if budgets else ""


def loss_by_context(
  cell: CellModel, trained: TrainedCell, corpus: Corpus, config: CompareConfig
) -> dict[str, Any]:
  """Return each seed's validation loss in bins of the context's length."""
  return {
    "lengths": bins(config.context),
    "val_loss": [
      nats_by_context(cell.model, params, corpus.val, config.context)
      for params in trained.final_params
    ],
  }


def gradient_flow(
  cell: CellModel, trained: TrainedCell, corpus: Corpus, config: CompareConfig
) -> list[dict[str, Any]]:
  """Return the gradient norms before and after training, means over seeds.

  A norm that is NaN or infinite in float32 is None.
  """
  rows = []
  stages = {
    "untrained": trained.initial_params,
    "trained": trained.final_params,
  }
  for stage, seeds in stages.items():
    norms = [
      gradient_norms(
        CELLS[cell.name], params, corpus.val, config.gradient_steps
      )
      for params in seeds
    ]
    means = {
      field: [
        float(value) if np.isfinite(value) else None
        for value in np.mean([seed[field] for seed in norms], axis=0)
      ]
      for field in norms[0]
    }
    rows.append({"cell": cell.name, "stage": stage, "norms": means})
  return rows


def delayed_recall(
  config: CompareConfig, key: jax.Array, console: Console
) -> Iterator[list[dict[str, Any]]]:
  """Train each cell at each delay; yield and print each seed's accuracy.

  A cell of GATE_BIASES, which has a gate that keeps its memory, learns each
  delay twice: from its usual initial biases, and from those that fit the delay
  (`experiments.analysis.recall`).
  Each list has the rows of one cell and one kind of biases, one for each delay.
  """
  sizes = ModelConfig(
    embedding_size=recall.EMBEDDING, hidden_size=config.recall_hidden_size
  )
  models = make_models(config.cells, sizes, recall.VOCABULARY)
  biases = [
    (name, bias)
    for name in models
    for bias in (USUAL_BIAS, CHRONO_BIAS)
    if bias == USUAL_BIAS or name in GATE_BIASES
  ]
  for name, bias in biases:
    cell, rows = models[name], []
    for delay in config.delay:
      keys = jax.random.split(jax.random.fold_in(key, delay), config.num_seeds)
      result = recall.learn(
        cell.model,
        keys,
        delay,
        config.recall_steps,
        config.recall_learning_rate,
        chrono=name if bias == CHRONO_BIAS else None,
        mesh=members_mesh(config.job.devices, config.num_seeds),
      )
      rows.append(
        {
          "cell": name,
          "forget_bias": bias,
          "hidden_size": cell.hidden_size,
          "num_parameters": cell.num_parameters,
          "delay": delay,
          "learning_rate": result.learning_rate,
          "accuracy": result.accuracy,
          "loss": result.nats,
        }
      )
      accuracy = ", ".join(f"{value:.2f}" for value in result.accuracy)
      console.print(
        f"recall, {name}, {bias} initial biases, delay {delay}: "
        f"accuracy {accuracy}",
        soft_wrap=True,
      )
    yield rows
