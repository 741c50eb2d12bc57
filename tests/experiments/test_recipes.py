import dataclasses
from pathlib import Path

import jax
import pytest

from experiments import ablate
from experiments.trainer.config import TrainConfig, model_config, reading
from lstm_jax.language import language_model

RECIPES = Path(__file__).parents[2] / "experiments" / "recipes"


def parse(path):
  """Return the configuration and the changes that a flagfile describes."""
  lines = path.read_text(encoding="utf-8").splitlines()
  flags = [line[2:].partition("=") for line in lines if line.startswith("--")]
  own = ",".join(
    f"{name}={value}"
    for name, _, value in flags
    if name not in ("run", "change")
  )
  changes = [value for name, _, value in flags if name == "change"]
  return ablate.changed(TrainConfig(), own), changes


@pytest.mark.parametrize(
  "path", sorted(RECIPES.glob("*.flags")), ids=lambda p: p.stem
)
def test_every_recipe_describes_runs(path):
  config, changes = parse(path)
  assert config != TrainConfig() or path.stem == "poems"
  for one in (config, *(ablate.changed(config, c) for c in changes)):
    assert reading(one).num_epochs == one.num_epochs
    model = language_model(model_config(one, 65))
    assert len(model.initial_state((2,))) == one.num_layers


def test_the_recipe_of_the_poems_is_the_default():
  assert parse(RECIPES / "poems.flags") == (TrainConfig(), [])


def test_the_record_has_at_most_three_and_a_half_million_weights():
  config, _ = parse(RECIPES / "tinyshakespeare.flags")
  model = language_model(model_config(config, 65))
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) <= 3_500_000


def test_a_change_takes_the_kind_of_its_flag():
  config = ablate.changed(TrainConfig(), "tied=true,num_layers=3,cell=gru")
  expected = {"tied": True, "num_layers": 3, "cell": "gru"}
  assert config == dataclasses.replace(TrainConfig(), **expected)


def test_the_recipe_for_a_gpu_is_the_record_in_bfloat16():
  gpu, _ = parse(RECIPES / "tinyshakespeare-gpu.flags")
  record, _ = parse(RECIPES / "tinyshakespeare.flags")
  lower = {"compute_dtype": "bfloat16"}
  assert gpu == dataclasses.replace(record, **lower)
