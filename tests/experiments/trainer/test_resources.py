import dataclasses
from pathlib import Path

import jax
import pytest

from experiments import train
from experiments.trainer import resources, setup
from experiments.trainer.resources import (
  dry_run,
  operations,
  that_fits,
  total_operations,
)
from experiments.trainer.setup import make
from lstm_jax.language import ModelConfig, language_model


def test_a_dry_run_says_what_a_run_needs_and_makes_nothing(config, console):
  config = dataclasses.replace(config, ema_decay=0.9)
  needs = dry_run(config, console)
  state = make(config).state
  # Parameters, their average and Adam's two moments: floats; the rest is small.
  floats = 4 * sum(leaf.size for leaf in jax.tree.leaves(state.params))
  assert 4 * floats < needs.state_bytes < 4 * floats + 4000
  assert needs.bytes > needs.state_bytes
  shown = console.file.getvalue()
  assert "3 streams × 8 steps" in shown
  assert f"{needs.operations / 1e9:,.2f} GFLOP" in shown
  assert "in 47 updates" in shown
  assert not Path(config.run).exists()


def test_a_dry_run_reckons_with_streams_that_come_late(config, console):
  config = dataclasses.replace(config, num_epochs=3)
  wide = dry_run(dataclasses.replace(config, batch_size=9), console)
  late = dataclasses.replace(config, late_batch_size=9)
  assert dry_run(late, console).bytes == wide.bytes
  assert "9 streams × 8 steps" in console.file.getvalue()
  of = make(late)
  epochs = [*of.reading.epochs(of.corpus.training.tokens)]
  assert [streams.tokens.shape[1] for streams in epochs] == [3, 3, 9]
  blocks = [block for streams in epochs for block, _ in streams.batches()]
  expected = sum(operations(of.state.params, block.size) for block in blocks)
  assert total_operations(of) == expected


@pytest.mark.parametrize(("tokens", "rows"), [(24, 9), (5, 5)])
def test_operations_are_six_for_each_weight_and_token(tokens, rows, key):
  sizes = {"embedding_size": 3, "hidden_size": 5, "num_layers": 2}
  params = language_model(ModelConfig(9, **sizes)).init(key)
  table = rows * 3 * 20
  each = 5 * 20 + 5 * 20 + 5 * 20 + 5 * 9  # w_h, then w_x and w_h, readout
  assert operations(params, tokens) == 6 * (table + tokens * each)


def test_memory_grows_with_the_block(config):
  of = make(config)
  small, tall, wide = (
    resources.footprint(of, *size).bytes for size in ((3, 8), (3, 80), (30, 8))
  )
  assert small < tall and small < wide


def test_without_memory_a_run_says_how_many_streams_would_fit(
  config, console, monkeypatch
):
  config = dataclasses.replace(config, batch_size=8)
  of = make(config)
  needs = [resources.footprint(of, b, 8).bytes for b in (8, 4, 2, 1)]

  def make_train_step(*args, **options):
    del args, options

    def update(*args):
      raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    update.lower = of.update.lower
    return update

  monkeypatch.setattr(setup, "make_train_step", make_train_step)
  monkeypatch.setattr(train, "available", lambda: (needs[1] + needs[2]) // 2)
  told = r"out of memory: 8 streams × 8 steps need .* MB and .*; 2 × 8 would ne"
  with pytest.raises(ValueError, match=told) as error:
    train.run(config, console)
  assert "\n" not in str(error.value)
  assert "no number of streams" in that_fits(config, of, needs[3] - 1)


def test_a_profile_traces_some_updates(config, console):
  train.run(config, console, profile=2)
  (trace,) = Path(config.run).glob("profile/**/*.xplane.pb")
  assert trace.stat().st_size > 1000
