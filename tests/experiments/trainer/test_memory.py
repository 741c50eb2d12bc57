"""The memory of a run: the bill of a dry run, its lack, and its growth."""

import os
import re
import resource
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from experiments import train
from experiments.trainer import memory, setup
from experiments.trainer.memory import (
  STATM,
  available_memory,
  check_memory,
  dry_run,
  host_memory,
  num_bytes,
  operations,
  process_size,
  step_bytes,
)
from experiments.trainer.records import replace
from experiments.trainer.setup import make_setup
from lstm_jax import lstm, mogrifier_lstm, slstm
from lstm_jax.language import BatchingConfig, ModelConfig, language_model
from tests.experiments.trainer.resuming import read_rows
from tests.processes import finish, start


def test_a_dry_run_prints_what_a_run_needs_and_writes_nothing(
  config, console, monkeypatch
):
  make_epoch = BatchingConfig._epoch

  def only_the_first(batching, tokens, seed, gap, epoch):
    assert epoch == 0
    return make_epoch(batching, tokens, seed, gap, epoch)

  monkeypatch.setattr(BatchingConfig, "_epoch", only_the_first)
  config = replace(config, ema_decay=0.9, num_epochs=10**7)
  needs = dry_run(config, console)
  made = make_setup(config)
  # Weights, their average and Adam's two moments; the rest is small.
  weights = num_bytes(made.state_like.params)
  assert 4 * weights < needs.state_bytes < 4 * weights + 4000
  assert needs.bytes == step_bytes(made, 3, 8) > needs.state_bytes
  shown = console.file.getvalue()
  assert f"10,000,000 epochs of 1,128 tokens, {47 * 10**7:,} steps\n" in shown
  assert f"3 sequences × 8 tokens: {needs.bytes / 1e6:.2f} MB of mem" in shown
  assert f", {needs.operations / 1e6:,.2f} MFLOP in products\n" in shown
  assert "in 47 steps" in shown
  assert f"has {available_memory() / 1e9:.2f} GB of memory\n" in shown
  assert not Path(config.job.run).exists()


@pytest.mark.exhaustive
@pytest.mark.programs
@pytest.mark.parametrize("model", [1, 2])
def test_a_dry_run_on_a_mesh_says_what_each_device_needs(model, config):
  """A device has 1/4 of the batch, and 1/model of the divided weights."""
  size, batch_size, vocabulary = 256, 8, 23  # 23 characters of the corpus
  flags = {
    "corpus": config.data.corpus,
    "hidden_size": size,
    "embedding_size": 32,
    "batch_size": batch_size,
    "seq_len": 8,
    "mesh": f"data:{4 // model},model:{model}",
  }
  options = [f"--{name}={value}" for name, value in flags.items()]
  process = start("experiments.train", "--dry_run", *options, devices=4)
  [(status, shown, errors)] = finish(process)
  assert status == 0, errors
  # w_h and the readout; then the embedding, w_x and both biases.
  divided = size * 4 * size + size * vocabulary
  whole = vocabulary * 32 + 32 * 4 * size + 4 * size + vocabulary
  weights = divided // model + whole
  carry = 2 * batch_size // 4 * size  # h and c
  # MB between two training steps: weights, Adam's two moments, and the carry.
  between = 4 * (3 * weights + carry) / 1e6
  assert f" of memory on each of 4 devices ({between:.2f} MB " in shown
  peak = re.search(r"8 sequences × 8 tokens: ([\d.]+) MB of memory", shown)
  # A training step has the gathered weights and their gradient, and sends them.
  params = size * 4 * size + size * vocabulary + whole
  step, replicated = 4 * params / 1e6, 4 * (3 * params + carry) / 1e6
  # For model=2, the limit is below the peak for model=1, 8.1 MB: it must fall.
  most = 4 if model == 1 else 3.5
  assert between + step < float(peak[1]) < replicated + most * step


@pytest.mark.exhaustive
def test_a_dry_run_is_of_the_largest_batch(config, console):
  wide = replace(config, num_epochs=3, late_batch_size=9)
  needs = dry_run(wide, console)
  assert needs.bytes == step_bytes(make_setup(wide), 9, 8)
  assert "9 sequences × 8 tokens" in console.file.getvalue()
  # The last third of the epochs has late batches: one of 3, but none of 2.
  narrow = dry_run(replace(wide, num_epochs=2), console)
  assert narrow.bytes < needs.bytes
  # On a mesh of one device, about what the device needs.
  meshed = dry_run(replace(wide, mesh="data:1"), console)
  assert meshed[1:] == needs[1:]
  assert 0.9 < meshed.bytes / needs.bytes < 1.1


def test_a_dry_run_of_too_large_a_model_compiles_nothing(config, console):
  size = 2_000_000_000
  needs = dry_run(replace(config, hidden_size=size), console)
  weights = 4 * 4 * size**2  # 4 bytes for each element of w_h, [H, 4H]
  assert needs.state_bytes > 3 * weights  # with Adam's two moments
  assert needs.bytes > 4 * weights  # with the gradient
  assert needs.operations > 6 * 24 * 4 * size**2 > 2**63
  shown = console.file.getvalue()
  assert f"at least {needs.bytes / 1e9:.2f} GB of memory" in shown


def test_a_dry_run_checks_the_initial_weights(config, console, tmp_path):
  message = "there is no run in .*nowhere: no such directory"
  with pytest.raises(ValueError, match=message):
    dry_run(replace(config, init_from=str(tmp_path / "nowhere")), console)


@pytest.mark.parametrize(
  ("cell", "vocabulary_size", "tokens", "devices", "rows", "rounds"),
  [  # `rows` are multiplied by w_x of layer 1; `rounds` are the Mogrifier's
    (lstm, 9, 24, 1, 9, 0),
    (lstm, 9, 24, 2, 18, 0),  # every device computes the table
    (lstm, 9, 24, 3, 24, 0),  # 8 tokens on each: too few for a table of 9 rows
    (lstm, 1025, 24, 1, 24, 0),
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


@pytest.mark.parametrize("sharing", [1, 8])  # as many devices of one CPU
def test_memory_is_checked_for_the_shards_and_a_copy_of_the_weights(
  sharing, config, monkeypatch
):
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
  assert num_bytes(sharded) < 0.4 * num_bytes(state)
  for one in (state, sharded):
    needed = sharing * num_bytes(one) + num_bytes(state.params)
    monkeypatch.setattr(memory, "available_memory", lambda x=needed: x)
    check_memory(one, sharing)
    monkeypatch.setattr(memory, "available_memory", lambda x=needed: x - 1)
    with pytest.raises(ValueError, match="out of memory"):
      check_memory(one, sharing)


def test_before_a_training_memory_is_checked_for_all_devices_that_share_it(
  config, console, monkeypatch
):
  large = replace(config, hidden_size=1_000_000)
  message = r"^out of memory: the train state and .* --devices$"
  with pytest.raises(ValueError, match=message):
    train.run(large, console)
  config = replace(config, mesh="data:1")
  state = make_setup(config).state_like
  # A memory in which three states have no room, as on three devices of a CPU.
  limit = 2 * num_bytes(state) + num_bytes(state.params)
  monkeypatch.setattr(memory, "available_memory", lambda: limit)
  three = 3 * jax.local_devices()
  monkeypatch.setattr(jax, "local_devices", lambda: three)
  with pytest.raises(ValueError, match="out of memory: the train state"):
    train.run(config, console)
  assert not Path(config.job.run).exists()


@pytest.mark.parametrize(
  ("message", "replaced"),
  [
    ("RESOURCE_EXHAUSTED: Out of memory\nstack", True),
    ("Out of memory allocating 9 bytes", True),
    ("INTERNAL: a kernel failed", False),
  ],
)
def test_without_memory_a_training_ends_with_one_line(
  message, replaced, config, console, monkeypatch
):
  def exhausted(*arguments):
    raise jax.errors.JaxRuntimeError(message)

  monkeypatch.setattr(setup, "make_train_step", lambda *a, **o: exhausted)
  with pytest.raises((ValueError, jax.errors.JaxRuntimeError)) as error:
    train.run(config, console)
  if replaced:
    first = message.partition("\n")[0]
    assert str(error.value).endswith(f"({first})")
    assert "out of memory with batches of 3 × 8 tokens: " in str(error.value)
  else:
    assert str(error.value) == message


def test_a_gpu_has_its_own_limit_and_a_cpu_that_of_the_host(monkeypatch):
  limits = {"all": (resource.RLIM_INFINITY, 0), "less": (5000, 9000)}
  found = {}
  for name, limit in limits.items():
    granted = {resource.RLIMIT_AS: limit}  # of no other resource
    monkeypatch.setattr(resource, "getrlimit", granted.__getitem__)
    found[name] = host_memory()
  assert found["less"] == 5000 < 2**20 < found["all"]
  stats = {"bytes_in_use": 3, "bytes_limit": 5, "peak_bytes_in_use": 4}
  for reported, limit in ((stats, 5), (None, 5000)):
    device = SimpleNamespace(memory_stats=lambda found=reported: found)
    monkeypatch.setattr(jax, "local_devices", lambda device=device: [device])
    assert available_memory() == limit


def test_the_size_of_a_process_is_in_megabytes(tmp_path, monkeypatch):
  program = jax.jit(lambda x: 3 * x + 1)
  before = process_size()["compilations"]
  for _ in range(2):  # it is compiled once
    program(np.ones(7, np.float32))
    assert process_size()["compilations"] == before + 1
  arrays = [SimpleNamespace(nbytes=n) for n in (3_000_000, 500_000)]
  monkeypatch.setattr(jax, "live_arrays", lambda: arrays)
  monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096}.__getitem__)
  monkeypatch.setattr(memory, "STATM", tmp_path / "statm")
  size = process_size()
  assert size.pop("compilations") > 0 and size == {"live_mb": 3.5}
  # The second number: 1,000 resident pages, of 4,096 bytes.
  (tmp_path / "statm").write_text("9000 1000 30 1 0 200 0\n")
  assert process_size()["resident_mb"] == 4.096


@pytest.mark.exhaustive
@pytest.mark.skipif(not STATM.exists(), reason="no /proc/self/statm here")
def test_memory_and_compiled_programs_stay_what_they_are(config, console):
  """From the evaluation at step 1,100 to that at 4,000, of 86 · 47 steps."""
  config = replace(
    config, num_epochs=86, eval_every=100, ema_decay=0.9, output_dropout=0.2
  )
  train.run(config, console)
  counted = range(1100, 4001, 100)
  rows = [row for row in read_rows(config.job.run) if row["step"] in counted]
  evaluations = [row for row in rows if "live_mb" in row]
  assert len(evaluations) == len(counted)
  assert evaluations[0]["compilations"] > 0
  assert len({row["compilations"] for row in evaluations}) == 1
  assert len({row["live_mb"] for row in evaluations}) == 1
  steps = [row["step"] for row in evaluations]
  slope, _ = np.polyfit(steps, [row["resident_mb"] for row in evaluations], 1)
  # Megabytes in a thousand steps, with ten evaluations and checkpoints: 0.5 was
  # found, and 3 in the first quarter, where the allocators settle.
  assert slope * 1000 < 3
