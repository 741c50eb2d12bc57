"""The tables of a comparison, and comparisons read from a directory."""

import math
from types import SimpleNamespace

import pytest

from experiments import compare_cells
from experiments.comparison import dot_plot, measurements, plots
from experiments.comparison.config import CompareConfig
from experiments.comparison.tables import markdown, tables
from experiments.trainer.records import to_record
from tests.experiments.comparing import NAMES, example
from tests.patterns import exact
from tests.processes import ROOT


def test_the_tables_are_markdown_with_means_and_deviations():
  training, context, recall, gradient_flow = tables(example()).values()
  rows = [line.split(" | ") for line in training.splitlines()]
  assert len({len(row) for row in rows}) == 1
  assert rows[2][0] == "| rnn, equal steps"
  assert rows[2][1:4] == ["12", "1,904", "150"]
  assert rows[2][4:7] == ["4.000 ± 0.000", "2.100 ± 0.141", "1.2500 ± 0.3536"]
  assert rows[2][7:] == ["60.0 ± 14.1", "25.0 ± 0.0", "30.0", "25.0 ± 35.4 |"]
  assert rows[-1][0] == "| validation text"
  assert rows[-1][-4:] == ["90.0", "100.0", "40.5", "– |"]
  assert context.splitlines()[0] == "| cell | 1 | 2 | 3 – 4 |"
  assert context.splitlines()[2].endswith("| 3.000 | 2.000 | 1.250 |")
  # Accuracies at the delays 1 and 5, and the longest delay with more than 0.9.
  recalled = "H 8, 700 parameters"
  assert recall.splitlines()[2:] == [
    *(f"| {name}, {recalled} | usual | 1.00 | 0.75 | 1 |" for name in NAMES),
    *(f"| {n}, {recalled} | chrono | 1.00 | 0.85 | 1 |" for n in NAMES[1:]),
  ]
  assert gradient_flow.splitlines()[0] == "| cell | 1 | 5 | 10 |"
  assert "| lstm, h, trained | 5.0e-01 | 3.1e-02 | 9.8e-04 |" in gradient_flow
  assert "| lstm, c, trained | 1.0e+00 | 6.2e-02 | 2.0e-03 |" in gradient_flow
  assert any("(chance 0.125)" in title for title in tables(example()))


@pytest.mark.parametrize(
  "num_seeds, said",
  [(1, "(1 seed),"), (2, "(mean ± standard deviation of 2 seeds),")],
)
def test_the_title_names_the_number_of_seeds(num_seeds, said):
  record = example()
  record["config"]["num_seeds"] = num_seeds
  assert said in next(iter(tables(record)))


def test_a_loss_that_is_missing_or_a_norm_divided_by_zero_is_a_dash():
  record = example()
  record["runs"][0] |= {"evaluations": None, "samples": None}
  record["gradient_flow"][0]["norms"]["h"][0] = 0.0
  training, *_, gradient_flow = tables(record).values()
  diverged, other = training.splitlines()[2:4]
  losses = "| 150 | – | – | diverged |  |  |  |  |"
  assert diverged == f"| rnn, equal steps | 12 | 1,904 {losses}"
  assert "| 4.000 ± 0.000 | 2.100 ± 0.141 | 1.2500 ± 0.3536 |" in other
  assert "| rnn, h, untrained | – | – | – |" in gradient_flow


def test_markdown_is_a_header_a_rule_and_rows():
  table = markdown(["a", "b"], [["x", "1"]])
  assert table == "| a | b |\n| --- | --: |\n| x | 1 |"


@pytest.mark.exhaustive
def test_a_saved_comparison_is_loaded_and_reported(tmp_path, console):
  record = example()
  compare_cells.save(record, tmp_path)
  loaded = compare_cells.load(tmp_path)
  assert loaded == record
  samples = (tmp_path / "samples.txt").read_text("utf-8")
  # Two of each of the five runs.
  assert samples.count("===\nShall I\n") == 10
  assert "=== gru, equal time, step 140 ===" in samples
  compare_cells.report(loaded, tmp_path, console)
  printed = console.file.getvalue()
  for table in tables(record).values():
    assert all(line in printed for line in table.splitlines())
  figure = tmp_path / "comparison.png"
  assert figure.read_bytes()[:4] == b"\x89PNG"
  compare_cells.save(record, tmp_path)  # which removes an earlier figure
  assert not figure.exists()


@pytest.mark.exhaustive
def test_an_interrupted_comparison_with_a_norm_of_zero_is_reported(
  tmp_path, console
):
  record = example() | {"recall": []}
  record["runs"], record["context"] = record["runs"][:1], record["context"][:1]
  record["gradient_flow"] = record["gradient_flow"][:2]
  record["gradient_flow"][0]["norms"]["h"][-1] = 0.0
  compare_cells.report(record, tmp_path, console)
  assert "rnn, equal steps" in console.file.getvalue()
  assert "Delayed recall" not in console.file.getvalue()
  assert (tmp_path / "comparison.png").stat().st_size > 10_000


@pytest.mark.parametrize(
  ("text", "reason"),
  [
    ("{", "Expecting property name"),
    ("[]", "it has no config, corpus, cells, runs, context, gradient_flow, re"),
    ('{"config": {}, "corpus": {}, "cells": {}, "runs": []}', "it has no cont"),
  ],
)
def test_a_damaged_comparison_is_an_error_that_names_it(tmp_path, text, reason):
  path = tmp_path / "comparison.json"
  path.write_text(text)
  with pytest.raises(ValueError, match=f"{exact(path)} is damaged: {reason}"):
    compare_cells.load(tmp_path)


def test_a_directory_without_a_comparison_is_an_error_that_names_it(tmp_path):
  with pytest.raises(
    ValueError, match=f"is no comparison in {exact(tmp_path)}"
  ):
    compare_cells.load(tmp_path)


def test_the_kept_comparison_has_the_fields_of_the_configuration():
  record = compare_cells.load(ROOT / "experiments/results/compare_cells")
  assert set(record["config"]) == set(to_record(CompareConfig()))
  assert len(tables(record)) == 4


@pytest.mark.exhaustive
def test_a_gradient_that_overflows_has_no_norm(monkeypatch, tmp_path):
  """For example, in an untrained LayerNorm LSTM over thousands of steps."""
  found = {"h": [2.0, 1.0, *[math.inf] * 4, *[math.nan] * 95]}
  monkeypatch.setattr(measurements, "gradient_norms", lambda *args: found)
  trained = SimpleNamespace(initial_params=[0, 1], final_params=[2, 3])
  cell, corpus = SimpleNamespace(name="rnn"), SimpleNamespace(val=None)
  config = CompareConfig()
  rows = measurements.gradient_flow(cell, trained, corpus, config)
  assert [row["norms"]["h"] for row in rows] == [[2.0, 1.0, *[None] * 99]] * 2
  record = example()
  record["gradient_flow"] = rows
  record["config"]["gradient_steps"] = 100
  compare_cells.save(record, tmp_path)
  *_, table = tables(record).values()
  assert "| rnn, h, trained | 5.0e-01 | – | – |" in table
  for draw in (plots.draw, dot_plot.draw):
    draw(record, tmp_path / "figure.png")
