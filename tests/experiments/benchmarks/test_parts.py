"""The cases of each part, and what follows from their times."""

import pytest

from experiments.benchmarks import parts

TIMES = {"median_ms": 2.0, "quartiles_ms": [1.0, 3.0]}


@pytest.fixture
def measured(monkeypatch):
  """Measure nothing; return a function: (part, sizes) -> the rows of cases."""

  def compare(makers, rounds, problem):
    assert rounds == 3
    return [{"peer": "lstm_jax", "problem": problem} | TIMES], {}

  def make_problem(*given, resets=False, **sizes):
    return given, sizes, resets

  monkeypatch.setattr(parts, "compare", compare)
  for module in (parts.models, parts.sequences, parts.samplers):
    monkeypatch.setattr(module, "make_problem", make_problem)

  def measure(part, sizes):
    cases = parts.PARTS[part].measure(sizes, 3)
    return [row for (row,), *_ in cases]

  return measure


def problem_of(row, names):
  """Return what `make_problem` must have got for the labels of a row."""
  resets = row["part"] == "resets"
  labels = row | {"cell": "gru"} if resets else row
  given = tuple(labels[k] for k in ("cell", "backward") if k in labels)
  return given, {k: row[k] for k in names}, resets


@pytest.mark.parametrize(
  ("part", "cells", "cases"),
  [
    ("model", [None], parts.MODELS),
    ("layer", ["lstm", "gru", "rnn"], parts.LSTMS + 2 * parts.OTHERS),
    ("linear", ["min_gru", "min_lstm", "lru"], 3 * parts.LINEAR),
    ("resets", [None], parts.POLICIES),
  ],
)
def test_a_size_that_is_given_leaves_one_case_of_each_cell(
  part, cells, cases, measured
):
  defaults = parts.PARTS[part].sizes
  modes = [None] if part == "model" else [False, True]
  rows = measured(part, {})
  found = [(row.get("backward"), {k: row[k] for k in defaults}) for row in rows]
  assert found == [(mode, defaults | case) for case in cases for mode in modes]
  for row in rows:
    assert row["problem"] == problem_of(row, defaults)
  assert [*dict.fromkeys(row.get("cell") for row in rows)] == cells
  rows = measured(part, {"hidden_size": 7, "other": 5})
  found = [(row.get("cell"), row.get("backward")) for row in rows]
  assert found == [(cell, mode) for cell in cells for mode in modes]
  for row in rows:
    assert {k: row[k] for k in defaults} == defaults | {"hidden_size": 7}
    assert row["problem"] == problem_of(row, defaults)
    assert row["part"] == part and "other" not in row


def test_only_one_size_grows_from_those_of_a_small_model(measured):
  rows = measured("growth", {})
  small = parts.MODEL | {"hidden_size": 256}
  expected = [
    (part, small | {size: value})
    for part, (size, values) in parts.GROWTH.items()
    for value in values
  ]
  found = [(row["part"], {k: row[k] for k in small}) for row in rows]
  assert found == expected
  assert [row["problem"] for row in rows] == [
    ((), s, False) for _, s in expected
  ]


def test_the_speed_of_sampling_counts_all_samples(measured):
  one, many = measured("sampling", {})
  sizes = {"hidden_size": 512, "num_samples": 64, "length": 500}
  assert many["problem"] == ((), sizes, False)
  assert one["tokens_per_second"] == 1e3 * 500 / 2.0
  assert many["tokens_per_second"] == 64 * one["tokens_per_second"]


def test_the_times_of_several_steps_a_call_are_those_of_one(monkeypatch):
  def compare(makers, rounds):
    ours, several, numpy = makers
    assert rounds == 30  # 10 times the 3 that are asked for
    rows = [{"peer": ours} | TIMES, {"peer": numpy} | TIMES]
    times = {"median_ms": 64.0, "quartiles_ms": [32.0, 128.0]}
    return [*rows, {"peer": several} | times], {}

  monkeypatch.setattr(parts, "compare", compare)
  (((ours, numpy, several), *_),) = parts.original_part({}, 3)
  assert several["peer"] == "lstm_jax, 64 a call"
  assert (several["median_ms"], several["quartiles_ms"]) == (1, [0.5, 2])
  ratios = [row["ratio_to_ours"] for row in (ours, numpy, several)]
  assert ratios == [1, 1, 0.5]
  speeds = [row["tokens_per_second"] for row in (ours, numpy, several)]
  assert speeds == [32_000, 32_000, 64_000]  # 64 tokens in 2 ms, or in 1 ms


def test_launches_are_counted_for_the_sizes_that_are_given(monkeypatch):
  def count(cell, sizes, dtype):
    return [{"peer": "lstm_jax", "counted": (cell, dtype, sizes)}], {}

  monkeypatch.setattr(parts.launches, "count", count)
  part = parts.PARTS["launches"]
  assert part.sizes == {"hidden_size": 512, "seq_len": 64, "batch_size": 32}
  for given in ({}, {"hidden_size": 7}):
    cases, sizes = part.measure(given, 1), part.sizes | given
    assert [rows for rows, *_ in cases] == [
      [
        {"part": "launches", "cell": cell, "dtype": dtype, **sizes}
        | {"peer": "lstm_jax", "counted": (cell, dtype, sizes)}
      ]
      for cell in ("lstm", "gru")
      for dtype in ("float32", "bfloat16")
    ]


def test_a_size_given_for_memory_leaves_the_other_sizes(monkeypatch):
  measured = []

  def measure_memory(case):
    measured.append(case)
    return [], {}

  monkeypatch.setattr(parts.sequences, "measure_memory", measure_memory)
  part, given = parts.PARTS["memory"], ({}, {"seq_len": 9}, {"hidden_size": 7})
  assert part.sizes == {"hidden_size": 512, "seq_len": 1024, "batch_size": 32}
  for sizes in given:
    [*part.measure(sizes, 1)]
  assert measured == [part.sizes | sizes for sizes in given]
