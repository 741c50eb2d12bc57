"""Kill runs at random moments, resume them, and compare how they end.

  python -m tests.experiments.trainer.killing DIRECTORY KILLS SEED PROGRAMS

trains one run after another until there are at least KILLS kills. The compiled
programs are kept in the directory PROGRAMS, which another call may have filled.
A life of a run goes from its start, or from a checkpoint, to a kill or to its
end. Each life has a process of its own, forked from this one: it has all
imports already, and starts within a tenth of a second. About a third of the
kills wait for a checkpoint that is being written, or end a life that finds one
cut off. The last line printed is a JSON object: the number of kills, of those
that leave a checkpoint cut off, by that kill or an earlier one ("in_a_save"),
and of runs, and the most training steps that a kill has "lost".
"""

import json
import os
import random
import select
import signal
import sys
import time
import traceback
from pathlib import Path

import jax
import jaxlib.mlir.dialects.mhlo  # noqa: F401 - here, and not in each life
import scipy.linalg  # noqa: F401
from rich.console import Console

import tests.lowering  # noqa: F401 - lowers programs faster
from experiments import train
from experiments.trainer import display, logger
from experiments.trainer.config import TrainConfig
from experiments.trainer.environment import REPOSITORY, checkout
from experiments.trainer.logger import RunLogger
from experiments.trainer.records import replace
from experiments.trainer.run_dir import RESULT
from lstm_jax.training import list_checkpoints
from tests.experiments.conftest import VERSES
from tests.experiments.trainer.resuming import outcome

EVERY = 20  # training steps between two checkpoints, at most


def make_config(directory, name):
  return replace(
    TrainConfig(),
    corpus=str(directory / "verse.txt"),
    run=str(directory / name),
    embedding_size=4,
    hidden_size=12,
    batch_size=3,
    seq_len=8,
    num_epochs=2,
    warmup_steps=5,
    output_dropout=0.2,
    ema_decay=0.9,
    eval_every=EVERY,
    sample_length=30,
  )


def start(config, programs):
  """Start a life of a run; return the id of its process.

  Args:
    config: of the run.
    programs: the directory of compiled programs.
  """
  child = os.fork()
  if child:
    return child
  status = 1
  try:
    jax.config.update("jax_compilation_cache_dir", programs)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    count_steps(config.job.run)
    with open(f"{config.job.run}.log", "a") as log:
      train.run(config, Console(file=log, width=80))
    status = 0
  except BaseException:
    Path(f"{config.job.run}.log").write_text(traceback.format_exc())
  finally:
    os._exit(status)


def count_steps(run):
  """Have the process keep the number of its last training step in a file."""
  file = os.open(f"{run}.step", os.O_CREAT | os.O_RDWR)
  log_step = RunLogger.log_step

  def counted(self, step, metrics):
    os.pwrite(file, step.to_bytes(8, "big"), 0)
    log_step(self, step, metrics)

  RunLogger.log_step = counted


def last_step(run):
  """Return a run's last training step, from the file of `count_steps`."""
  path = Path(f"{run}.step")
  return int.from_bytes(path.read_bytes(), "big") if path.exists() else 0


def writing(run):
  """Return whether a checkpoint is being written, or a kill has cut it off."""
  return any(run.glob("checkpoints/*tmp*"))


def wait(child, seconds):
  """Wait until a process ends, or for some seconds; do not reap it."""
  descriptor = os.pidfd_open(child)
  select.select([descriptor], [], [], seconds)
  os.close(descriptor)


def kill(child, run, draws, lifetime):
  """Kill a process at a random moment; return whether its run is unfinished."""
  deadline = time.monotonic() + 2 * lifetime
  if draws.random() < 1 / 3:
    while not writing(run) and time.monotonic() < deadline:
      if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        break
      time.sleep(0.003)
    wait(child, draws.uniform(0, 0.05))
  else:
    wait(child, draws.uniform(0, lifetime))
  os.kill(child, signal.SIGKILL)
  _, status = os.waitpid(child, 0)
  if os.WIFEXITED(status) and os.WEXITSTATUS(status):
    raise AssertionError(Path(f"{run}.log").read_text()[-2000:])
  # With its result written, a run has ended, and cannot be resumed.
  return os.WIFSIGNALED(status) and not (run / RESULT).exists()


def main():
  directory, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
  programs = sys.argv[4]
  (directory / "verse.txt").write_text(VERSES)
  display.summary = None  # no events: they take half of a life
  logger.draw_losses = lambda *given: None  # nor a picture
  checkout(REPOSITORY)  # kept for all lives: they do not start git
  if not os.listdir(programs):
    os.waitpid(start(make_config(directory, "cold"), programs), 0)
  started = time.monotonic()
  os.waitpid(start(make_config(directory, "whole"), programs), 0)
  lifetime = time.monotonic() - started
  whole, draws = outcome(directory / "whole"), random.Random(seed)
  counts = dict.fromkeys(("kills", "in_a_save", "runs", "lost"), 0)
  while counts["kills"] < kills:
    config = make_config(directory, f"run{counts['runs']}")
    run, unfinished = Path(config.job.run), True
    while unfinished:
      unfinished = kill(start(config, programs), run, draws, lifetime)
      if unfinished:
        counts["kills"] += 1
        counts["in_a_save"] += writing(run)
        steps = list_checkpoints(run / "checkpoints")
        # Training steps that the next life has to make again.
        lost = last_step(run) - (steps[-1] if steps else 0)
        counts["lost"] = max(counts["lost"], lost)
    assert outcome(run) == whole, run
    counts["runs"] += 1
  print(json.dumps(counts))


if __name__ == "__main__":
  main()
