"""The weights that the runs of an ablation read are compared."""

import json
from pathlib import Path

import pytest

from experiments import ablate
from experiments.comparison.ablation_models import models_of_run
from experiments.trainer.config import TrainConfig
from experiments.trainer.records import replace, to_record
from experiments.trainer.run_dir import recorded_flags
from tests.patterns import exact


def test_a_run_says_which_weights_it_has_read(tmp_path):
  assert models_of_run(tmp_path) == {}
  config = replace(TrainConfig(), teacher=("/a", "/b"), init_from="/c")
  record = to_record(config)
  (tmp_path / "config.json").write_text(json.dumps(record))
  assert models_of_run(tmp_path) == {}  # no hash is recorded
  record |= {"teacher_sha256": ["1a", "2b"], "init_from_sha256": "3c"}
  (tmp_path / "config.json").write_text(json.dumps(record))
  found = {"/a (best)": "1a", "/b (best)": "2b"}
  assert models_of_run(tmp_path) == found  # it would begin again
  (tmp_path / "checkpoints" / "10").mkdir(parents=True)
  assert models_of_run(tmp_path) == found | {"/c (best)": "3c"}


def test_no_change_begins_with_other_weights_than_a_run_to_resume(
  finished, config, console
):
  run = str(finished.parent / "ablation")
  config = replace(config, run=run, init_from=str(finished))
  base = Path(run) / "base"
  (base / "checkpoints" / "10").mkdir(parents=True)
  record = recorded_flags(config) | {"init_from_sha256": "1a2b"}
  (base / "config.json").write_text(json.dumps(record))
  with pytest.raises(ValueError, match=f"other weights of {exact(finished)} "):
    ablate.run(config, ["seed=1"], console)
  assert [*Path(run).iterdir()] == [base]
