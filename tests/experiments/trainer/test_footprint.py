"""What a training step needs, and which batch size would fit."""

import json
from pathlib import Path

import jax
import pytest

from experiments import sweep, train
from experiments.trainer import memory, setup
from experiments.trainer.format import format_operations
from experiments.trainer.memory import (
  advice_if_out_of_memory,
  advise_batch_size,
  check_memory,
  dry_run,
  least_footprint,
  num_bytes,
  operations,
  total_operations,
)
from experiments.trainer.records import replace, to_record
from experiments.trainer.setup import make_setup
from lstm_jax import lstm, mogrifier_lstm, slstm
from lstm_jax.language import ModelConfig, language_model
from tests.experiments.conftest import VERSE
from tests.experiments.sweep.sweeps import as_sweep
from tests.processes import finish, start


def test_a_mesh_of_one_device_needs_what_the_device_needs(config, console):
  alone = dry_run(config, console)
  meshed = dry_run(replace(config, mesh="data:1"), console)
  assert meshed.state_bytes == alone.state_bytes
  assert meshed.operations == alone.operations
  assert 0.9 < meshed.bytes / alone.bytes < 1.1


@pytest.mark.exhaustive
def test_a_mesh_that_has_too_little_memory_says_what_would_fit(
  config, console, monkeypatch
):
  config = replace(config, batch_size=8, mesh="data:1")
  made = make_setup(config)
  limit = memory.footprint(made, 4, 8).bytes
  monkeypatch.setattr(memory, "available_memory", lambda: limit)
  dry_run(config, console)
  assert "each device has " in console.file.getvalue()
  assert "4 × 8 would need" in console.file.getvalue()


@pytest.mark.exhaustive
@pytest.mark.programs
def test_on_a_mesh_what_fits_is_a_multiple_of_the_devices(config, tmp_path):
  """Half of 12 sequences is 6, which 4 devices cannot share: 4 is tried."""
  module = "tests.experiments.trainer.fitting"
  record = json.dumps(
    to_record(replace(config, batch_size=12, mesh="data:4")) | {"devices": "4"}
  )
  [(status, shown, errors)] = finish(start(module, record, devices=4))
  assert status == 0, errors
  assert "each device has " in shown
  assert "4 × 8 would need" in shown


@pytest.mark.parametrize("program", [train, sweep])
def test_too_large_a_model_is_refused_before_the_run_directory(
  program, config, console
):
  sizes = {"hidden_size": 1_000_000, "num_seeds": 2, "rate": (0.1,)}
  message = "out of memory: the train state and .* no batch size would fit"
  with pytest.raises(ValueError, match=message):
    program.run(as_sweep(config, **sizes), console)
  assert not Path(config.job.run).exists()


def test_before_a_training_memory_is_checked_for_all_devices_that_share_it(
  config, console, monkeypatch
):
  config = replace(config, mesh="data:1")
  state = make_setup(config).state_like
  # A memory in which three states have no room, as on three devices of a CPU.
  limit = 2 * num_bytes(state) + num_bytes(state.params)
  monkeypatch.setattr(train, "available_memory", lambda: limit)
  monkeypatch.setattr(train, "sharing_memory", lambda setup: 3)
  with pytest.raises(ValueError, match="no batch size would fit"):
    train.run(config, console)
  assert not Path(config.job.run).exists()


def test_memory_is_checked_for_the_state_and_the_copy_of_its_weights(config):
  state = make_setup(config).state_like
  leaves = jax.tree.leaves((state, state.params))
  needed = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
  check_memory(state, needed)
  with pytest.raises(ValueError, match="out of memory"):
    check_memory(state, needed - 1)


# `sharing` is the number of devices that share the limit, as those of a CPU do.
@pytest.mark.parametrize("sharing", [1, 8])
def test_on_a_mesh_only_a_shard_of_the_state_is_needed(config, sharing):
  state = make_setup(replace(config, hidden_size=64)).state_like
  mesh = jax.sharding.AbstractMesh((8,), ("model",))
  spec = jax.sharding.PartitionSpec("model")
  sharded = jax.tree.map(
    lambda leaf: (
      leaf.update(sharding=jax.sharding.NamedSharding(mesh, spec))
      if leaf.shape and leaf.shape[0] % 8 == 0
      else leaf
    ),
    state,
  )
  sizes = [
    leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.params)
  ]
  needed = sharing * num_bytes(sharded) + sum(sizes)
  check_memory(sharded, needed, sharing)
  with pytest.raises(ValueError, match="out of memory"):
    check_memory(sharded, needed - 1, sharing)
  without = sharing * num_bytes(sharded._replace(carry=())) + sum(sizes)
  with pytest.raises(ValueError, match=r": reduce --batch_size$"):
    check_memory(sharded, without, sharing)  # the carry alone is too much
  with pytest.raises(
    ValueError, match=r"would fit; .* --devices of a training"
  ):
    check_memory(sharded, without - 1, sharing)
  if sharing == 1:
    assert needed < 0.6 * num_bytes((state, state.params))


def test_operations_have_a_unit_of_their_size():
  assert format_operations(10**3) == "0.00 MFLOP"
  assert format_operations(999_990_000) == "999.99 MFLOP"
  assert format_operations(10**9) == "1.00 GFLOP"
  assert format_operations(1234 * 10**15) == "1,234.00 PFLOP"


def test_operations_do_not_overflow(config):
  size, num_tokens = 10**6, 10**7
  params = make_setup(replace(config, hidden_size=size)).state_like.params
  found = operations(params, num_tokens, lstm)
  assert found > 6 * num_tokens * 4 * size**2 > 2**63


@pytest.mark.parametrize(
  ("cell", "vocabulary_size", "tokens", "devices", "rows", "rounds"),
  [  # `rows` are multiplied by w_x of layer 1; `rounds` are the Mogrifier's
    (lstm, 9, 24, 1, 9, 0),
    (lstm, 9, 24, 2, 18, 0),  # every device computes the table
    (lstm, 9, 24, 3, 24, 0),  # 8 tokens on each: too few for a table of 9 rows
    (lstm, 1025, 24, 1, 24, 0),
    (lstm, 1025, 2048, 1, 1025, 0),
    (lstm, 1025, 2048, 2, 2048, 0),  # 1,024 tokens on each device
    (slstm, 9, 24, 1, 9, 0),
    (mogrifier_lstm, 9, 24, 1, 24, 5),  # computes no table
  ],
)
def test_operations_are_six_for_each_weight_and_token(
  cell, vocabulary_size, tokens, devices, rows, rounds, key
):
  sizes = {"embedding_size": 3, "hidden_size": 5, "num_layers": 2}
  model = language_model(ModelConfig(cell, **sizes), vocabulary_size)
  params = model.init(key)
  table = rows * 3 * 20  # four gates of 5 units
  each = 5 * 20 + 5 * 20 + 5 * 20  # w_h of layer 1, w_x and w_h of layer 2
  each += rounds * (3 * 5 + 5 * 5) + 5 * vocabulary_size  # and the readout
  found = operations(params, tokens, cell, devices)
  assert found == 6 * (table + tokens * each)


@pytest.mark.parametrize(
  ("changes", "devices"),
  [
    ({}, 1),
    ({"short_seq_prob": 0.4}, 1),
    ({"dev_fraction": 0.3, "batch_size": 5}, 1),
    ({}, 3),
  ],
)
def test_the_operations_of_a_run_are_those_of_its_batches(
  changes, devices, config
):
  Path(config.data.corpus).write_text((VERSE + "\n") * 40, encoding="utf-8")
  setup = make_setup(
    replace(config, num_epochs=4, late_batch_size=5, **changes)
  )
  mesh = jax.sharding.AbstractMesh((devices,), ("data",))
  setup = setup._replace(mesh=mesh if devices > 1 else None)
  params = setup.state_like.params
  batches = [b for epoch in setup.epochs() for b, _ in epoch.batches()]
  needed = [operations(params, b.size, lstm, devices) for b in batches]
  assert total_operations(setup) == sum(needed)
  seq_len, batch_size = batches[0].shape
  assert least_footprint(setup, batch_size, seq_len).operations == needed[0]


@pytest.mark.exhaustive
def test_memory_grows_with_the_batch(config):
  setup = make_setup(config)
  small, tall, wide = (
    memory.footprint(setup, *size).bytes for size in ((3, 8), (3, 80), (30, 8))
  )
  assert small < tall and small < wide


@pytest.mark.exhaustive
def test_without_memory_a_run_names_the_batch_size_that_would_fit(
  config, console, monkeypatch
):
  config = replace(config, batch_size=8)
  made = make_setup(config)
  needs = [memory.footprint(made, b, 8).bytes for b in (8, 4, 2, 1)]

  def make_train_step(*arguments, **options):
    del arguments, options

    def train_step(*arguments):
      raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    train_step.lower = made.train_step.lower
    return train_step

  monkeypatch.setattr(setup, "make_train_step", make_train_step)
  limit = (needs[1] + needs[2]) // 2
  for module in (train, memory):
    monkeypatch.setattr(module, "available_memory", lambda: limit)
  message = (
    r"out of memory: a batch of 8 sequences × 8 tokens needs .* MB and .*; "
    "2 × 8 would need"
  )
  with pytest.raises(ValueError, match=message) as error:
    train.run(config, console)
  assert "\n" not in str(error.value)
  advice = advise_batch_size(made, needs[3] - 1)
  assert "no batch size would fit" in advice


@pytest.mark.parametrize(
  ("message", "processes"),
  [("INTERNAL: a kernel failed", 1), ("RESOURCE_EXHAUSTED: no memory", 2)],
)
def test_only_out_of_memory_errors_of_a_single_process_are_replaced(
  message, processes, monkeypatch
):
  """To find what fits, several processes would have to compile together."""
  monkeypatch.setattr(jax, "process_count", lambda: processes)
  with (
    pytest.raises(jax.errors.JaxRuntimeError, match=f"^{message}$"),
    advice_if_out_of_memory(None),
  ):
    raise jax.errors.JaxRuntimeError(message)


@pytest.mark.parametrize(
  ("mesh", "condition"),
  [("", ""), ("data:1", "with --devices=1 and no --mesh, ")],
)
def test_on_the_mesh_of_a_cpu_the_advice_is_for_one_device_and_says_so(
  mesh, condition, config, monkeypatch
):
  advised = []

  def advise(setup, limit):
    advised.append((setup.config.job.mesh, setup.mesh, limit))
    return "less"

  monkeypatch.setattr(memory, "advise_batch_size", advise)
  monkeypatch.setattr(memory, "available_memory", lambda: 7)
  with (
    pytest.raises(ValueError, match=f"^out of memory: {condition}less$"),
    advice_if_out_of_memory(make_setup(replace(config, mesh=mesh))),
  ):
    raise jax.errors.JaxRuntimeError("Out of memory allocating 9 bytes")
  assert advised == [("", None, 7)]
