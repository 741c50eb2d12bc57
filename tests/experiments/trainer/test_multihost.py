import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import collectives, sweep, train
from experiments.trainer import multihost, placement, resources, run_dir
from experiments.trainer.checkpoint import saved
from experiments.trainer.config import TrainConfig
from experiments.trainer.ensemble import SweepConfig
from experiments.trainer.setup import make
from lstm_jax.training import list_checkpoints, make_mesh, read_state
from tests.processes import ROOT, finish, free_port, start

JOINING = {
  "distributed": True,
  "coordinator": "127.0.0.1:1234",
  "num_processes": 2,
  "process_id": 1,
  "join_timeout": 9,
}
ROUNDING = 1e-5  # of float32: each of 35 updates may add 1e-7 to a loss of 3


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"distributed": False}, "--coordinator, .* go with --distributed"),
    ({"process_id": None}, r"go together, got \('127.0.0.1:1234', 2, None\)"),
    ({"coordinator": None}, r"go together, got \(None, 2, 1\)"),
    ({"process_id": 2}, "must be below --num_processes, got 2 and 2"),
    ({"coordinator": "1234"}, "--coordinator must be HOST:PORT, got '1234'"),
    ({"coordinator": "host:"}, "--coordinator must be HOST:PORT, got 'host:'"),
  ],
)
def test_flags_that_join_nobody_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    multihost.join(**JOINING | options)


@pytest.mark.programs
def test_where_there_is_no_job_the_flags_are_asked_for():
  """In a process whose JAX has no device yet, as a program's at its start."""
  join = "from experiments.trainer.multihost import join; "
  join += "join(True, None, None, None, 9)"
  process = subprocess.run(
    [sys.executable, "-c", join],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )
  last = process.stderr.splitlines()[-1]
  assert last.startswith("ValueError: --distributed finds no job of SLURM, ")
  assert "pass --coordinator, " in last


def test_who_is_alone_asks_nobody(tmp_path):
  nobody = dict.fromkeys(JOINING) | {"distributed": False}
  multihost.join(**nobody | {"join_timeout": 9})
  assert multihost.is_first()
  assert multihost.of_first(0.1) == 0.1
  multihost.check_same(tmp_path, 3)
  assert multihost.asked([signal.SIGTERM], False) == signal.SIGTERM
  assert multihost.asked([], True) is None


def test_processes_that_see_other_folders_are_told(tmp_path, monkeypatch):
  monkeypatch.setattr(multihost, "of_first", lambda number: 20.0)
  multihost.check_same(tmp_path, 20)
  message = r"see the same .*: its newest .* update 20 for the first .* 0 for"
  with pytest.raises(ValueError, match=message):
    multihost.check_same(tmp_path, 0)


def test_several_processes_need_a_mesh(config, monkeypatch):
  assert placement.mesh_of(config) is None
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  with pytest.raises(ValueError, match=r"2 processes share .* --mesh=data:1"):
    placement.mesh_of(config)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"mesh": "data"}, "the axis data must have a size"),
    ({"mesh": "data:2"}, "batch_size must be a multiple of .* 2 .*, got 3"),
    (
      {"mesh": "data:3", "late_batch_size": 4},
      "batch_size must .* 3 .*, got 4",
    ),
    ({"mesh": "model:5", "batch_size": 5}, "hidden_size must .* 5, got 12"),
  ],
)
def test_a_configuration_refuses_a_mesh_that_does_not_fit(
  options, message, config
):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(config, **options)


def test_the_line_of_the_device_tells_the_mesh():
  mesh = make_mesh({"data": 1})
  assert placement.mesh_told(mesh) == ": data 1 × model 1, in 1 process"
  assert placement.mesh_told(None) == ""


def test_one_device_sends_nothing(config, console):
  meshed = dataclasses.replace(config, mesh="data:1")
  weights, sent = collectives.run(meshed, console)
  params = run_dir.load(train.run(config, console).directory).params
  assert weights == sum(leaf.nbytes for leaf in jax.tree.leaves(params))
  assert sent == []
  with pytest.raises(ValueError, match="one device sends nothing: pass --mesh"):
    collectives.run(config, console)


def test_sweeps_and_dry_runs_are_of_one_device(config, console):
  meshed = dataclasses.replace(config, mesh="data:1")
  many = SweepConfig(**dataclasses.asdict(meshed), num_seeds=2)
  with pytest.raises(ValueError, match="a sweep has no mesh: it must be left"):
    sweep.run(many, console)
  with pytest.raises(ValueError, match="of one device, got a mesh of data:1"):
    resources.dry_run(meshed, console)


@pytest.mark.exhaustive
def test_a_mesh_of_one_device_trains_as_without(config, console):
  config = dataclasses.replace(config, nonfinite="skip")
  one = train.run(config, console)
  other = dataclasses.replace(config, run=config.run + "2", mesh="data:1")
  assert abs(train.run(other, console).held_out - one.held_out) < ROUNDING


def joining(config, count):
  """Start the training in `count` processes."""
  fields = dataclasses.asdict(config)
  usual = dataclasses.asdict(TrainConfig())
  flags = [f"--{k}={v}" for k, v in fields.items() if v != usual[k]]
  port = free_port()
  return [
    start(
      "experiments.train",
      "--distributed",
      f"--coordinator=127.0.0.1:{port}",
      f"--num_processes={count}",
      f"--process_id={index}",
      f"--mesh=data:{count}",
      *flags,
    )
    for index in range(count)
  ]


@pytest.fixture
def shared(config):
  """A run whose streams two processes can share."""
  return dataclasses.replace(config, batch_size=4, development=0.2)


@pytest.mark.programs
def test_two_processes_train_as_one_and_the_first_writes(shared, console):
  one = train.run(dataclasses.replace(shared, run=shared.run + "1"), console)
  both = finish(*joining(shared, 2))
  assert [(status, errors) for status, _, errors in both] == [(0, "")] * 2
  first, second = (output for _, output, _ in both)
  assert "cpu, cpu: data 2 × model 1, in 2 processes\n" in first
  assert "best development loss" in first
  assert "loss" not in second  # Gloo itself says who is connected
  trained = run_dir.load(one.directory.parent / "run")
  assert abs(trained.held_out - one.held_out) < ROUNDING
  assert trained.step == one.best_update
  metrics = (one.directory.parent / "run" / "metrics.jsonl").read_text()
  steps = [json.loads(line)["step"] for line in metrics.splitlines()]
  expected = (one.directory / "metrics.jsonl").read_text().splitlines()
  assert steps == [json.loads(line)["step"] for line in expected]


@pytest.mark.programs
def test_a_coordinator_that_does_not_answer_is_one_line():
  address = f"127.0.0.1:{free_port()}"
  process = start(
    "experiments.train",
    "--distributed",
    f"--coordinator={address}",
    "--num_processes=2",
    "--process_id=1",
    "--join_timeout=1",
  )
  message = f"error: not all processes have met at {address} within 1 seconds\n"
  assert finish(process) == [(2, "", message)]


@pytest.mark.exhaustive
@pytest.mark.programs
def test_an_error_of_the_first_process_ends_all(shared, tmp_path):
  (tmp_path / "run").mkdir()
  (tmp_path / "run" / "config.json").write_text("{}")
  first, second = finish(*joining(shared, 2))
  assert first[0] == second[0] == 2
  assert "holds config.json, which is not of a run" in first[2]
  assert "error: the first process has stopped: see its error" in second[2]


def last_state(directory, config):
  """Return all the arrays that a run ended with."""
  state = make(dataclasses.replace(config, mesh="")).state
  step = list_checkpoints(directory / "checkpoints")[-1]
  found = read_state(directory / "checkpoints", step, saved(state, None))
  return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(found)]


@pytest.mark.exhaustive
@pytest.mark.programs
@pytest.mark.parametrize(("before", "after"), [(8, 1), (1, 8), (8, 4)])
def test_a_run_goes_on_on_another_number_of_devices(before, after, config):
  """In the middle of an epoch, with averaged weights and carried states."""
  config = dataclasses.replace(
    config, batch_size=8, hidden_size=16, ema_decay=0.9, output_dropout=0.2
  )
  again = dataclasses.replace(config, run=config.run + "2")
  for of, count, step in (
    (config, 1, 0),
    (again, before, 9),
    (again, after, 0),
  ):
    mesh = f"data:{count // 2},model:2" if count > 1 else ""
    meshed = json.dumps(dataclasses.asdict(of) | {"mesh": mesh})
    module = "tests.experiments.trainer.stopping"
    (found,) = finish(start(module, meshed, step, devices=count))
    assert found[0] == 0, found[2]
  assert "goes on     after update 9\n" in found[1]
  wanted, found = (last_state(Path(one.run), config) for one in (config, again))
  assert len(wanted) > 20 and int(wanted[0]) == 18
  for one, other in zip(wanted, found, strict=True):
    assert np.abs(one - other).max() < ROUNDING * max(1, np.abs(one).max())


@pytest.mark.exhaustive
@pytest.mark.programs
def test_what_two_processes_leave_one_goes_on_with(shared, console, tmp_path):
  long = dataclasses.replace(
    shared,
    num_epochs=30,
    eval_every=10,
    schedule="constant",
    learning_rate=1.0,
    asgd_patience=1,
  )
  processes = joining(long, 2)
  samples, deadline = tmp_path / "run" / "samples.txt", time.monotonic() + 90
  while time.monotonic() < deadline:
    if samples.exists() and "weights are averaged" in samples.read_text():
      break
    time.sleep(0.2)
  processes[1].send_signal(signal.SIGINT)
  first, second = finish(*processes)
  assert (first[0], second[0]) == (130, 130), first[2] + second[2]
  assert "SIGINT: stopped after update " in first[1]
  assert "weights are averaged" in samples.read_text()
  stopped = list_checkpoints(tmp_path / "run" / "checkpoints")[-1]
  assert stopped % long.eval_every == 0  # where all of them look
  result = train.run(long, console)
  assert f"goes on     after update {stopped}\n" in console.file.getvalue()
  assert result.stopped_by is None
  assert result.best_update > 0
