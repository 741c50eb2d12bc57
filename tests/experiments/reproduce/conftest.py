"""A recipe of the smallest sizes."""

import pytest

from experiments.comparison import plan as plans
from experiments.comparison.plan import ReproduceConfig
from experiments.trainer.config import TrainConfig
from experiments.trainer.records import to_record
from experiments.trainer.run_dir import JOB_FLAGS


@pytest.fixture
def recipe(config, tmp_path, monkeypatch):
  """Write the flags of `config` as the recipe of `rows.ROW`.

  Return the options of `reproduce` that train and evaluate its seed 0.
  """
  default = to_record(TrainConfig())
  lines = [
    f"--{name}={value}"
    for name, value in to_record(config).items()
    if value != default[name] and name not in (*JOB_FLAGS, "seed")
  ]
  (tmp_path / "verse.flags").write_text("\n".join(lines))
  monkeypatch.setattr(plans, "RECIPES", str(tmp_path))
  return ReproduceConfig(run=str(tmp_path / "runs"), seeds=(0,))
