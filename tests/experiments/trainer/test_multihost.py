"""Several processes that join, train as one, and stop."""

import signal
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import jax
import pytest

from experiments import train
from experiments.trainer import distributed
from experiments.trainer.config import TrainConfig
from experiments.trainer.loop import AGREE_EVERY
from experiments.trainer.records import replace, to_record
from experiments.trainer.trained import load
from lstm_jax.training import list_checkpoints
from tests.experiments.trainer.resuming import read_rows
from tests.processes import ROOT, as_flags, finish, free_port, start

JOINING = {
  "distributed": True,
  "coordinator": "127.0.0.1:1234",
  "num_processes": 2,
  "process_id": 1,
  "join_timeout": 9,
}
ROUNDING = 1e-5  # of float32: each of 29 steps may add 1e-7 to a loss of 3


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"distributed": False}, "--coordinator, .* go with --distributed"),
    ({"process_id": None}, r"go together, got \('127.0.0.1:1234', 2, None\)"),
    ({"coordinator": None}, r"go together, got \(None, 2, 1\)"),
    ({"process_id": 2}, "must be below --num_processes, got 2 and 2"),
    *(
      (
        {"coordinator": given},
        f"--coordinator must be HOST:PORT, got '{given}'",
      )
      for given in ("1234", "host:", "host:0", "host:65536", "host:http")
    ),
  ],
)
def test_flags_that_cannot_join_processes_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    distributed.join(**JOINING | options)


def test_a_port_where_another_program_listens_is_refused(monkeypatch):
  monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **kw: None)
  with socket.create_server(("127.0.0.1", 0)) as taken:
    address = f"127.0.0.1:{taken.getsockname()[1]}"
    first = JOINING | {"coordinator": address, "process_id": 0}
    message = f"cannot listen at --coordinator={address}: Address already in"
    with pytest.raises(ValueError, match=message):
      distributed.join(**first)
  distributed.join(**first)  # the port is free now


@pytest.mark.exhaustive
@pytest.mark.programs
def test_where_there_is_no_job_the_error_names_the_flags():
  """In a process whose JAX has no device yet, as when a program starts."""
  # --distributed alone, with a --join_timeout of 9 s.
  join = "from experiments.trainer.distributed import join; "
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


def test_processes_that_have_joined_are_not_stopped_later(monkeypatch):
  joined, waiting = [], []

  def initialize(*given, **options):
    joined.append(given)
    waiting.extend(t for t in threading.enumerate() if t not in before)

  before = threading.enumerate()
  monkeypatch.setattr(jax.distributed, "initialize", initialize)
  monkeypatch.setattr(distributed, "_give_up", lambda *given: None)
  distributed.join(**JOINING)
  assert joined == [("127.0.0.1:1234", 2, 1)]
  (watchdog,) = waiting
  watchdog.join(5)  # it ends at once, and not after the 9 s of JOINING
  assert not watchdog.is_alive()


def test_signals_end_a_process_that_joins_and_one_that_has(
  monkeypatch, interruptible
):
  events = []

  def initialize(*given, **options):
    events.append(signal.getsignal(signal.SIGINT))
    # JAX's handler of SIGTERM is unseen by Python: a call must replace it.
    monkeypatch.setattr(signal, "signal", lambda *call: events.append(call))

  monkeypatch.setattr(jax.distributed, "initialize", initialize)
  distributed.join(**JOINING)
  monkeypatch.undo()
  assert events[0] == signal.SIG_DFL
  assert events[-1] == (signal.SIGTERM, signal.SIG_DFL)


def test_a_single_process_asks_no_other(tmp_path):
  alone = dict.fromkeys(JOINING) | {"distributed": False, "join_timeout": 9}
  distributed.join(**alone)
  assert distributed.is_first()
  assert distributed.from_first_process(0.1) == 0.1
  distributed.check_same_checkpoint(tmp_path, 3)
  request = distributed.agreed_request([signal.SIGTERM], False)
  assert request == signal.SIGTERM
  assert distributed.agreed_request([], True) is None


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
def test_a_coordinator_that_does_not_answer_is_an_error_of_one_line():
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
    f"error: not all processes have joined at {address} within 1 second\n"
  )
  assert finish(process) == [(2, "", message)]


@pytest.mark.exhaustive
@pytest.mark.programs
def test_an_error_of_the_first_process_ends_all(shared, tmp_path):
  (tmp_path / "run").mkdir()
  (tmp_path / "run" / "config.json").write_text("{}")
  first, second = finish(*started(shared, 2))
  assert first[0] == second[0] == 2
  assert (
    "is not a run of this version and not empty: it holds config" in first[2]
  )
  assert "error: process 0 stopped: see the error there" in second[2]


@pytest.mark.exhaustive
@pytest.mark.programs
def test_an_error_before_the_run_directory_ends_all(shared, tmp_path):
  corpus = tmp_path / "missing"
  first, second = finish(*started(shared, 2, f"--corpus={corpus}"))
  assert first[0] == second[0] == 2
  assert second[2].startswith(f"error: corpus {corpus} cannot be read: ")
  assert first[2] == "error: process 1 stopped: see the error there\n"
  assert not (tmp_path / "run").exists()


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


@pytest.mark.exhaustive
@pytest.mark.programs
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


def test_processes_with_unlike_numbers_of_devices_are_refused(monkeypatch):
  found = [SimpleNamespace(process_index=i) for i in (0, 1, 1)]
  monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
  monkeypatch.setattr(jax, "devices", lambda: found)
  message = "as the others, got 1 in process 0, 2 in process 1$"
  with pytest.raises(ValueError, match=message):
    distributed.check_equal_devices()
  found.append(SimpleNamespace(process_index=0))
  distributed.check_equal_devices()
