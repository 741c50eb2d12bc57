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


def merged(path, earlier, record):
  """Return `record` after `earlier`, a record or a text, in one file."""
  if isinstance(earlier, str):
    path.write_text(earlier)
  else:
    write_json(path, earlier)
  return merge_earlier(path, record)


def test_the_results_of_other_protocols_are_kept(tmp_path):
  path = tmp_path / "evaluation.json"
  earlier = results("cold", 3.0) | {"trained_on": 7, "rate": 0.5}
  found = merged(path, earlier, results("stateful", 2.0) | {"trained_on": 0})
  for name in FIGURES:
    assert found[name] == {"cold": 3.0, "stateful": 2.0}
  # Of other entries the new ones win, and the others stay.
  assert (found["trained_on"], found["rate"]) == (0, 0.5)
  again = merged(path, results("cold", 3.0), results("cold", 1.0))
  assert again == results("cold", 1.0)


@pytest.mark.parametrize(
  "earlier",
  [
    *(  # of another text, model or device
      results("cold", 3.0) | {name: 2}
      for name in ("corpus_sha256", "begin", "end", "device", "runs", "step")
    ),
    results("cold", 3.0) | {"val_loss": 2},
    json.dumps(results("cold", 3.0) | {"nats": {"cold": math.nan}}),
    "{",  # damaged
    "[1]",
    "{}",
  ],
)
def test_the_results_of_another_evaluation_are_not_kept(earlier, tmp_path):
  record = results("stateful", 2.0)
  assert merged(tmp_path / "evaluation.json", earlier, record) == record


def test_an_ensemble_keeps_its_results_where_its_runs_have_been_moved(
  tmp_path,
):
  """Unless a member has no loss that tells its weights."""
  for losses, kept in (([2.5, 2.4], True), ([2.5, None], False)):
    earlier = {"val_loss": losses, "runs": ["a/x", "a/y"]}
    record = results("stateful", 2.0) | earlier | {"runs": ["b/x", "b/y"]}
    earlier = results("cold", 3.0) | earlier
    found = merged(tmp_path / "ensemble.json", earlier, record)
    assert found["runs"] == ["b/x", "b/y"]
    assert ("cold" in found["nats"]) == kept
