from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import train
from experiments.trainer import resources, setup
from experiments.trainer.records import replace
from experiments.trainer.resources import (
  advise_batch_size,
  dry_run,
  operations,
  process_size,
  total_operations,
)
from experiments.trainer.setup import make_setup
from lstm_jax.language import ModelConfig, language_model


def test_a_dry_run_prints_what_a_run_needs_and_writes_nothing(config, console):
  config = replace(config, ema_decay=0.9)
  needs = dry_run(config, console)
  state = make_setup(config).state_like
  # Parameters, their average and Adam's two moments: floats; the rest is small.
  floats = 4 * sum(leaf.size for leaf in jax.tree.leaves(state.params))
  assert 4 * floats < needs.state_bytes < 4 * floats + 4000
  assert needs.bytes > needs.state_bytes
  shown = console.file.getvalue()
  assert "3 sequences × 8 tokens" in shown
  assert f"{needs.operations / 1e9:,.2f} GFLOP" in shown
  assert "in 47 steps" in shown
  assert not Path(config.job.run).exists()


def test_a_dry_run_is_of_the_largest_batch(config, console):
  config = replace(config, num_epochs=3)
  wide = dry_run(replace(config, batch_size=9), console)
  late = replace(config, late_batch_size=9)
  assert dry_run(late, console).bytes == wide.bytes
  assert "9 sequences × 8 tokens" in console.file.getvalue()
  setup = make_setup(late)
  epochs = [*late.batching.epochs(setup.corpus.train.tokens, 0)]
  assert [batches.tokens.shape[1] for batches in epochs] == [3, 3, 9]
  tokens = [tokens for batches in epochs for tokens, _ in batches.batches()]
  expected = sum(
    operations(setup.state_like.params, one.size) for one in tokens
  )
  assert total_operations(late, setup) == expected


@pytest.mark.parametrize(("tokens", "rows"), [(24, 9), (5, 5)])
def test_operations_are_six_for_each_weight_and_token(tokens, rows, key):
  sizes = {"embedding_size": 3, "hidden_size": 5, "num_layers": 2}
  params = language_model(ModelConfig(**sizes), 9).init(key)
  table = rows * 3 * 20
  each = 5 * 20 + 5 * 20 + 5 * 20 + 5 * 9  # w_h, then w_x and w_h, readout
  assert operations(params, tokens) == 6 * (table + tokens * each)


def test_memory_grows_with_the_batch(config):
  setup = make_setup(config)
  small, tall, wide = (
    resources.footprint(setup, *size).bytes
    for size in ((3, 8), (3, 80), (30, 8))
  )
  assert small < tall and small < wide


def test_without_memory_a_run_names_the_batch_size_that_would_fit(
  config, console, monkeypatch
):
  config = replace(config, batch_size=8)
  made = make_setup(config)
  needs = [resources.footprint(made, b, 8).bytes for b in (8, 4, 2, 1)]

  def make_train_step(*arguments, **options):
    del arguments, options

    def train_step(*arguments):
      raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    train_step.lower = made.train_step.lower
    return train_step

  monkeypatch.setattr(setup, "make_train_step", make_train_step)
  limit = (needs[1] + needs[2]) // 2
  monkeypatch.setattr(train, "available_memory", lambda: limit)
  message = (
    r"out of memory: a batch of 8 sequences × 8 tokens needs .* MB and .*; "
    "2 × 8 would need"
  )
  with pytest.raises(ValueError, match=message) as error:
    train.run(config, console)
  assert "\n" not in str(error.value)
  advice = advise_batch_size(config, made, needs[3] - 1)
  assert "no batch size would fit" in advice


def test_a_compiled_program_is_counted_once():
  program = jax.jit(lambda x: 3 * x + 1)
  before = process_size()["compilations"]
  for _ in range(2):
    program(np.ones(7, np.float32))
    assert process_size()["compilations"] == before + 1


def test_a_profile_traces_some_training_steps(config, console):
  train.run(config, console, trace_steps=2)
  (trace,) = Path(config.job.run).glob("profile/**/*.xplane.pb")
  assert trace.stat().st_size > 1000
