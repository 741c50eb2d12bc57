"""How many CPU devices share a training, and that the results are those of one.

Timings are in the docstring of `experiments.trainer.distributed`.
"""

import json
import os
import shutil

import jax
import jax.numpy as jnp
import pytest

from experiments.trainer import distributed
from experiments.trainer.config import CELLS, TrainConfig
from experiments.trainer.distributed import (
  num_devices,
  pays,
  share_batches,
  share_members,
)
from experiments.trainer.records import replace, to_record
from experiments.trainer.run_dir import read_config
from tests.experiments.trainer.resuming import last_checksums, read_rows
from tests.processes import as_flags, run_program

ROUNDING = 1e-5  # nats; the training is in float32
COUNT = "jax_num_cpu_devices"  # JAX's option for the number of devices


@pytest.fixture(autouse=True)
def no_number_in_xla_flags(monkeypatch):
  """Leave out a number of devices that the environment of the tests gives."""
  kept = os.environ.get("XLA_FLAGS", "").split()
  kept = [flag for flag in kept if distributed.FORCED not in flag]
  monkeypatch.setenv("XLA_FLAGS", " ".join(kept))


def changed(**values):
  return replace(TrainConfig(), **values)


@pytest.mark.parametrize(
  ("values", "count", "expected"),
  [
    ({}, 2, True),  # one layer of 256 units, batch size 32
    ({}, 1, False),
    ({}, 4, False),  # 8 sequences each, fewer than MIN_ROWS
    ({"batch_size": 64}, 4, True),
    ({"batch_size": 63}, 2, False),
    ({"late_batch_size": 31}, 2, False),
    ({"late_batch_size": 31, "num_epochs": 2}, 2, True),  # it has no effect
    ({"late_batch_size": 64}, 2, True),
    ({"hidden_size": 32}, 2, False),
    ({"hidden_size": 640}, 2, True),
    ({"hidden_size": 768}, 2, False),
    ({"hidden_size": 384, "num_layers": 2}, 2, True),
    ({"hidden_size": 512, "num_layers": 2}, 2, False),
    ({"hidden_size": 256, "compute_dtype": jnp.bfloat16}, 2, True),
    ({"hidden_size": 512, "compute_dtype": jnp.bfloat16}, 2, False),
    ({"hidden_size": 128, "cell": CELLS["rnn"]}, 2, False),
    ({"hidden_size": 1024, "cell": CELLS["rnn"]}, 2, True),
    ({"hidden_size": 1024, "cell": CELLS["gru"]}, 2, False),
    ({"cell": CELLS["mogrifier_lstm"]}, 2, True),
    ({"cell": CELLS["slstm"]}, 2, True),
    ({"cell": CELLS["min_gru"]}, 2, False),  # it has no recurrent weights
    ({"tokenizer": "word"}, 2, False),
    ({"implementation": "mosaic_gpu"}, 2, False),
  ],
)
def test_devices_share_batches_where_that_pays(values, count, expected):
  assert pays(changed(**values), count) == expected


def test_only_the_cores_that_this_process_may_use_count(monkeypatch):
  monkeypatch.setattr(os, "cpu_count", lambda: 8)
  own = {0: {1, 5, 6}}  # of process 0, which is this one
  monkeypatch.setattr(os, "sched_getaffinity", own.get, raising=False)
  assert distributed.num_cores() == 3
  monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS
  assert distributed.num_cores() == 8


def test_auto_takes_all_cores_or_one(monkeypatch):
  monkeypatch.setattr(distributed, "num_cores", lambda: 2)
  assert num_devices(TrainConfig()) == 2
  assert num_devices(changed(hidden_size=8)) == 1
  monkeypatch.setattr(distributed, "num_cores", lambda: 64)
  assert num_devices(TrainConfig()) == 1
  assert num_devices(changed(devices="8")) == 8


def test_a_run_resumes_on_as_many_devices_as_it_started_on(
  monkeypatch, tmp_path
):
  monkeypatch.setattr(distributed, "num_cores", lambda: 2)
  config = changed(run=str(tmp_path))
  # A run that records auto was on one device.
  for recorded, expected in (("4", 4), ("1", 1), ("auto", 1)):
    record = to_record(config) | {"devices": recorded}
    (tmp_path / "config.json").write_text(json.dumps(record))
    assert num_devices(config) == expected
    assert num_devices(replace(config, overwrite=True)) == 2
    assert num_devices(replace(config, devices="5")) == 5
  # With another batch size, the run is not resumed: a later error says so.
  (tmp_path / "config.json").write_text(json.dumps(record | {"devices": "4"}))
  assert num_devices(replace(config, batch_size=6)) == 1


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ({"devices": "all"}, "devices must be auto or a number .*, got 'all'"),
    ({"devices": "0"}, "devices must be auto or a number .*, got '0'"),
    ({"devices": "-1"}, "devices must be auto or a number .*, got '-1'"),
    ({"devices": "2", "mesh": "data:4"}, "devices=2 and mesh='data:4' must"),
  ],
)
def test_devices_that_are_no_number_or_contradict_the_mesh_are_refused(
  values, message
):
  with pytest.raises(ValueError, match=message):
    changed(**values)


def test_configurations_that_need_one_device_or_have_a_mesh_are_unchanged():
  meshed = changed(mesh="data:2")
  configs = [changed(hidden_size=8), changed(devices="1"), meshed]
  assert share_batches(configs) == configs


def test_the_configurations_that_need_the_most_devices_share_them(monkeypatch):
  """The others are unchanged: they need fewer devices, or have a mesh."""
  made = {}
  monkeypatch.setattr(jax.config, "update", made.__setitem__)
  monkeypatch.setattr(distributed, "num_cores", lambda: 2)
  default, four = TrainConfig(), changed(devices="4")
  small, meshed = changed(hidden_size=8), changed(mesh="data:8")
  two = replace(default, mesh="data:2", devices="2")
  assert share_batches([default, small, meshed]) == [two, small, meshed]
  assert made == {COUNT: 2}
  given = [default, four, meshed]
  assert share_batches(given) == [default, replace(four, mesh="data:4"), meshed]
  assert made == {COUNT: 4}


def test_on_a_gpu_devices_are_refused_if_they_are_asked_for(monkeypatch):
  monkeypatch.setattr(jax.config, "update", lambda name, value: None)
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  monkeypatch.setattr(distributed, "num_cores", lambda: 2)
  default, two = TrainConfig(), changed(devices="2")
  assert share_batches([default]) == [default]
  assert share_members(default, 4) == default
  message = "^--devices is for CPUs, got --devices=2 on a gpu"
  with pytest.raises(ValueError, match=f"{message}: pass --mesh=data:2$"):
    share_batches([default, two])
  with pytest.raises(ValueError, match=f"{message}$"):
    share_members(two, 4)


def test_a_mesh_and_its_number_of_devices_may_both_be_given(monkeypatch):
  made = {}
  monkeypatch.setattr(jax.config, "update", made.__setitem__)
  both = changed(mesh="data:2", devices="2")
  assert share_batches([both, changed(hidden_size=8)])[0] == both
  assert made == {COUNT: 2}


@pytest.mark.parametrize(
  ("values", "size"),
  [
    ({}, 32),
    # The devices divide the first batch size, but not the late one.
    ({"batch_size": 200_000, "late_batch_size": 2000}, 2000),
  ],
)
def test_devices_that_do_not_divide_a_batch_are_refused_before_they_start(
  values, size, monkeypatch
):
  monkeypatch.setattr(jax.config, "update", None)  # a call would fail
  config = changed(devices="100000", **values)
  message = f"^--devices must divide the batch size of {size}, got 100000$"
  with pytest.raises(ValueError, match=message):
    share_batches([config])


def test_where_jax_has_started_its_devices_there_are_no_more(monkeypatch):
  """For example, importing a user's cell that makes an array starts them."""
  monkeypatch.setenv("XLA_FLAGS", "")
  monkeypatch.setattr(distributed, "num_cores", lambda: 2)
  count = len(jax.devices())
  assert not distributed.start_cpu_devices(count + 1)
  shared = changed(hidden_size=128)
  assert distributed.num_devices(shared) == 2
  assert share_batches([shared]) == [shared]
  # As many as --devices asks for may exist: making the mesh counts them.
  asked = changed(devices=f"{count + 1}", batch_size=count + 1)
  (shared,) = share_batches([asked])
  assert shared == replace(asked, mesh=f"data:{count + 1}")
  # Numbers are compared, not texts: hence the zero.
  same = replace(asked, devices=f"0{count}", mesh=f"data:{count}")
  assert distributed.batch_mesh(same.job).size == count
  message = f"^--devices must be {count}, as many as JAX .*, got {count + 1}$"
  with pytest.raises(ValueError, match=message):
    distributed.batch_mesh(shared.job)


def test_a_number_of_devices_in_xla_flags_stays(monkeypatch):
  monkeypatch.setattr(jax.config, "update", None)  # a call would fail
  monkeypatch.setenv("XLA_FLAGS", f"--xla_a=1 --{distributed.FORCED}=4")
  monkeypatch.setattr(distributed, "num_cores", lambda: 2)
  assert not distributed.start_cpu_devices(2)
  assert share_batches([TrainConfig()]) == [TrainConfig()]


@pytest.mark.parametrize(
  ("cores", "members", "flag", "expected"),
  [
    (2, 8, "auto", "2"),
    (2, 3, "auto", "auto"),  # one device
    (8, 6, "auto", "6"),
    (6, 4, "auto", "4"),
    (4, 3, "auto", "3"),
    (8, 1, "auto", "auto"),
    (16, 8, "auto", "8"),
    (2, 9, "3", "3"),
    (2, 8, "1", "1"),
  ],
)
def test_the_number_of_devices_divides_the_number_of_members(
  cores, members, flag, expected, monkeypatch
):
  """For auto, it is the largest such number that is at most the cores."""
  monkeypatch.setattr(distributed, "num_cores", lambda: cores)
  made = {}
  monkeypatch.setattr(jax.config, "update", made.__setitem__)
  config = share_members(changed(devices=flag), members)
  assert (config.job.devices, config.job.mesh) == (expected, "")
  several = {} if expected in ("auto", "1") else {COUNT: int(expected)}
  assert made == several


def test_what_else_is_wrong_with_a_sweep_is_not_hidden(monkeypatch, tmp_path):
  """A mesh, and a directory of another run, are refused later."""
  monkeypatch.setattr(distributed, "num_cores", lambda: 2)
  meshed = changed(mesh="data:4")
  assert share_members(meshed, 4) == meshed
  record = to_record(TrainConfig()) | {"devices": "2"}
  (tmp_path / "config.json").write_text(json.dumps(record))
  other = changed(run=str(tmp_path))
  assert share_members(other, 3) == other


def test_devices_that_do_not_divide_the_members_are_refused():
  message = "--devices must divide the number of models .* together, 4, got 3"
  with pytest.raises(ValueError, match=message):
    share_members(changed(devices="3"), 4)


def test_several_processes_need_a_mesh(monkeypatch):
  monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
  monkeypatch.setattr(distributed, "num_cores", lambda: 2)
  assert share_batches([TrainConfig()]) == [TrainConfig()]
  with pytest.raises(ValueError, match=r"one process: pass --mesh for several"):
    share_batches([changed(devices="2")])


def train(config, **flags):
  """Run the program in a process of its own; return what it prints."""
  record = to_record(config) | flags
  return run_program(
    "experiments.train", *as_flags(record, to_record(TrainConfig()))
  )


@pytest.mark.exhaustive
@pytest.mark.programs
def test_two_devices_train_as_one_and_resume_bit_for_bit(config, tmp_path):
  config = replace(config, batch_size=4)
  assert ": 2 devices" not in train(config, run=str(tmp_path / "one"))
  flags = {"run": str(tmp_path / "two")}
  output = train(config, **flags, devices="2")
  assert "cpu, cpu: 2 devices share each batch\n" in output
  record = read_config(tmp_path / "two")
  assert (record["devices"], record["mesh"]) == ("2", "data:2")
  one, two = (
    [row["val_loss"] for row in read_rows(tmp_path / name) if "val_loss" in row]
    for name in ("one", "two")
  )
  assert one == pytest.approx(two, abs=ROUNDING)
  step, arrays = last_checksums(tmp_path / "two")
  (tmp_path / "two/result.json").unlink()
  shutil.rmtree(tmp_path / f"two/checkpoints/{step}")
  output = train(config, **flags)
  assert ": 2 devices share each batch\n" in output and "resumed" in output
  assert last_checksums(tmp_path / "two") == (step, arrays)
