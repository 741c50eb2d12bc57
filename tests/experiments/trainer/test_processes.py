"""Programs of several processes, or several devices, that train as one."""

import shutil
import signal
import time

import jax
import pytest

from experiments import train
from experiments.trainer.config import TrainConfig
from experiments.trainer.loop import AGREE_EVERY
from experiments.trainer.records import replace, to_record
from experiments.trainer.run_dir import read_config
from experiments.trainer.trained import load
from lstm_jax.training import list_checkpoints
from tests.experiments.trainer.resuming import last_checksums, read_rows
from tests.processes import as_flags, finish, free_port, run_program, start

pytestmark = [pytest.mark.exhaustive, pytest.mark.programs]
ROUNDING = 1e-5  # of float32: each of 47 steps may add 1e-7 to a loss of 3


def started(config, count, *flags_of_last, axis="data"):
  """Start `count` processes that train; the last one has further flags."""
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


def test_a_process_without_a_job_or_without_the_others_prints_one_line():
  address = f"127.0.0.1:{free_port()}"
  joining = f"--coordinator={address}", "--num_processes=2", "--process_id=1"
  program = "experiments.train", "--distributed", "--join_timeout=1"
  alone, without_job = finish(start(*program, *joining), start(*program))
  assert alone == (2, "", "error: not all processes have joined within 1 s\n")
  status, _, errors = without_job
  assert status == 2 and errors.count("\n") == 1
  assert "Without a job of SLURM, " in errors and "pass --coord" in errors


def test_an_error_of_one_process_ends_all(shared, tmp_path):
  corpus = tmp_path / "missing"
  first, second = finish(*started(shared, 2, f"--corpus={corpus}"))
  assert first[0] == second[0] == 2
  assert second[2].startswith(f"error: corpus {corpus} cannot be read: ")
  assert first[2] == "error: process 1 stopped: see the error there\n"
  assert not (tmp_path / "run").exists()


def test_two_processes_stop_between_evaluations(shared, tmp_path):
  long = replace(shared, num_epochs=2000, eval_every=100_000)
  processes = started(long, 2)
  # After step 50, AGREE_EVERY, they do not agree on stopping before step 100.
  wait_for('"step": 60,', tmp_path / "run" / "metrics.jsonl")
  processes[1].send_signal(signal.SIGTERM)
  first, second = finish(*processes)
  # The statuses are 128 + 15, for SIGTERM.
  assert (first[0], second[0]) == (143, 143), first[2] + second[2]
  stopped = list_checkpoints(tmp_path / "run" / "checkpoints")[-1]
  assert stopped > 50 and stopped % AGREE_EVERY == 0
  assert f"SIGTERM: stopped after step {stopped}" in first[1]


def test_one_process_resumes_what_two_have_stopped(shared, console, tmp_path):
  long = replace(
    shared,
    num_epochs=20,
    eval_every=10,
    schedule="constant",
    learning_rate=1.0,
    asgd_patience=1,
  )
  processes = started(long, 2)
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


def test_two_devices_train_as_one_and_resume_bit_for_bit(config, tmp_path):
  def run(**flags):
    record = to_record(replace(config, batch_size=4)) | flags
    default = to_record(TrainConfig())
    return run_program("experiments.train", *as_flags(record, default))

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
