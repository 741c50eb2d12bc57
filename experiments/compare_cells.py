"""What does an LSTM learn that a plain RNN does not, and what do both?

  python -m experiments.compare_cells

trains an RNN, a GRU and an LSTM of as many parameters on the same text, several
seeds at once, twice: for as many updates, and for as long a time. It follows
the held-out loss, and whether what they write has words that exist, lines of
the corpus's length, and rhymes; then asks how far back each reaches: loss by
length of context, a symbol recalled after 1 to 500 blanks, and the
gradient that the loss of one character sends back through time, before training
and after. Learning rates are chosen for each cell, on training text.

The folder --out holds every figure in comparison.json, from which --replot
makes the tables and comparison.png again, and samples.txt: what each cell wrote
at each stage. `contenders`, `compare_training`, `writing`, `dependency` and
`recall` say what is measured, and how.
"""

import dataclasses
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import jax
from absl import flags
from rich.console import Console

from experiments.benchmarks.timing import environment
from experiments.cli import LARGEST, finite, launch, plain_console
from experiments.comparison import plots
from experiments.comparison.config import CompareConfig
from experiments.comparison.measurements import (
  PARAMETERS,
  cells_part,
  context_part,
  flow_part,
  recall_part,
  runs_part,
)
from experiments.comparison.models import contenders
from experiments.comparison.tables import tables
from experiments.comparison.training import learn, read_corpus

RECORD, PICTURE, SAMPLES = "comparison.json", "comparison.png", "samples.txt"


def run(
  config: CompareConfig, directory: Path, console: Console
) -> dict[str, Any]:
  """Compare the cells, print what is found, fill the folder, and return it.

  Raises:
    ValueError: the corpus or the configuration is not usable.
    Diverged: a loss is NaN or infinite.
  """
  start = time.monotonic()
  corpus = read_corpus(config)
  directory.mkdir(parents=True, exist_ok=True)
  every = contenders(
    corpus.vocabulary.size, config.embedding_size, config.hidden_size
  )
  key_init, key_trial, key_recall = jax.random.split(
    jax.random.key(config.seed), 3
  )
  keys = jax.random.split(key_init, config.num_seeds)
  record: dict[str, Any] = {
    "command": shlex.join(["python", "-m", "experiments.compare_cells"])
    + "".join(f" {shlex.quote(flag)}" for flag in sys.argv[1:]),
    "config": dataclasses.asdict(config),
    "environment": environment(),
    "corpus": corpus.figures,
    "cells": cells_part(every, corpus, config, keys, key_trial, console),
    "runs": [],
    "context": [],
    "flow": [],
    "recall": [],
  }
  for budget, name, updates in runs_part(record["cells"], config.num_steps):
    console.print(f"{name}, {budget}: {updates} updates")
    rate = record["cells"][name]["learning_rate"]
    learnt = learn(every[name], corpus, config, rate, updates, keys, console)
    title = {"cell": name, "budget": budget, "updates": updates}
    record["runs"].append(title | learnt.figures)
    record["context"].append(
      title | context_part(every[name], learnt, corpus, config)
    )
    if budget == PARAMETERS:
      record["flow"] += flow_part(every[name], learnt, corpus, config)
    save(record, directory)  # what is there, should the rest be interrupted
  record["recall"] = recall_part(config, key_recall, console)
  record["seconds"] = time.monotonic() - start
  save(record, directory)
  report(record, directory, console)
  return record


def save(record: dict[str, Any], directory: Path) -> None:
  """Write comparison.json and samples.txt."""
  text = json.dumps(record, indent=1, allow_nan=False)
  (directory / RECORD).write_text(text + "\n", "utf-8")
  samples = "".join(
    f"=== {one['cell']}, {one['budget']}, update {stage['step']} ===\n"
    f"{stage['text']}\n\n"
    for one in record["runs"]
    for stage in one["writing"]
  )
  (directory / SAMPLES).write_text(samples, "utf-8")


def load(directory: Path) -> dict[str, Any]:
  """Return the record that `save` wrote.

  Raises:
    ValueError: there is none.
  """
  path = directory / RECORD
  if not path.is_file():
    raise ValueError(f"there is no comparison in {directory}: no {RECORD}")
  return json.loads(path.read_text("utf-8"))


def report(record: dict[str, Any], directory: Path, console: Console) -> None:
  """Print the tables, and draw the picture into the folder."""
  for title, table in tables(record).items():
    console.print(f"\n{title}\n", soft_wrap=True)
    console.print(table, soft_wrap=True)
  plots.draw(record, directory / PICTURE)
  console.print(
    f"\n{directory} holds {RECORD}, {PICTURE} and {SAMPLES}", soft_wrap=True
  )


def _flags() -> list[flags.FlagHolder]:
  """Define one flag for each field of CompareConfig, with its default."""
  default = CompareConfig()

  def integer(name, text, low=1):
    value = getattr(default, name)
    return flags.DEFINE_integer(name, value, text, low, LARGEST)

  def number(name, text):
    value = getattr(default, name)
    return finite(flags.DEFINE_float(name, value, text, lower_bound=0.0))

  return [
    flags.DEFINE_string("corpus", default.corpus, "Any UTF-8 file."),
    number(
      "val_fraction", "Share of the corpus held out, at its end, in (0, 1)."
    ),
    integer("hidden_size", "H of the LSTM; the others get as many parameters."),
    integer("embedding_size", "Length of a character's vector."),
    integer("num_seeds", "Seeds of each cell, trained at once."),
    integer("seed", "Seed of the seeds.", 0),
    integer("batch_size", "Streams of text read in parallel (batch size)."),
    integer("seq_len", "Characters of a stream in one update."),
    integer("seq_len", "Updates of the LSTM, and of all at equal parameters."),
    flags.DEFINE_multi_float(
      "learning_rate",
      list(default.learning_rate),
      "Peak of the schedule; repeated, each cell takes the best on the end of "
      "the training text.",
    ),
    integer("trial_steps", "Updates with which each rate is tried."),
    number("weight_decay", "Weight decay of adamw, on matrices only."),
    integer("rounds", "How often an update of each cell is timed."),
    integer("context", "Longest context whose loss is measured, characters."),
    integer("flow_steps", "Longest T − t of the gradient flow, characters."),
    flags.DEFINE_multi_integer(
      "delay",
      list(default.delay),
      "Blanks between a symbol and its recall; repeat for several.",
      lower_bound=1,
    ),
    integer("recall_hidden_size", "H of the LSTM that recalls."),
    integer("recall_steps", "Updates with which each delay is learnt."),
    flags.DEFINE_multi_float(
      "recall_learning_rate",
      list(default.recall_learning_rate),
      "Peak of Adam's rate there; repeated, the best of each cell and delay "
      "counts.",
    ),
  ]


def main() -> None:
  """Read the flags and compare, or print and draw what was found before."""
  console, directory = plain_console(), Path(OUT.value)
  if REPLOT.value:
    report(load(directory), directory, console)
    return
  values = {flag.name: flag.value for flag in FLAGS}
  for name in ("learning_rate", "delay", "recall_learning_rate"):
    values[name] = tuple(values[name])
  run(CompareConfig(**values), directory, console)


if __name__ == "__main__":
  FLAGS = _flags()
  OUT = flags.DEFINE_string(
    "out",
    "experiments/results/compare_cells",
    "Folder for figures, picture and samples.",
  )
  REPLOT = flags.DEFINE_bool(
    "replot", False, "Only make tables and picture of --out again."
  )
  launch(main)
