"""Runs on a mesh of devices of one process."""

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from experiments import collectives, sweep, train
from experiments.trainer.records import replace, to_record
from experiments.trainer.setup import format_mesh, make_setup
from experiments.trainer.trained import load
from lstm_jax.training import (
  Collective,
  list_checkpoints,
  make_mesh,
  read_state,
)
from tests.experiments.sweep.sweeps import as_sweep
from tests.processes import finish, start

ROUNDING = 1e-5  # of float32: each of 47 steps may add 1e-7 to a loss of 3


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"mesh": "data"}, "the axis data must have a size"),
    ({"mesh": "data:2"}, "batch_size must be a multiple of .* 2 .*, got 3"),
    (
      {"mesh": "data:3", "num_epochs": 3, "late_batch_size": 4},
      "batch_size must .* 3 .*, got 4",
    ),
    ({"mesh": "model:5", "batch_size": 5}, "hidden_size must .* 5, got 12"),
  ],
)
def test_a_configuration_refuses_a_mesh_that_does_not_fit(
  options, message, config
):
  with pytest.raises(ValueError, match=message):
    replace(config, **options)


def test_the_line_of_the_device_has_the_mesh():
  assert format_mesh(None) == ""
  assert format_mesh(make_mesh({"data": 1})) == ": 1 device"
  mesh = AbstractMesh((4, 2), ("data", "model"))
  text = ": 8 devices share each batch, and 2 the weights"
  assert format_mesh(mesh) == text


def test_one_device_communicates_nothing(finished_config, config, console):
  meshed = replace(config, mesh="data:1")
  result = collectives.run(meshed, console)
  params = load(Path(finished_config.job.run)).params
  num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
  assert result.weight_bytes == num_bytes
  assert result.collectives == []
  message = "one device communicates nothing: pass --devices, or --mesh such as"
  with pytest.raises(ValueError, match=message):
    collectives.run(config, console)


def test_collectives_take_devices_in_place_of_a_mesh(config, monkeypatch):
  compiled = []
  for name, value in (
    ("FLAGS", None),
    ("config_from_flags", lambda *given: replace(config, devices="3")),
    ("share_batches", lambda configs: [replace(*configs, mesh="data:3")]),
    ("run", lambda config, console: compiled.append(config.job.mesh)),
  ):
    # FLAGS exists only where the module is run as a program.
    monkeypatch.setattr(collectives, name, value, raising=name != "FLAGS")
  collectives.main()
  assert compiled == ["data:3"]


def test_collectives_of_one_kind_are_one_row_in_loops_and_one_outside(
  console,
):
  # (kind, bytes, whether in a loop) -> kind, number, in a loop, bytes.
  found = ("all-reduce", 4, True), ("all-gather", 8, False)
  found += ("all-reduce", 1000, False), ("all-reduce", 200, False)
  console.print(collectives._table([Collective(*each) for each in found]))
  rows = [
    re.findall(r"[\w,-]+", line)
    for line in console.file.getvalue().splitlines()
    if "all-" in line
  ]
  assert rows == [
    ["all-reduce", "1", "yes", "4"],
    ["all-gather", "1", "no", "8"],
    ["all-reduce", "2", "no", "1,200"],
  ]


def test_sweeps_have_no_mesh(config, console):
  meshed = replace(config, mesh="data:1")
  message = "a sweep does not support --mesh: it must be '', got 'data:1'"
  with pytest.raises(ValueError, match=message):
    sweep.run(as_sweep(meshed, num_seeds=2), console)


@pytest.mark.exhaustive
def test_a_mesh_of_one_device_trains_as_without_a_mesh(config, console):
  config = replace(config, nonfinite="skip")
  one = train.run(config, console)
  other = replace(config, run=config.job.run + "2", mesh="data:1")
  assert abs(train.run(other, console).val_loss - one.val_loss) < ROUNDING


def last_state(directory, config):
  """Return all the arrays that a run ended with."""
  state = make_setup(replace(config, mesh="")).state_like
  step = list_checkpoints(directory / "checkpoints")[-1]
  last = read_state(directory / "checkpoints", step, state)
  return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(last)]


@pytest.mark.exhaustive
@pytest.mark.programs
def test_a_run_is_resumed_on_another_number_of_devices(config):
  """In the middle of an epoch, with averaged weights and carried states."""
  config = replace(
    config, batch_size=8, hidden_size=16, ema_decay=0.9, output_dropout=0.2
  )

  def trained(one, devices, stop=0):
    mesh = f"data:{devices // 2},model:2" if devices > 1 else ""
    record = json.dumps(to_record(one) | {"mesh": mesh})
    module = "tests.experiments.trainer.stopping"
    (result,) = finish(start(module, record, stop, devices=devices))
    status, output, errors = result
    assert status == 0, errors
    return output

  trained(config, devices=1)
  again = replace(config, run=config.job.run + "2")
  trained(again, devices=8, stop=5)
  for devices, before, stop in ((4, 5, 9), (1, 9, 14), (8, 14, 0)):
    output = trained(again, devices, stop)
    assert f"resumed     after step {before}\n" in output
  expected, state = (
    last_state(Path(one.job.run), config) for one in (config, again)
  )
  # The first array is the step: 1,128 tokens in batches of 8 × 8 make 18.
  assert len(expected) > 20 and int(expected[0]) == 18
  for one, other in zip(expected, state, strict=True):
    assert np.abs(one - other).max() < ROUNDING * max(1, np.abs(one).max())


@pytest.mark.exhaustive
@pytest.mark.programs
def test_no_device_holds_the_whole_state(config):
  """No device holds a quarter of it while it is created, saved and read again.

  Only the device that stands for the host holds all the weights, when they are
  drawn.
  """
  config = replace(
    config,
    mesh="model:8",
    batch_size=8,
    hidden_size=64,
    embedding_size=2,
    ema_decay=0.9,
    num_epochs=1,
  )
  module = "tests.experiments.trainer.sharded"
  kinds = []
  for record in (to_record(config), to_record(config) | {"num_epochs": 2}):
    process = start(module, json.dumps(record), devices=8)
    ((status, output, errors),) = finish(process)
    assert status == 0, errors
    for line in output.splitlines():
      if not line.startswith("{"):
        continue
      found = json.loads(line)
      kinds.append(found["when"])
      assert len(found["on"]) == 8
      if found["when"] == "drawn":
        *found["on"], host = found["on"]
        assert host >= found["state"], found
      assert max(found["on"]) < found["state"] / 4, found
  assert set(kinds) == {"drawn", "created", "saving", "saved"}
  assert kinds[0] == "drawn"
  assert "extended" in output  # the second has read what the first has saved
