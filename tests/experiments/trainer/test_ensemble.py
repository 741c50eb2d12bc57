"""What the members of an ensemble cost, and the splits that they share."""

import json

import pytest

from experiments.trainer import run_dir
from experiments.trainer.config import DataConfig
from experiments.trainer.records import replace
from experiments.trainer.trained import (
  cost,
  differing_split,
)


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
