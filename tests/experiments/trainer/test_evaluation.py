"""The table of an evaluation, and the results of several in one file."""

import json
import math

import pytest

from experiments.trainer.evaluation import (
  FIGURES,
  SAME,
  Row,
  make_table,
  merge_earlier,
)
from experiments.trainer.files import write_json


def results(protocol, nats):
  """Return the record of one protocol, all of whose figures are `nats`.

  It is of an ensemble of runs that have no validation loss.
  """
  same = dict.fromkeys(SAME, 1) | {"val_loss": [None, None]}
  return same | {name: {protocol: nats} for name in FIGURES}


@pytest.mark.parametrize(
  ("unit", "header", "losses"),
  [
    ("word", ["nats/word", "nats/char"], ["2.0000", "0.5000"]),
    ("character", ["nats/char"], ["0.5000"]),
  ],
)
def test_a_row_has_the_loss_of_a_token_and_of_a_character(unit, header, losses):
  nats = float(losses[0])
  row = Row("cold windows", nats, nats_per_character=0.5, spelling=0.0)
  columns = make_table(unit, [row]).columns
  assert [column.header for column in columns] == [
    *("protocol", *header, "bits/char", "perplexity")
  ]
  bits, perplexity = 0.5 / math.log(2), math.exp(nats)
  assert [cell for column in columns for cell in column.cells] == [
    *("cold windows", *losses, f"{bits:.4f}", f"{perplexity:.3f}")
  ]


def test_a_perplexity_that_overflows_is_none_in_the_file(tmp_path):
  row = Row("cold windows", 1000.0, 250.0, 0.5)
  assert row.figures == {
    "nats": 1000.0,
    "nats_per_character": 250.0,
    "bits_per_character": 250.0 / math.log(2),
    "perplexity": None,
    "spelling": 0.5,
  }
  write_json(tmp_path / "evaluation.json", row.figures)
  assert [*row._replace(nats=1.0).figures] == [*FIGURES]
  assert row._replace(nats=1.0).figures["perplexity"] == math.e


def test_the_results_of_other_protocols_are_kept(tmp_path):
  path = tmp_path / "evaluation.json"
  write_json(path, results("cold", 3.0))
  merged = merge_earlier(path, results("stateful", 2.0))
  for name in FIGURES:
    assert merged[name] == {"cold": 3.0, "stateful": 2.0}
  again = merge_earlier(path, results("cold", 1.0))
  assert again == results("cold", 1.0)


def test_of_other_entries_the_new_ones_win_and_the_others_stay(tmp_path):
  path = tmp_path / "evaluation.json"
  write_json(path, results("dynamic", 3.0) | {"trained_on": 7, "rate": 0.5})
  merged = merge_earlier(path, results("cold", 2.0) | {"trained_on": 0})
  assert (merged["trained_on"], merged["rate"]) == (0, 0.5)


@pytest.mark.parametrize(
  "name",
  ["corpus_sha256", "begin", "end", "device", "runs", "step", "val_loss"],
)
def test_the_results_of_another_text_model_or_device_are_not_kept(
  name, tmp_path
):
  path = tmp_path / "evaluation.json"
  write_json(path, results("cold", 3.0) | {name: 2})
  record = results("stateful", 2.0)
  assert merge_earlier(path, record) == record


def test_a_record_with_a_nan_is_not_kept(tmp_path):
  path = tmp_path / "evaluation.json"
  earlier = results("cold", 3.0) | {"nats": {"cold": math.nan}}
  path.write_text(json.dumps(earlier))
  record = results("stateful", 2.0)
  assert merge_earlier(path, record) == record


def test_an_ensemble_keeps_its_results_where_its_runs_have_been_moved(
  tmp_path,
):
  """Unless a member has no loss that tells its weights."""
  path = tmp_path / "ensemble.json"
  for losses, kept in (([2.5, 2.4], True), ([2.5, None], False)):
    earlier = {"val_loss": losses, "runs": ["a/x", "a/y"]}
    write_json(path, results("cold", 3.0) | earlier)
    record = results("stateful", 2.0) | earlier | {"runs": ["b/x", "b/y"]}
    merged = merge_earlier(path, record)
    assert merged["runs"] == ["b/x", "b/y"]
    assert ("cold" in merged["nats"]) == kept


@pytest.mark.parametrize("text", ["", "{", "[1]", "{}", "[" * 100_000])
def test_a_damaged_file_is_ignored(text, tmp_path):
  path = tmp_path / "evaluation.json"
  path.write_text(text)
  record = results("cold", 1.0)
  assert merge_earlier(path, record) == record
