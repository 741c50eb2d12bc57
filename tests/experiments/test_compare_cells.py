import dataclasses
import json

import pytest

from experiments import compare_cells
from experiments.comparison import plots
from experiments.comparison.tables import markdown, tables

NAMES = ["rnn", "gru", "lstm"]


def made_up():
  """A record of two seeds whose figures are easy to recognise."""
  figures = {
    "in_training": 0.9,
    "in_held_out": 1.0,
    "line_length": 40.5,
    "rhymes": None,
  }

  def training(cell, budget, updates):
    return {
      "cell": cell,
      "budget": budget,
      "updates": updates,
      "held_out": [
        {"step": 0, "nats": [4.0, 4.0]},
        {"step": 100, "nats": [2.0, 2.2]},
        {"step": updates, "nats": [1.0, 1.5]},
      ],
      "writing": [
        {
          "step": step,
          "in_training": [0.5, 0.7],
          "in_held_out": [0.25, 0.25],
          "line_length": [None, 30.0],
          "rhymes": [None, None],
          "text": "Shall I",
        }
        for step in (0, updates)
      ],
    }

  runs = [
    *(training(name, "equal parameters", 150) for name in NAMES),
    training("rnn", "equal time", 170),
    training("gru", "equal time", 140),
  ]
  fields = {"rnn": "h", "gru": "h", "lstm": "hc"}
  return {
    "config": {"num_seeds": 2, "delay": [1, 5], "flow_steps": 10},
    "cells": {
      name: {
        "hidden_size": 12,
        "parameters": 1904,
        "seconds_per_update": 0.5,
      }
      for name in NAMES
    },
    "corpus": {"writing": {"held-out text": figures}},
    "runs": runs,
    "context": [
      {k: one[k] for k in ("cell", "budget", "updates")}
      | {"lengths": [1, 2, 4], "nats": [[3.0, 2.0, 1.0], [3.0, 2.0, 1.5]]}
      for one in runs
    ],
    "flow": [
      {
        "cell": name,
        "stage": stage,
        "norms": {f: [2.0 * 0.5**k for k in range(11)] for f in fields[name]},
      }
      for name in NAMES
      for stage in ("untrained", "trained")
    ],
    "recall": [
      {
        "cell": name,
        "hidden_size": 8,
        "parameters": 700,
        "delay": delay,
        "learning_rate": 0.001,
        "accuracy": [1.0, accuracy],
        "nats": [0.1, 0.1],
      }
      for name in NAMES
      for delay, accuracy in ((1, 1.0), (5, 0.5))
    ],
  }


def test_the_tables_are_markdown_and_say_the_means():
  text, context, recall, state_cotangents = tables(made_up()).values()
  rows = [line.split(" | ") for line in text.splitlines()]
  assert len({len(row) for row in rows}) == 1
  assert rows[2][0] == "| rnn, equal parameters"
  assert rows[2][1:4] == ["12", "1,904", "150"]
  assert rows[2][4:7] == ["4.000 ± 0.000", "2.100 ± 0.141", "1.2500 ± 0.3536"]
  assert rows[2][7:] == ["60.0 ± 14.1", "25.0 ± 0.0", "30.0", "– |"]
  assert rows[-1][0] == "| held-out text"
  assert rows[-1][-4:] == ["90.0", "100.0", "40.5", "– |"]
  assert context.splitlines()[0] == "| cell | 1 | 2 | 3 – 4 |"
  assert context.splitlines()[2].endswith("| 3.000 | 2.000 | 1.250 |")
  assert recall.splitlines()[2].endswith("parameters | 1.00 | 0.75 | 1 |")
  assert state_cotangents.splitlines()[0] == "| cell | 1 | 5 | 10 |"
  assert (
    "| lstm, c, trained | 5.0e-01 | 3.1e-02 | 9.8e-04 |" in state_cotangents
  )


def test_markdown_is_a_header_a_rule_and_rows():
  table = markdown(["a", "b"], [["x", "1"]])
  assert table == "| a | b |\n| --- | --: |\n| x | 1 |"


def test_the_report_is_made_of_the_record_alone(tmp_path, console):
  record = made_up()
  compare_cells.save(record, tmp_path)
  kept = compare_cells.load(tmp_path)
  assert kept == record
  samples = (tmp_path / "samples.txt").read_text("utf-8")
  assert samples.count("===\nShall I\n") == 10
  assert "=== gru, equal time, update 140 ===" in samples
  compare_cells.report(kept, tmp_path, console)
  shown = console.file.getvalue()
  for table in tables(record).values():
    assert all(line in shown for line in table.splitlines())
  picture = tmp_path / "comparison.png"
  assert picture.read_bytes()[:4] == b"\x89PNG"


def test_a_folder_without_a_record_is_an_error_that_names_it(tmp_path):
  with pytest.raises(ValueError, match=f"there is no comparison in {tmp_path}"):
    compare_cells.load(tmp_path)


def test_a_comparison_that_was_interrupted_is_reported(tmp_path, console):
  record = made_up() | {"recall": []}
  record["runs"], record["context"] = record["runs"][:1], record["context"][:1]
  record["flow"] = record["flow"][:2]
  compare_cells.report(record, tmp_path, console)
  assert "rnn, equal parameters" in console.file.getvalue()


def test_a_norm_that_vanishes_is_drawn(tmp_path):
  record = made_up()
  record["flow"][0]["norms"]["h"][-1] = 0.0
  plots.draw(record, tmp_path / "picture.png")
  assert (tmp_path / "picture.png").stat().st_size > 10_000


@pytest.mark.exhaustive
def test_a_comparison_fills_its_folder(comparison, tmp_path, console):
  config = dataclasses.replace(comparison, learning_rate=(1e-3, 0.02))
  record = compare_cells.run(config, tmp_path / "out", console)
  kept = json.loads((tmp_path / "out" / "comparison.json").read_text("utf-8"))
  assert kept["config"] == json.loads(json.dumps(dataclasses.asdict(config)))
  assert kept["runs"] == record["runs"]
  assert kept["environment"]["versions"]["jax"]
  assert [row["cell"] for row in kept["runs"]] == [*NAMES, "rnn", "gru"]
  for row in kept["runs"]:
    cell = kept["cells"][row["cell"]]
    timed = row["budget"] == "equal time"
    updates = cell["updates_in_equal_time"] if timed else config.num_steps
    assert row["updates"] == updates == row["held_out"][-1]["step"]
    assert cell["learning_rate"] == 0.02 and len(cell["tried"]) == 2
  spent = {
    name: cell["seconds_per_update"] * cell["updates_in_equal_time"]
    for name, cell in kept["cells"].items()
  }
  for name, seconds in spent.items():
    off = 0.5 * kept["cells"][name]["seconds_per_update"]
    assert abs(seconds - spent["lstm"]) <= 1.001 * off
  assert [list(row["norms"]) for row in kept["flow"]] == [
    *[["h"]] * 4,
    *[["h", "c"]] * 2,
  ]
  assert {len(row["norms"]["h"]) for row in kept["flow"]} == {11}
  assert len(kept["recall"]) == 3 * len(config.delay)
  assert {path.name for path in (tmp_path / "out").iterdir()} == {
    "comparison.json",
    "comparison.png",
    "samples.txt",
  }
