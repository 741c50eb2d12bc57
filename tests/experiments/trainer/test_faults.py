"""Runs that are killed, cannot write their directory, or lack memory."""

import json
import re
import resource
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from experiments import train
from experiments.trainer.config import TrainConfig
from experiments.trainer.records import replace, to_record
from tests.experiments.conftest import VERSE, VERSES
from tests.experiments.conftest import make_config as small_config
from tests.experiments.trainer.killing import EVERY, make_config
from tests.experiments.trainer.resuming import last_checksums, outcome
from tests.processes import (
  ROOT,
  as_flags,
  environment,
  finish,
  run_program,
  start,
)

pytestmark = [pytest.mark.programs, pytest.mark.exhaustive]


@pytest.fixture(scope="module")
def programs():
  """A directory of compiled programs for runs that are killed, first empty.

  A kill may leave half of a program in it, of which other tests would warn.
  """
  with tempfile.TemporaryDirectory() as directory:
    yield directory


@pytest.mark.parametrize("seed", [0, 1])
def test_a_run_killed_at_any_moment_ends_as_one_that_was_not(seed, programs):
  """A hundred kills in all, each of a real process, by SIGKILL.

  The runs are on the disk: in `tmp_path`, which may be in memory, a checkpoint
  is written too fast to be cut off.
  """
  with tempfile.TemporaryDirectory() as directory:
    arguments = directory, 50, seed, programs
    killing = start("tests.experiments.trainer.killing", *arguments)
    [(status, output, errors)] = finish(killing, timeout=900)
  assert status == 0, errors[-3000:]
  counts = json.loads(output.splitlines()[-1])
  assert counts["kills"] >= 50
  assert counts["in_a_save"] >= 5
  # One interval, and the step during which a checkpoint was being written.
  assert 0 < counts["lost"] <= EVERY + 1


def flags_of(config):
  return as_flags(to_record(config), to_record(TrainConfig()))


def program(config, blocks="unlimited"):
  """Run the program in an interpreter of its own; return the ended process.

  A file may have at most `blocks` blocks, of 512 bytes. The program reads the
  directory of compiled programs that tests share, and does not write to it.
  """
  reading = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1e6"}
  limited = ["sh", "-c", f'ulimit -f {blocks}; exec "$@"', "sh"]
  return subprocess.run(
    [*limited, sys.executable, "-m", "experiments.train", *flags_of(config)],
    cwd=ROOT,
    env=environment() | reading,
    text=True,
    capture_output=True,
    timeout=300,
    check=False,
  )


@pytest.fixture
def config(config):
  return replace(config, num_epochs=2)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """What the run of `config` leaves if nothing is in its way."""
  config = small_config(tmp_path_factory.mktemp("whole"))
  run_program("experiments.train", *flags_of(replace(config, num_epochs=2)))
  return outcome(Path(config.job.run))


@contextmanager
def mounted(directory, size):
  """Mount a file system of `size` KiB; yield a function that remounts it."""
  directory.mkdir()
  command = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", directory]
  made = subprocess.run(command, capture_output=True, check=False)
  if made.returncode:
    pytest.skip("this user may not mount a file system to fill")
  try:
    yield lambda options: subprocess.run(
      ["mount", "-o", f"remount,{options}", directory], check=True
    )
  finally:
    subprocess.run(["umount", "--lazy", directory], check=True)


def test_a_full_disk_is_one_line_and_costs_no_more_than_a_checkpoint(
  config, whole, tmp_path
):
  disk = tmp_path / "disk"
  with mounted(disk, size=400) as remount:
    config = replace(config, run=str(disk / "run"))
    full = program(config)
    assert full.returncode == 2, full.stderr
    assert full.stderr.count("\n") == 1
    assert "No space left on device" in full.stderr
    assert "resumed" not in full.stdout
    remount("size=9000k,ro")
    read_only = start("experiments.train", *flags_of(config), devices=None)
    [(status, _, errors)] = finish(read_only)
    assert status == 2 and errors.count("\n") == 1
    assert "read-only file system" in errors
    remount("rw")
    again = run_program("experiments.train", *flags_of(config))
    evaluated = re.findall(r"step (\d+), epoch", full.stdout)
    (resumed,) = re.findall(r"resumed     after step (\d+)\n", again)
    assert len(evaluated) >= 3 and resumed in evaluated[-2:]
    assert outcome(disk / "run") == whole


def test_a_limit_on_the_size_of_files_is_one_line_and_loses_nothing(
  config, whole, tmp_path
):
  config = replace(config, run=str(tmp_path / "limited"))
  limited = program(config, blocks=4)
  assert limited.returncode == 2, limited.stderr
  assert limited.stderr.count("\n") == 1
  assert "file too large" in limited.stderr
  run_program("experiments.train", *flags_of(config))
  assert outcome(tmp_path / "limited") == whole


def test_what_the_killed_runs_compute_depends_on_noise_and_an_average(
  tmp_path, console
):
  """Else resuming them would not show that both are restored."""
  (tmp_path / "verse.txt").write_text(VERSES)
  weights = []
  for changes in ({}, {"output_dropout": 0.0}, {"ema_decay": 0.0}):
    config = replace(make_config(tmp_path, f"run{len(weights)}"), **changes)
    train.run(config, console)
    _, checksums = last_checksums(Path(config.job.run))
    named = {n: c for n, c in checksums.items() if n.startswith("params")}
    weights.append(named)
    averaged = any("average" in name for name in checksums)
    assert averaged == ("ema_decay" not in changes)
  whole, noiseless, plain = weights
  for name, checksum in whole.items():
    assert checksum not in (noiseless[name], plain[name])


def test_without_memory_a_process_prints_one_line(tmp_path):
  """It may take 1 GB more than before the first step, which needs 2.5 GB."""
  corpus = tmp_path / "verse.txt"
  corpus.write_text(VERSE * 2500)
  sizes = {"batch_size": 64, "seq_len": 2048, "hidden_size": 512, "devices": 2}
  flags = [f"--{name}={value}" for name, value in sizes.items()]
  files = f"--corpus={corpus}", f"--run={tmp_path / 'run'}"
  process = subprocess.Popen(
    [sys.executable, "-m", "experiments.train", *flags, *files],
    cwd=ROOT,
    env=environment(),
    text=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
  )
  while not process.stdout.readline().startswith("untrained"):
    assert process.poll() is None
  pages, *_ = Path(f"/proc/{process.pid}/statm").read_text().split()
  limit = int(pages) * resource.getpagesize() + 10**9
  resource.prlimit(process.pid, resource.RLIMIT_AS, (limit, limit))
  [(status, _, err)] = finish(process)
  assert status == 2 and err.count("\n") == 1
  assert err.startswith("error: out of memory with batches of 64 × 2,048 tok")
