"""The page that `experiments.report` writes: runs side by side."""

import statistics
from datetime import timedelta
from itertools import accumulate
from pathlib import Path
from typing import Any

from experiments.pages.packing import Blobs
from experiments.trainer.format import format_nats
from experiments.trainer.history import (
  MOST_EPOCHS,
  Derived,
  RunHistory,
  derive,
)
from experiments.trainer.run_dir import (
  EXTENSIONS,
  INIT_FROM,
  JOB_FLAGS,
  SHA256,
  TEACHERS,
  first_epochs,
)

TEMPLATE = Path(__file__).with_suffix(".html")
NONE = "–"  # in a table, for a value that is missing
CURVES = "train_loss", "val_loss", "lr", "grad_norm"
FINISHED = {  # (finished, stopped early)
  (False, False): "no",
  (True, False): "yes",
  (True, True): "yes, early",
}
# Entries of config.json.
NOT_COMPARED = *JOB_FLAGS, "started", "versions", EXTENSIONS
HASHES, HASH_DIGITS = ("git_commit", SHA256, TEACHERS, INIT_FROM), 12


def make_page(histories: list[RunHistory]) -> str:
  """Return the page of some runs."""
  return Blobs().page(TEMPLATE, make_header(histories))


def make_header(histories: list[RunHistory]) -> dict[str, Any]:
  """Return what the page shows of some runs, to be written as JSON."""
  names = [_name(run, run.directory.resolve().name) for run in histories]
  if len(set(names)) < len(names):
    names = [_name(run, str(run.directory)) for run in histories]
  units = {run.unit for run in histories}
  # The members of a sweep share a directory and its configuration: `derive`,
  # which reads the corpus, is called once for all of them.
  firsts = {run.directory: run for run in reversed(histories)}
  sizes = {directory: derive(run) for directory, run in firsts.items()}
  derived = [sizes[run.directory] for run in histories]
  results = list(map(_results, histories, derived))
  columns = [
    column
    for column in results[0]
    if any(values[column] != NONE for values in results)
  ]
  return {
    "unit": units.pop() if len(units) == 1 else "token",
    "runs": [
      {"name": name} | _curves(run, facts)
      for name, run, facts in zip(names, histories, derived, strict=True)
    ],
    "results": {
      "head": ["run", *columns],
      "rows": [
        [name, *(values[column] for column in columns)]
        for name, values in zip(names, results, strict=True)
      ],
    },
    "differences": {
      "head": ["flag", *names],
      "rows": differences([run.record for run in histories]),
    },
  }


def differences(records: list[dict[str, Any]]) -> list[list[str]]:
  """Return a row for each entry of config.json that differs between the runs.

  A row has the entry's name and its value in each run. Versions of packages
  are entries of their own, and hashes are shortened. An extended run has an
  entry with the number of epochs with which it began. Flags that say where and
  how a run executes, and its time of start, are left out.
  """
  flat = []
  for record in records:
    versions = record.get("versions")
    versions = versions if isinstance(versions, dict) else {}
    entries = {n: v for n, v in record.items() if n not in NOT_COMPARED}
    if record.get(EXTENSIONS):
      entries["extended from num_epochs"] = first_epochs(record)
    flat.append(entries | {f"version of {n}": v for n, v in versions.items()})
  names = dict.fromkeys(name for entries in flat for name in entries)
  rows = [
    [name, *(_format(entries, name) for entries in flat)] for name in names
  ]
  return [row for row in rows if len(set(row[1:])) > 1]


def _name(run: RunHistory, directory: str) -> str:
  return f"{directory}, {run.member}" if run.member else directory


def _format(entries: dict[str, Any], name: str) -> str:
  if name not in entries:
    return NONE
  value = entries[name]
  if name not in HASHES:
    return str(value)
  hashes = value if isinstance(value, list) else [value]
  return ", ".join(str(each)[:HASH_DIGITS] for each in hashes)


def _curves(run: RunHistory, derived: Derived | None) -> dict[str, Any]:
  """Return what was recorded over a run's training steps, and its samples."""
  rows, num_epochs = run.rows, run.config.batching.num_epochs
  # A row without seconds, as of an evaluation, gets those of the row before it.
  seconds = list(accumulate((row.get("seconds", 0) for row in rows), max))
  epoch_ends = None  # training steps made at the end of each epoch, if known
  if derived:
    epoch_ends = derived.epoch_ends
  elif (
    run.finished
    and not run.stopped_early
    and rows
    and num_epochs <= MOST_EPOCHS
  ):
    # Without the corpus, assume equally many training steps in all epochs.
    last = max(row["step"] for row in rows)
    epoch_ends = [last * (k + 1) / num_epochs for k in range(num_epochs)]

  def curve(name):
    points = [
      (row["step"], row[name], time)
      for row, time in zip(rows, seconds, strict=True)
      if row.get(name) is not None
    ]
    columns = zip(*points, strict=True) if points else ([], [], [])
    return dict(zip(("step", "value", "seconds"), columns, strict=True))

  return {
    "epoch_ends": epoch_ends,
    "curves": {name: curve(name) for name in CURVES},
    "samples": [sample._asdict() for sample in run.samples],
  }


def _results(run: RunHistory, derived: Derived | None) -> dict[str, str]:
  """Return a run's row of the table of results, by column."""
  rows = run.rows
  evaluations = [row for row in rows if "val_loss" in row]
  best = min(evaluations, key=lambda row: row["val_loss"], default=None)
  test_losses = [row["test_loss"] for row in rows if "test_loss" in row]
  speeds = [
    row["tokens_per_second"] for row in rows if "tokens_per_second" in row
  ]
  seconds = max((row.get("seconds", 0) for row in rows), default=0)
  steps = f"{max((row['step'] for row in rows), default=0):,}"
  steps += f" of {derived.num_steps:,}" if derived else ""
  time = str(timedelta(seconds=round(seconds)))
  speed = f"{statistics.median(speeds):,.0f} {run.unit}s/s" if speeds else NONE
  return {
    "best validation loss": format_nats(best["val_loss"]) if best else NONE,
    "at step": f"{best['step']:,}" if best else NONE,
    "test loss": format_nats(test_losses[-1]) if test_losses else NONE,
    "parameters": f"{derived.num_parameters:,}" if derived else NONE,
    "training steps": steps,
    # The members of a sweep train together: the time is that of the sweep.
    "training time": NONE if run.member else time,
    "median speed": speed,
    "finished": FINISHED[run.finished, run.stopped_early],
  }
