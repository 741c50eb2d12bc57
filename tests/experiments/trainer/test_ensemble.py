"""What the members of an ensemble cost, from the files of their runs."""

import json

import pytest

from experiments.trainer.ensemble import cost


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
