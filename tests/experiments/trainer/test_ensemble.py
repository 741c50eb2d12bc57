"""What the members of an ensemble cost, and the splits that they share."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from experiments.trainer import run_dir
from experiments.trainer.config import DataConfig, TrainConfig
from experiments.trainer.data import text_sha256
from experiments.trainer.ensemble import (
  cost,
  differing_split,
  find_common_corpus,
)
from experiments.trainer.records import replace


@pytest.mark.parametrize(
  ("result", "seconds"),
  [
    ('{"seconds": 2.5}', 4.0),
    ("{}", None),
    ("[", None),
    ('{"seconds": "2.5"}', None),
    ('{"seconds": NaN}', None),
    (f'{{"seconds": {10**400}}}', None),
  ],
)
def test_the_seconds_of_a_damaged_result_are_not_known(
  result, seconds, tmp_path
):
  runs = [tmp_path / "a", tmp_path / "b"]
  for directory, text in zip(
    runs, [json.dumps({"seconds": 1.5}), result], strict=True
  ):
    directory.mkdir()
    (directory / "result.json").write_text(text)
  assert cost(runs, members=[]).training_seconds == seconds


def test_the_seconds_of_one_member_of_a_sweep_are_not_known(tmp_path):
  """The file has the seconds of all members together."""
  (tmp_path / "result.json").write_text('{"seconds": 2.5}')
  config = dict.fromkeys(run_dir.FLAGS)
  for record, seconds in ((config, 2.5), (config | {"num_seeds": 2}, None)):
    (tmp_path / "config.json").write_text(json.dumps(record))
    assert cost([tmp_path], members=[]).training_seconds == seconds


@pytest.mark.parametrize(
  "flag", ["val_fraction", "test_fraction", "dev_fraction"]
)
def test_each_split_must_be_the_same(flag):
  other = replace(DataConfig(), min_count=3, **{flag: 0.3})
  assert differing_split(DataConfig(), other) == flag
  assert differing_split(other, replace(other, min_count=2)) is None


def test_the_corpus_is_where_one_of_the_runs_has_read_it(tmp_path, monkeypatch):
  """The first run may have read a copy that was deleted since."""
  (tmp_path / "empty").mkdir()
  monkeypatch.chdir(tmp_path / "empty")
  text = tmp_path / "sonnets.txt"
  text.write_text("Shall I compare thee")
  deleted = tmp_path / "deleted.txt"
  members = [
    SimpleNamespace(
      config=replace(TrainConfig(), corpus=str(path), min_count=count),
      corpus_sha256=text_sha256(text.read_text()),
    )
    for path, count in ((deleted, 2), (text, 3))
  ]
  own = members[0].config.data
  runs = [Path("one"), Path("other")]
  found = find_common_corpus(runs, members, Console())
  assert found == replace(own, corpus=str(text))
  deleted.write_text(text.read_text())
  assert find_common_corpus(runs, members, Console()) == own
  deleted.unlink()
  text.unlink()
  found = find_common_corpus(runs, members, Console())
  assert found == own  # its path is in the error
