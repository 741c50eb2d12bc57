"""Train policies that remember: recurrent PPO on tasks that need memory.

  python -m experiments.policy --task=tmaze --size=10 --num_updates=60

trains a GRU, an LSTM, a minimal GRU and a feed-forward network, or those of
--network, with several seeds, and compares their returns. The tasks: in
a T-maze, the first of --size steps shows where to turn after the last; in
repeat_previous, an action has to name the symbol shown --size steps before.

The directory --out receives the results as policy.json, and a figure of the
return over environment steps, policy.png; --overwrite replaces those that it
holds. --timing_rounds also times an update of the GRU and of the LSTM against
the same network in Flax, with the usual ScannedRNN of agents in Flax and with
the one that `lstm_jax.interop.flax.scanned` makes; it first checks that all
compute the same. --replot prints the tables and draws the figure of an existing
policy.json.

docs/recurrent-policy.md explains the code.
"""

import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from rich.console import Console

from experiments.benchmarks.timing import environment as machine
from experiments.cli import launch, make_console
from experiments.comparison.results import (
  naming_damaged,
  open_results,
  print_held,
  print_tables,
  read_record,
  recorded_command,
)
from experiments.policies.environments import TASKS
from experiments.policies.peer import RACING, race
from experiments.policies.training import (
  PolicyConfig,
  draw,
  tables,
  train,
)
from experiments.trainer.distributed import share_members
from experiments.trainer.files import write_json
from experiments.trainer.format import counted
from experiments.trainer.records import (
  config_from_flags,
  define_flags,
  to_record,
)
from experiments.trainer.run_dir import lock

RECORD, FIGURE = "policy.json", "policy.png"
FILES = RECORD, FIGURE
# Entries of the record that tables and figure need.
ENTRIES = "config", "task", "guessing", "steps_per_update", "networks", "race"
LINES = 5  # lines of progress for each network, or a few more


def run(
  config: PolicyConfig, directory: Path, console: Console
) -> dict[str, Any]:
  """Train the networks, print and save the results, and return them.

  Raises:
    ValueError: the configuration is not usable, or a network of Flax computes
      something else.
    Diverged: a loss is NaN or infinite.
  """
  begun = time.monotonic()
  environment = TASKS[config.task](config.size)
  train_key, race_key = jax.random.split(jax.random.key(config.seed))
  keys = jax.random.split(train_key, config.num_seeds)
  record: dict[str, Any] = {
    "command": recorded_command("policy"),
    "config": to_record(config),
    "environment": machine(),
    "task": environment.title,
    "guessing": environment.guessing,  # the best mean return without memory
    "steps_per_update": config.ppo.num_envs * config.ppo.rollout_steps,
    "networks": {},
    "race": {},  # --timing_rounds: times beside those in Flax
  }
  for name in config.network:
    show = partial(progress, console, name, config.ppo.num_updates)
    trained = train(name, environment, config, keys, show)
    record["networks"][name] = trained
    save(record, directory)  # keeps these results if the rest is interrupted
  for name in [n for n in RACING if n in config.network]:
    if config.timing_rounds:
      rounds = counted(config.timing_rounds, "round")
      console.print(f"{name}: timing {rounds}")
      record["race"][name] = race(name, environment, config, race_key)
      save(record, directory)
  record["seconds"] = time.monotonic() - begun
  save(record, directory)
  report(record, directory, console)
  return record


def progress(
  console: Console, name: str, total: int, number: int, returns: np.ndarray
) -> None:
  """Print the mean of the seeds' returns, for about LINES updates."""
  if number % max(1, total // LINES) == 0:
    known = returns[~np.isnan(returns)]
    text = f"return {known.mean():.3f}" if len(known) else "no episode ended"
    console.print(f"{name}  {number}/{total}  {text}")


def save(record: dict[str, Any], directory: Path) -> None:
  """Write policy.json; the figure is drawn at the end."""
  write_json(directory / RECORD, record)
  (directory / FIGURE).unlink(missing_ok=True)  # it shows earlier results


def load(directory: Path) -> dict[str, Any]:
  """Return the record that `save` wrote.

  Raises:
    ValueError: the directory has no record, or a damaged one.
  """
  path = directory / RECORD
  record = read_record(path, "there are no policies", ENTRIES)
  with naming_damaged(path):
    tables(record)
  return record


def report(record: dict[str, Any], directory: Path, console: Console) -> None:
  """Print the tables and draw the figure into the directory."""
  print_tables(tables(record), console)
  with naming_damaged(directory / RECORD):
    draw(record, directory / FIGURE)
  print_held(directory, FILES, console)


def main() -> None:
  """Train, or report an existing run if --replot is given."""
  console, directory = make_console(), Path(OUT.value)
  if REPLOT.value:
    load(directory)  # raises before `lock` if there is nothing to report
    with lock(directory):
      report(load(directory), directory, console)
    return
  config = config_from_flags(PolicyConfig(), FLAGS)
  with open_results(directory, FILES, OVERWRITE.value):
    run(share_members(config, config.num_seeds), directory, console)


if __name__ == "__main__":
  FLAGS = define_flags(PolicyConfig())
  OUT = flags.DEFINE_string(
    "out", "runs/policy", "Directory of the results and the figure."
  )
  OVERWRITE = flags.DEFINE_bool(
    "overwrite", False, "Replace the results that --out holds."
  )
  REPLOT = flags.DEFINE_bool(
    "replot",
    False,
    "Train nothing: print the tables and draw the figure of the run in --out.",
  )
  launch(main, required=("out",))
