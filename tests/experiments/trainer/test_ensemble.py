"""What the members of an ensemble cost, and the splits that they share."""

import json

import pytest

from experiments.trainer.config import DataConfig
from experiments.trainer.ensemble import cost, differing_split
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
  assert cost(runs, []).training_seconds == seconds


@pytest.mark.parametrize(
  "flag", ["val_fraction", "test_fraction", "dev_fraction"]
)
def test_each_split_must_be_the_same(flag):
  other = replace(DataConfig(), min_count=3, **{flag: 0.3})
  assert differing_split(DataConfig(), other) == flag
  assert differing_split(other, replace(other, min_count=2)) is None
