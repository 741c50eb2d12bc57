"""The parts of a comparison: what each adds to the record."""

from typing import Any

import jax
import numpy as np
from rich.console import Console

from experiments.analysis import recall
from experiments.analysis.context import bins, gradient_norms, nats_by_context
from experiments.comparison.config import CompareConfig
from experiments.comparison.models import (
  Contender,
  contenders,
  seconds_per_update,
  trial,
)
from experiments.comparison.training import Corpus, Learnt
from experiments.trainer.config import CELLS

PARAMETERS, TIME = "equal parameters", "equal time"


def cells_part(
  every: dict[str, Contender],
  corpus: Corpus,
  config: CompareConfig,
  keys: jax.Array,
  key_trial: jax.Array,
  console: Console,
) -> dict[str, dict[str, Any]]:
  """Return each cell's size, learning rate, and updates in equal time."""
  seconds = seconds_per_update(every, keys, corpus.streams, config.rounds)
  cells = {}
  for name, one in every.items():
    rates = list(config.learning_rate)
    nats: dict[float, float] = {}
    if len(rates) > 1:
      nats = trial(one, corpus.training, rates, config, key_trial)
    rate = min(nats, key=nats.__getitem__) if nats else rates[0]
    fitting = round(config.num_steps * seconds["lstm"] / seconds[name])
    cells[name] = {
      "hidden_size": one.hidden_size,
      "parameters": one.parameters,
      "seconds_per_update": seconds[name],
      "updates_in_equal_time": max(1, fitting),
      "learning_rate": rate,
      "tried": [{"rate": r, "nats": n} for r, n in nats.items()],
    }
    tried = ", ".join(f"{n:.3f} nats at {r:g}" for r, n in nats.items())
    console.print(
      f"{name:4}  H {one.hidden_size}, {one.parameters:,} parameters, "
      f"{1e3 * seconds[name]:.0f} ms an update of {len(keys)} seeds; learning "
      f"rate {rate:g} ({tried or 'given'})",
      soft_wrap=True,
    )
  return cells


def runs_part(
  cells: dict[str, dict[str, Any]], num_steps: int
) -> list[tuple[str, str, int]]:
  """Return (budget, cell, updates) of each training run.

  The LSTM has one: the others' time is its own.
  """
  return [
    *((PARAMETERS, name, num_steps) for name in cells),
    *(
      (TIME, name, cells[name]["updates_in_equal_time"])
      for name in cells
      if name != "lstm"
    ),
  ]


def context_part(
  contender: Contender, learnt: Learnt, corpus: Corpus, config: CompareConfig
) -> dict[str, Any]:
  """Return each seed's nats by length of context."""
  return {
    "lengths": bins(config.context),
    "nats": [
      nats_by_context(contender.model, params, corpus.held_out, config.context)
      for params in learnt.trained
    ],
  }


def flow_part(
  contender: Contender, learnt: Learnt, corpus: Corpus, config: CompareConfig
) -> list[dict[str, Any]]:
  """Return the norms, means over seeds, before training and after."""
  rows = []
  both = ("untrained", learnt.untrained), ("trained", learnt.trained)
  for stage, seeds in both:
    found = [
      gradient_norms(
        CELLS[contender.name], params, corpus.held_out, config.flow_steps
      )
      for params in seeds
    ]
    norms = {
      field: np.mean([each[field] for each in found], axis=0).tolist()
      for field in found[0]
    }
    rows.append({"cell": contender.name, "stage": stage, "norms": norms})
  return rows


def recall_part(
  config: CompareConfig, key: jax.Array, console: Console
) -> list[dict[str, Any]]:
  """Return a row of accuracies for each cell and delay."""
  every = contenders(
    recall.VOCABULARY, recall.EMBEDDING, config.recall_hidden_size
  )
  rows = []
  for name, one in every.items():
    for delay in config.delay:
      keys = jax.random.split(jax.random.fold_in(key, delay), config.num_seeds)
      found = recall.learn(
        one.model,
        keys,
        delay,
        config.recall_steps,
        config.recall_learning_rate,
      )
      rows.append(
        {
          "cell": name,
          "hidden_size": one.hidden_size,
          "parameters": one.parameters,
          "delay": delay,
        }
        | found._asdict()
      )
      accuracy = ", ".join(f"{a:.2f}" for a in found.accuracy)
      console.print(f"recall, {name}, delay {delay}: accuracy {accuracy}")
  return rows
