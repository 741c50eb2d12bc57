import re

import jax
import jax.numpy as jnp
import pytest
from absl import flags

from experiments import ablate
from experiments.trainer.config import TrainConfig
from experiments.trainer.records import (
  config_from_flags,
  define_flags,
  replace,
  to_record,
)
from experiments.trainer.setup import make_model
from lstm_jax import gru
from tests.processes import ROOT

RECIPES = ROOT / "experiments" / "recipes"
VOCABULARY_SIZE = 65  # characters of Tiny Shakespeare


def parse(path):
  """Return the config and the changes that a flagfile describes."""
  values = flags.FlagValues()
  holders = define_flags(TrainConfig(), values)
  changes = flags.DEFINE_multi_string("change", [], "", flag_values=values)
  values(["train", f"--flagfile={path}"])
  return config_from_flags(TrainConfig(), holders), changes.value


def flags_of(path):
  """Return the flags of a flagfile, as (name, text) pairs."""
  lines = path.read_text(encoding="utf-8").splitlines()
  parts = [line[2:].partition("=") for line in lines if line.startswith("--")]
  return [(name, value) for name, _, value in parts]


@pytest.mark.everyday(6)
@pytest.mark.parametrize(
  "path", sorted(RECIPES.glob("*.flags")), ids=lambda p: p.stem
)
def test_a_recipe_and_each_of_its_changes_is_a_valid_run(path):
  """Its flags are those of `train`, and each change alters the recipe."""
  config, changes = parse(path)
  left_out = "run", "change", "teacher"
  own = [pair for pair in flags_of(path) if pair[0] not in left_out]
  text = ",".join(f"{name}={value}" for name, value in own)
  teacher = tuple(value for name, value in flags_of(path) if name == "teacher")
  expected = replace(ablate.apply_change(TrainConfig(), text), teacher=teacher)
  assert replace(config, run="") == expected
  configs = [ablate.apply_change(config, change) for change in changes]
  records = [to_record(one) for one in (config, *configs)]
  assert all(records.count(record) == 1 for record in records)
  for one in (config, *configs):
    check_shapes(one)


def check_shapes(config):
  """Check the shapes of the loss of a batch and of the state after it."""
  model = make_model(config, VOCABULARY_SIZE, None)
  B, T = config.batching.batch_size, config.batching.seq_len
  state = model.initial_state((B,))
  params = jax.eval_shape(model.init, jax.random.key(0))
  tokens = jax.ShapeDtypeStruct((T, B), jnp.int32)
  _, (loss, after) = jax.eval_shape(
    model.training_loss, params, state, tokens, tokens, jax.random.key(1)
  )
  assert loss.shape == ()
  assert len(after) == config.model.num_layers
  assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
  assert after[-1].h.shape[:1] == (B,)


def test_the_recipe_of_the_poems_is_the_default():
  assert parse(RECIPES / "poems.flags") == (TrainConfig(), [])


def test_the_recipe_tinyshakespeare_has_as_many_weights_as_the_readme_says():
  config, _ = parse(RECIPES / "tinyshakespeare.flags")
  model = make_model(config, VOCABULARY_SIZE, None)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  number = sum(leaf.size for leaf in jax.tree.leaves(shapes))
  text = (ROOT / "README.md").read_text(encoding="utf-8")
  (said,) = re.findall(r"\[`tinyshakespeare`\]\(\S+\) \| (.+? M) \|", text)
  # At most the 3.5 M of the target in experiments/README.md.
  assert said == f"{number / 1e6:.1f} M" and number <= 3_500_000


def test_the_values_of_a_change_have_the_types_of_their_flags():
  config = ablate.apply_change(TrainConfig(), "tied=true,num_layers=3,cell=gru")
  expected = {"tied": True, "num_layers": 3, "cell": gru}
  assert config == replace(TrainConfig(), **expected)


def test_the_recipe_for_a_gpu_is_tinyshakespeare_in_bfloat16():
  gpu, _ = parse(RECIPES / "tinyshakespeare-gpu.flags")
  cpu, _ = parse(RECIPES / "tinyshakespeare.flags")
  assert gpu == replace(cpu, compute_dtype=jnp.bfloat16)
