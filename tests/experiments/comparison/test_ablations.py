"""The file of an ablation: which records can go on, and which cannot."""

import json

import pytest

from experiments.comparison.ablations import Ablations, read_ablations

RECIPE = {"corpus": "a.txt", "test_fraction": 0.1, "dev_fraction": 0.0}


def test_a_record_of_the_test_split_is_not_continued(tmp_path):
  path = tmp_path / "ablations.json"
  record = Ablations(RECIPE, "1a2b", [])._asdict()
  path.write_text(json.dumps(record))
  assert read_ablations(path, RECIPE, "1a2b").split == "val"
  del record["split"]  # as an earlier version wrote it
  path.write_text(json.dumps(record))
  with pytest.raises(ValueError, match=r"compares losses of the test split, "):
    read_ablations(path, RECIPE, "1a2b")
  for recipe, split in (
    (RECIPE | {"test_fraction": 0.0}, "val"),
    (RECIPE | {"dev_fraction": 0.1}, "dev"),
  ):
    path.write_text(json.dumps(record | {"recipe": recipe}))
    assert read_ablations(path, recipe, "1a2b").split == split


def test_the_same_text_may_lie_elsewhere(tmp_path):
  path = tmp_path / "ablations.json"
  Ablations(RECIPE, "1a2b", []).write(path)
  elsewhere = RECIPE | {"corpus": "b.txt"}
  assert read_ablations(path, elsewhere, "1a2b").rows == []
  with pytest.raises(ValueError, match=r"corpus was 'a.txt' and is 'b.txt'"):
    read_ablations(path, elsewhere, "3c4d")
