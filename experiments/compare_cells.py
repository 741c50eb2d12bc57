"""Compare RNN, GRU and LSTM: what do gated cells learn that an RNN does not?

  python -m experiments.compare_cells

trains the three cells, or those of --cells, with the same number of parameters
on the same text, with several seeds. There are two budgets: the same number of
training steps ("equal steps"), and the time of the LSTM's run ("equal time").
--hidden_size is that of the LSTM; the other cells get the size with the nearest
number of parameters. Each cell uses its own best learning rate, chosen on
training text. It measures

- the validation loss during training;
- statistics of samples: words found in the training or validation text, line
  length, rhymes;
- the validation loss by the length of the context;
- delayed recall: the accuracy of naming a symbol after 1 to 500 blanks, with
  the cells' usual initial biases and, for gated cells, with those of chrono
  initialization (`analysis.recall`), which fit the delay;
- gradient flow: the norm of the gradient of one character's loss with respect
  to each earlier state, before and after training with equal steps.

A training that diverges is marked, and the others continue. The directory --out
receives the results as comparison.json, a figure (comparison.png), and
samples.txt; --overwrite replaces those that it holds. --replot prints the
tables and draws the figure of an existing comparison.json. The modules of
`experiments/comparison` and `experiments/analysis` describe how each quantity
is measured.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from rich.console import Console

from experiments.analysis import recall
from experiments.analysis.context import bins, gradient_norms, nats_by_context
from experiments.analysis.recall import GATE_BIASES
from experiments.benchmarks.timing import environment
from experiments.cli import launch, make_console
from experiments.comparison.cells import (
  CellModel,
  CompareConfig,
  Corpus,
  make_models,
  read_corpus,
)
from experiments.comparison.results import (
  CHRONO_BIAS,
  EQUAL_STEPS,
  USUAL_BIAS,
  finished,
  naming_damaged,
  open_results,
  print_held,
  print_tables,
  read_record,
  recorded_command,
  tables,
)
from experiments.comparison.training import (
  TrainedCell,
  describe_cells,
  plan_runs,
  train_cell,
)
from experiments.trainer.config import CELLS
from experiments.trainer.display import TrainingBar
from experiments.trainer.distributed import members_mesh, share_members
from experiments.trainer.figures import save as save_figure
from experiments.trainer.files import write_bytes, write_json
from experiments.trainer.format import counted
from experiments.trainer.loop import Diverged
from experiments.trainer.records import (
  config_from_flags,
  define_flags,
  to_record,
)
from experiments.trainer.run_dir import lock
from lstm_jax.language import ModelConfig

RECORD, FIGURE, SAMPLES = "comparison.json", "comparison.png", "samples.txt"
FILES = RECORD, FIGURE, SAMPLES


def run(
  config: CompareConfig, directory: Path, console: Console
) -> dict[str, Any]:
  """Compare the cells, print and save the results, and return them.

  A training that diverges is recorded as such, and the others continue.

  Raises:
    ValueError: the corpus or the configuration is not usable.
    Diverged: every training diverges.
  """
  start = time.monotonic()
  corpus = read_corpus(config)
  models = make_models(config.cells, config.model, corpus.tokenizer.size)
  # trial_key draws the weights of the trials that choose the learning rates.
  seeds_key, trial_key, recall_key = jax.random.split(
    jax.random.key(config.seed), 3
  )
  keys = jax.random.split(seeds_key, config.num_seeds)
  record: dict[str, Any] = {
    "command": recorded_command("compare_cells"),
    "config": to_record(config),
    "environment": environment(),
    "corpus": corpus.statistics,
    "cells": {},
    "runs": [],
    "context": [],
    "gradient_flow": [],
    "recall": [],
  }
  # Save after each measurement: it is kept if the rest is interrupted.
  for name, description in describe_cells(
    models, corpus, config, keys, trial_key, console
  ):
    record["cells"][name] = description
    save(record, directory)
  for budget, name, num_steps in plan_runs(record["cells"], config):
    steps = counted(num_steps, "training step")
    console.print(f"{name}, {budget}: {steps}")
    cell, rate = models[name], record["cells"][name]["learning_rate"]
    trained = train(cell, corpus, config, rate, num_steps, keys, console)
    run_id = {"cell": name, "budget": budget, "num_steps": num_steps}
    if trained is None:
      record["runs"].append(run_id | {"evaluations": None, "samples": None})
      save(record, directory)
      continue
    results = {"evaluations": trained.evaluations, "samples": trained.samples}
    record["runs"].append(run_id | results)
    record["context"].append(
      run_id | loss_by_context(cell, trained, corpus, config)
    )
    save(record, directory)
    if budget == EQUAL_STEPS:
      record["gradient_flow"] += gradient_flow(cell, trained, corpus, config)
      save(record, directory)
  if config.recall_steps:
    for rows in delayed_recall(config, recall_key, console):
      record["recall"] += rows
      save(record, directory)
  record["seconds"] = time.monotonic() - start
  save(record, directory)
  if not finished(record):
    raise Diverged(f"every training of {', '.join(models)} diverged")
  report(record, directory, console)
  return record


def train(
  cell: CellModel,
  corpus: Corpus,
  config: CompareConfig,
  learning_rate: float | None,
  num_steps: int,
  keys: jax.Array,
  console: Console,
) -> TrainedCell | None:
  """Train a cell; if training diverges, print a line and return None.

  The learning rate is None if training diverged at each one that was tried.
  """
  try:
    if learning_rate is None:
      raise Diverged(f"{cell.name} diverges at each learning rate")
    with TrainingBar(console, num_steps, corpus.tokenizer.unit) as bar:
      return train_cell(
        cell, corpus, config, learning_rate, num_steps, keys, bar.update
      )
  except Diverged as error:
    console.print(f"{error}", soft_wrap=True)
    return None


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


def save(record: dict[str, Any], directory: Path) -> None:
  """Write comparison.json and samples.txt; the figure is drawn at the end."""
  write_json(directory / RECORD, record)
  (directory / FIGURE).unlink(missing_ok=True)  # it shows earlier results
  samples = "".join(
    f"=== {run['cell']}, {run['budget']}, step {sample['step']} ===\n"
    f"{sample['text']}\n\n"
    for run in record["runs"]
    for sample in run["samples"] or ()
  )
  write_bytes(directory / SAMPLES, samples.encode())


def load(directory: Path) -> dict[str, Any]:
  """Return the record that `save` wrote.

  Raises:
    ValueError: the directory has no record, a damaged one, or one without a
      training that has finished.
  """
  path = directory / RECORD
  record = read_record(path, "there is no comparison")
  with naming_damaged(path):
    tables(record)
  if not finished(record):
    raise ValueError(f"{path} has no training that has finished")
  return record


def report(record: dict[str, Any], directory: Path, console: Console) -> None:
  """Print the tables and draw the figure into the directory."""
  from experiments.comparison import plots

  print_tables(tables(record), console)
  with naming_damaged(directory / RECORD):
    figure = plots.draw(record)
  save_figure(figure, directory / FIGURE, dpi=110)
  print_held(directory, FILES, console)


def main() -> None:
  """Run the comparison, or report an existing one if --replot is given."""
  console, directory = make_console(), Path(OUT.value)
  if REPLOT.value:
    record = load(directory)
    with lock(directory):
      report(record, directory, console)
    return
  config = config_from_flags(CompareConfig(), FLAGS)
  with open_results(directory, FILES, OVERWRITE.value):
    run(share_members(config, config.num_seeds), directory, console)


if __name__ == "__main__":
  FLAGS = define_flags(CompareConfig())
  OUT = flags.DEFINE_string(
    "out",
    "runs/compare_cells",
    "Directory of results, figure and samples.",
  )
  OVERWRITE = flags.DEFINE_bool(
    "overwrite", False, "Replace the results that --out holds."
  )
  REPLOT = flags.DEFINE_bool(
    "replot",
    False,
    "Train nothing: print the tables and draw the figure of the comparison in "
    "--out.",
  )
  launch(main, required=("out",))
