"""Programs of several devices, and of several processes, that train as one."""

import json
import re
import shutil
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from experiments import collectives, train
from experiments.trainer.config import TrainConfig
from experiments.trainer.loop import AGREE_EVERY
from experiments.trainer.records import replace, to_record
from experiments.trainer.run_dir import read_config
from experiments.trainer.setup import format_mesh, make_setup
from experiments.trainer.trained import load
from lstm_jax.training import list_checkpoints, make_mesh, read_state
from tests.experiments.trainer.resuming import last_checksums, read_rows
from tests.processes import as_flags, finish, free_port, run_program, start

ROUNDING = 1e-5  # of float32: each of 47 steps may add 1e-7 to a loss of 3
DEFAULT = to_record(TrainConfig())


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


@pytest.mark.exhaustive
@pytest.mark.programs
def test_devices_communicate_once_in_a_training_step(config):
  record = to_record(replace(config, batch_size=4, devices="2"))
  output = run_program("experiments.collectives", *as_flags(record, DEFAULT))
  assert "one training step: 2 devices share each batch; weights of" in output
  rows = re.findall(r"all-reduce +(\d+) +(\w+) +([\d,]+)", output)
  assert rows and {looped for _, looped, _ in rows} == {"no"}
  assert "all-gather" not in output


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
  module = "tests.experiments.trainer.stopping"
  kinds = []
  for record in (to_record(config), to_record(config) | {"num_epochs": 2}):
    process = start(module, json.dumps(record), -1, devices=8)
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


def started(config, count, *flags_of_last, axis="data"):
  """Start `count` processes that train; the last one has further flags."""
  flags = as_flags(to_record(config), DEFAULT)
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
      *(flags_of_last if index == count - 1 else ()),
    )
    for index in range(count)
  ]


@pytest.fixture
def shared(config):
  """A run whose batches two processes can share, with a test split."""
  return replace(config, batch_size=4, val_fraction=0.2, test_fraction=0.1)


def wait_for(text, path):
  """Wait until a file holds a text, for 90 seconds at most."""
  deadline = time.monotonic() + 90
  while time.monotonic() < deadline:
    if path.exists() and text in path.read_text():
      return
    time.sleep(0.2)


@pytest.mark.exhaustive
@pytest.mark.programs
def test_two_processes_train_as_one_and_the_first_writes(shared, console):
  with jax.enable_x64(False):  # as in the processes: dropout masks depend on it
    one = train.run(replace(shared, run=shared.job.run + "1"), console)
  both = finish(*started(shared, 2, axis="model"))
  assert [(status, errors) for status, _, errors in both] == [(0, "")] * 2
  first, second = (output for _, output, _ in both)
  assert (
    "cpu, cpu: 2 devices share each batch, and 2 the weights, in 2 processes\n"
    in first
  )
  assert "best validation loss" in first and "test loss" in first
  assert "loss" not in second  # only lines of Gloo, about connections
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
def test_a_process_without_a_job_or_without_the_others_prints_one_line():
  address = f"127.0.0.1:{free_port()}"
  joining = f"--coordinator={address}", "--num_processes=2", "--process_id=1"
  program = "experiments.train", "--distributed", "--join_timeout=1"
  alone, without_job = finish(start(*program, *joining), start(*program))
  assert alone == (2, "", "error: not all processes have joined within 1 s\n")
  status, _, errors = without_job
  assert status == 2 and errors.count("\n") == 1
  assert "Without a job of SLURM, " in errors and "pass --coord" in errors


@pytest.mark.exhaustive
@pytest.mark.programs
def test_an_error_of_one_process_ends_all(shared, tmp_path):
  corpus = tmp_path / "missing"
  first, second = finish(*started(shared, 2, f"--corpus={corpus}"))
  assert first[0] == second[0] == 2
  assert second[2].startswith(f"error: corpus {corpus} cannot be read: ")
  assert first[2] == "error: process 1 stopped: see the error there\n"
  assert not (tmp_path / "run").exists()


@pytest.mark.exhaustive
@pytest.mark.programs
def test_two_devices_train_as_one_and_resume_bit_for_bit(config, tmp_path):
  def run(**flags):
    record = to_record(replace(config, batch_size=4, nonfinite="skip")) | flags
    return run_program("experiments.train", *as_flags(record, DEFAULT))

  assert ": 2 devices" not in run(run=str(tmp_path / "one"))
  two = tmp_path / "two"
  output = run(run=str(two), devices="2")
  assert "cpu, cpu: 2 devices share each batch\n" in output
  record = read_config(two)
  assert (record["devices"], record["mesh"]) == ("2", "data:2")
  losses, expected = (
    [row["val_loss"] for row in read_rows(path) if "val_loss" in row]
    for path in (two, tmp_path / "one")
  )
  assert losses == pytest.approx(expected, abs=ROUNDING)
  step, arrays = last_checksums(two)
  (two / "result.json").unlink()
  shutil.rmtree(two / f"checkpoints/{step}")
  output = run(run=str(two))
  assert ": 2 devices share each batch\n" in output and "resumed" in output
  assert last_checksums(two) == (step, arrays)


@pytest.mark.exhaustive
@pytest.mark.programs
def test_one_process_resumes_what_two_have_stopped(shared, console, tmp_path):
  """They stop where both agree: at evaluations and at every 50th step."""
  long = replace(
    shared,
    num_epochs=40,
    eval_every=45,
    schedule="constant",
    learning_rate=1.0,
    asgd_patience=1,
  )
  processes = started(long, 2)
  wait_for("weights are averaged", tmp_path / "run" / "samples.txt")
  processes[1].send_signal(signal.SIGTERM)
  first, second = finish(*processes)
  # The statuses are 128 + 15, for SIGTERM.
  assert (first[0], second[0]) == (143, 143), first[2] + second[2]
  stopped = list_checkpoints(tmp_path / "run" / "checkpoints")[-1]
  assert 0 in (stopped % long.evaluation.eval_every, stopped % AGREE_EVERY)
  assert f"SIGTERM: stopped after step {stopped}" in first[1]
  result = train.run(long, console)
  assert f"resumed     after step {stopped}\n" in console.file.getvalue()
  assert result.stopped_by is None
  assert result.best_step > 0
