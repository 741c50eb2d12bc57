import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from experiments import collectives, sweep, train
from experiments.trainer import multihost
from experiments.trainer.config import TrainConfig
from experiments.trainer.ensemble import SweepConfig
from experiments.trainer.loop import AGREE_EVERY
from experiments.trainer.records import from_record, replace, to_record
from experiments.trainer.setup import format_mesh, make_setup, run_mesh
from experiments.trainer.trained import load
from lstm_jax.training import list_checkpoints, make_mesh, read_state
from tests.experiments.trainer.resuming import read_rows
from tests.processes import ROOT, as_flags, finish, free_port, start

JOINING = {
  "distributed": True,
  "coordinator": "127.0.0.1:1234",
  "num_processes": 2,
  "process_id": 1,
  "join_timeout": 9,
}
ROUNDING = 1e-5  # of float32: each of 35 steps may add 1e-7 to a loss of 3


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"distributed": False}, "--coordinator, .* go with --distributed"),
    ({"process_id": None}, r"go together, got \('127.0.0.1:1234', 2, None\)"),
    ({"coordinator": None}, r"go together, got \(None, 2, 1\)"),
    ({"process_id": 2}, "must be below --num_processes, got 2 and 2"),
    ({"coordinator": "1234"}, "--coordinator must be HOST:PORT, got '1234'"),
    ({"coordinator": "host:"}, "--coordinator must be HOST:PORT, got 'host:'"),
    (
      {"coordinator": "host:0"},
      "--coordinator must be HOST:PORT, got 'host:0'",
    ),
  ],
)
def test_flags_that_join_no_other_process_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    multihost.join(**JOINING | options)


@pytest.mark.exhaustive
@pytest.mark.programs
def test_where_there_is_no_job_the_error_names_the_flags():
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


def test_a_single_process_asks_no_other(tmp_path):
  alone = dict.fromkeys(JOINING) | {"distributed": False, "join_timeout": 9}
  multihost.join(**alone)
  assert multihost.is_first()
  assert multihost.from_first_process(0.1) == 0.1
  multihost.check_same_checkpoint(tmp_path, 3)
  request = multihost.agreed_request([signal.SIGTERM], False)
  assert request == signal.SIGTERM
  assert multihost.agreed_request([], True) is None


def two_processes(monkeypatch, gathered):
  """Let this process be the first of two, and exchange what it is told."""
  utils = multihost.multihost_utils
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(utils, "process_allgather", gathered)
  monkeypatch.setattr(utils, "broadcast_one_to_all", lambda data: data)
  monkeypatch.setattr(utils, "sync_global_devices", lambda name: None)


def test_processes_that_see_different_checkpoints_stop(tmp_path, monkeypatch):
  two_processes(monkeypatch, lambda step: np.array([step, 20]))
  multihost.check_same_checkpoint(tmp_path, 20)
  for step, name in (
    (0, "no checkpoint"),
    (multihost.UNREADABLE, "unreadable checkpoints"),
    (10, "the checkpoint of step 10"),
  ):
    message = (
      f"see the same {tmp_path}: the first process sees {name}, and process 1 "
      "the checkpoint of step 20$"
    )
    with pytest.raises(ValueError, match=message):
      multihost.check_same_checkpoint(tmp_path, step)


def test_processes_that_cannot_write_to_the_run_directory_stop(
  tmp_path, monkeypatch
):
  def write_as_both(name):
    (first,) = tmp_path.iterdir()
    (tmp_path / first.name.replace("process0", "process1")).touch()

  two_processes(monkeypatch, None)
  message = f"of the first, {tmp_path}: process 1 cannot"
  with pytest.raises(ValueError, match=message):
    multihost.check_seen_by_all(tmp_path)
  assert list(tmp_path.iterdir()) == []
  utils = multihost.multihost_utils
  monkeypatch.setattr(utils, "sync_global_devices", write_as_both)
  multihost.check_seen_by_all(tmp_path)
  with pytest.raises(ValueError, match="process 0, process 1 cannot"):
    monkeypatch.setattr(utils, "sync_global_devices", lambda name: None)
    multihost.check_seen_by_all(tmp_path / "missing")
  (tmp_path / "file").touch()  # in place of a directory: another error
  with pytest.raises(ValueError, match="process 0, process 1 cannot"):
    multihost.check_seen_by_all(tmp_path / "file")


def test_several_processes_need_a_mesh(config, monkeypatch):
  assert run_mesh(config) is None
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  with pytest.raises(ValueError, match=r"2 processes share .* --mesh=data:1"):
    run_mesh(config)


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
  message = "one device communicates nothing: pass --mesh"
  with pytest.raises(ValueError, match=message):
    collectives.run(config, console)


def test_sweeps_have_no_mesh(config, console):
  meshed = replace(config, mesh="data:1")
  record = to_record(SweepConfig(num_seeds=2)) | to_record(meshed)
  many = from_record(SweepConfig(), record)
  message = "a sweep does not support --mesh: it must be '', got 'data:1'"
  with pytest.raises(ValueError, match=message):
    sweep.run(many, console)


@pytest.mark.exhaustive
def test_a_mesh_of_one_device_trains_as_without(config, console):
  config = replace(config, nonfinite="skip")
  one = train.run(config, console)
  other = replace(config, run=config.job.run + "2", mesh="data:1")
  assert abs(train.run(other, console).val_loss - one.val_loss) < ROUNDING


def joining(config, count, axis="data"):
  """Start the training in `count` processes."""
  flags = as_flags(to_record(config), to_record(TrainConfig()))
  port = free_port()
  return [
    start(
      "experiments.train",
      "--distributed",
      f"--coordinator=127.0.0.1:{port}",
      f"--num_processes={count}",
      f"--process_id={index}",
      f"--mesh={axis}:{count}",
      *flags,
    )
    for index in range(count)
  ]


@pytest.fixture
def shared(config):
  """A run whose batches two processes can share, with a test split."""
  return replace(config, batch_size=4, val_fraction=0.2, test_fraction=0.1)


@pytest.mark.exhaustive
@pytest.mark.programs
def test_two_processes_train_as_one_and_the_first_writes(shared, console):
  with jax.enable_x64(False):  # as in the processes, whose noise it is
    one = train.run(replace(shared, run=shared.job.run + "1"), console)
  both = finish(*joining(shared, 2, axis="model"))
  assert [(status, errors) for status, _, errors in both] == [(0, "")] * 2
  first, second = (output for _, output, _ in both)
  assert (
    "cpu, cpu: 2 devices share each batch, and 2 the weights, in 2 processes\n"
    in first
  )
  assert "best validation loss" in first and "test loss" in first
  assert "loss" not in second  # Gloo itself prints who is connected
  trained = load(one.directory.parent / "run")
  assert abs(trained.val_loss - one.val_loss) < ROUNDING
  assert trained.step == one.best_step
  steps, expected = (
    [row["step"] for row in read_rows(directory)]
    for directory in (one.directory.parent / "run", one.directory)
  )
  assert steps == expected


@pytest.mark.exhaustive
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
  message = (
    f"error: not all processes have joined at {address} within 1 seconds\n"
  )
  assert finish(process) == [(2, "", message)]


@pytest.mark.exhaustive
@pytest.mark.programs
def test_an_error_of_the_first_process_ends_all(shared, tmp_path):
  (tmp_path / "run").mkdir()
  (tmp_path / "run" / "config.json").write_text("{}")
  first, second = finish(*joining(shared, 2))
  assert first[0] == second[0] == 2
  assert "is not a run of this version: it holds config.json but no" in first[2]
  assert "error: the first process has stopped: see its error" in second[2]


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
  assert len(expected) > 20 and int(expected[0]) == 18
  for one, other in zip(expected, state, strict=True):
    assert np.abs(one - other).max() < ROUNDING * max(1, np.abs(one).max())


@pytest.mark.exhaustive
@pytest.mark.programs
def test_no_device_holds_the_whole_state(config):
  """Not as it is created, nor while it is saved, nor as it is read again.

  Only the device that stands for the host has all the weights, as they are
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


def wait_for(text, path):
  """Wait until a file holds a text, for 90 seconds at most."""
  deadline = time.monotonic() + 90
  while time.monotonic() < deadline:
    if path.exists() and text in path.read_text():
      return
    time.sleep(0.2)


@pytest.mark.exhaustive
@pytest.mark.programs
def test_two_processes_stop_between_evaluations(shared, tmp_path):
  long = replace(shared, num_epochs=2000, eval_every=100_000)
  processes = joining(long, 2)
  wait_for('"step": 60,', tmp_path / "run" / "metrics.jsonl")
  processes[1].send_signal(signal.SIGTERM)
  first, second = finish(*processes)
  assert (first[0], second[0]) == (143, 143), first[2] + second[2]
  stopped = list_checkpoints(tmp_path / "run" / "checkpoints")[-1]
  assert stopped > 50 and stopped % AGREE_EVERY == 0
  assert f"SIGTERM: stopped after step {stopped}" in first[1]


@pytest.mark.exhaustive
@pytest.mark.programs
def test_one_process_resumes_what_two_have_stopped(shared, console, tmp_path):
  long = replace(
    shared,
    num_epochs=30,
    eval_every=10,
    schedule="constant",
    learning_rate=1.0,
    asgd_patience=1,
  )
  processes = joining(long, 2)
  samples = tmp_path / "run" / "samples.txt"
  wait_for("weights are averaged", samples)
  processes[1].send_signal(signal.SIGINT)
  first, second = finish(*processes)
  assert (first[0], second[0]) == (130, 130), first[2] + second[2]
  assert "SIGINT: stopped after step " in first[1]
  assert "weights are averaged" in samples.read_text()
  stopped = list_checkpoints(tmp_path / "run" / "checkpoints")[-1]
  assert stopped % long.evaluation.eval_every == 0  # where all agree
  result = train.run(long, console)
  assert f"resumed     after step {stopped}\n" in console.file.getvalue()
  assert result.stopped_by is None
  assert result.best_step > 0
