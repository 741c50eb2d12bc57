"""A cell or a training that diverges is recorded, and the others go on."""

import json
import math

import pytest

from experiments import compare_cells
from experiments.comparison import measurements
from experiments.comparison.measurements import diverged, finished
from experiments.comparison.tables import tables
from experiments.trainer.loop import Diverged
from experiments.trainer.records import replace

TOO_LARGE = 3e38  # a learning rate at which training diverges at once


@pytest.fixture
def small(comparison):
  """A comparison of an RNN with the LSTM, without recall."""
  options = {"cells": ("rnn", "lstm"), "recall_steps": 0, "num_steps": 2}
  return replace(comparison, num_seeds=1, trial_steps=2, **options)


@pytest.mark.exhaustive
def test_a_cell_that_diverges_at_every_rate_does_not_stop_the_others(
  small, tmp_path, console, monkeypatch
):
  search, saved = measurements.try_learning_rates, []

  def try_rates(cell, trial, config, key, rates):
    # What is on the disk when the search of a cell begins.
    path = tmp_path / "comparison.json"
    kept = json.loads(path.read_text())["cells"] if path.exists() else {}
    saved.append((cell.name, [*kept]))
    if cell.name == "rnn":
      raise Diverged("this message is not printed")
    return search(cell, trial, config, key, rates)

  monkeypatch.setattr(measurements, "try_learning_rates", try_rates)
  config = replace(small, learning_rate=(1e-3, 0.02))
  record = compare_cells.run(config, tmp_path, console)
  # Further calls may try rates beyond those that are given.
  assert saved[:2] == [("rnn", []), ("lstm", ["rnn"])]
  assert compare_cells.load(tmp_path) == json.loads(json.dumps(record))
  rnn = record["cells"]["rnn"]
  assert rnn["learning_rate"] is None and rnn["learning_rate_trials"] == []
  assert rnn["seconds_per_step"] > 0
  of_rnn = [run for run in record["runs"] if run["cell"] == "rnn"]
  assert [run["evaluations"] for run in of_rnn] == [None, None]
  assert [(run["cell"], run["budget"]) for run in finished(record)] == [
    ("lstm", "equal steps")
  ]
  table, *_ = tables(record).values()
  rows = [line.split(" | ") for line in table.splitlines()]
  assert rows[2][0] == "| rnn, equal steps" and "diverged" in rows[2]
  assert len({len(row) for row in rows}) == 1
  assert (tmp_path / "comparison.png").stat().st_size > 10_000
  assert "rnn diverges at each learning rate\n" in console.file.getvalue()


@pytest.mark.exhaustive
def test_a_training_that_diverges_does_not_stop_the_others(
  small, tmp_path, console, monkeypatch
):
  train_cell = compare_cells.train_cell

  def train(cell, corpus, config, rate, *others):
    rate = TOO_LARGE if cell.name == "rnn" else rate
    return train_cell(cell, corpus, config, rate, *others)

  monkeypatch.setattr(compare_cells, "train_cell", train)
  record = compare_cells.run(small, tmp_path, console)
  # The runs: the RNN and the LSTM for equal steps, the RNN for equal time.
  failed = [run["evaluations"] is None for run in record["runs"]]
  assert failed == [True, False, True]
  assert diverged(record, "rnn") == ", diverged: equal steps, equal time"
  assert diverged(record, "lstm") == ""
  assert [row["cell"] for row in record["context"]] == ["lstm"]
  assert "rnn: the training loss is not finite" in console.file.getvalue()


@pytest.mark.exhaustive
def test_equal_time_and_recall_can_be_left_out(small, tmp_path, console):
  config = replace(small, equal_time=False)
  record = compare_cells.run(config, tmp_path, console)
  assert [run["budget"] for run in record["runs"]] == ["equal steps"] * 2
  assert record["recall"] == []


@pytest.mark.exhaustive
def test_if_every_training_diverges_so_does_the_comparison(
  small, tmp_path, console
):
  config = replace(small, learning_rate=(TOO_LARGE,), equal_time=False)
  with pytest.raises(Diverged, match="every training of rnn, lstm diverged"):
    compare_cells.run(config, tmp_path, console)
  record = json.loads((tmp_path / "comparison.json").read_text())
  assert [run["samples"] for run in record["runs"]] == [None, None]
  assert math.isfinite(record["seconds"])
