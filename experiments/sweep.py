"""Train one recipe with several seeds and learning rates, all at once.

  python -m experiments.sweep --num_seeds=8 --rate=3e-3 --rate=1e-2

trains eight seeds at each rate in one program: one compilation, and products
over all members. It takes the flags of a run of `experiments.train`, on one
device; the seeds count up from --seed. Each member is the run that
`experiments.train` makes with its seed and rate, up to rounding. The tables
have each member's best held-out loss, and the mean and the deviation over the
seeds of each rate; result.json in the run's folder has every look.

Its checkpoints have the state of all members, from which it goes on as a run
does, and the weights of the best, for `experiments.sample` and the others.
"""

import dataclasses
import shlex
import signal
import time
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from absl import flags
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from experiments.cli import SIGNALLED, launch, plain_console, stoppable
from experiments.progress import TrainingBar
from experiments.trainer import run_dir
from experiments.trainer.claim import claimed, forget_previous, to_go_on
from experiments.trainer.config import (
  TrainConfig,
  is_evaluation_step,
  optimizer_config,
)
from experiments.trainer.ensemble import (
  Member,
  SweepConfig,
  ensemble,
  leader,
  members_of,
  restore,
  save,
)
from experiments.trainer.flags import define_flags
from experiments.trainer.setup import TrainSetup, heading, make
from lstm_jax.language import stateful_loss
from lstm_jax.training import (
  CheckpointWriter,
  TrainState,
  TrainStep,
  learnt,
  member,
  train,
)


class Result(NamedTuple):
  """What a sweep ends with."""

  directory: Path
  members: list[Member]
  seconds: float  # of the updates
  stopped_by: signal.Signals | None  # before its end


def run(config: SweepConfig, console: Console) -> Result:
  """Train every member, print the tables, and keep them in the folder.

  Raises:
    ValueError: as `train.run`; or the configuration has what a sweep has not.
  """
  members = members_of(config)
  rates = {one.learning_rate for one in members}
  _refuse(config, rates)
  at_one = dataclasses.replace(config, learning_rate=1.0)
  parts = make(at_one)
  state, update = ensemble(at_one, parts, members)
  with claimed(config, parts.corpus.sha256) as (directory, goes_on):
    console.print(
      f"{heading(config, parts)}\n"
      f"members     {len(members)}: {config.num_seeds} seeds at each of "
      f"{len(rates)} learning rates\nrun folder  {directory}",
      soft_wrap=True,
    )
    begun = state, 0.0
    if goes_on:
      begun = restore(directory, members, state, console) or begun
      console.print(f"goes on     after update {begun[0].step}")
    of = config, parts, members, update
    seconds, stopped_by = _learn(*of, *begun, directory, console)
    forget_previous(directory)
    result = Result(directory, members, seconds, stopped_by)
    if not stopped_by:
      _keep(result)
  _tell(result, console)
  return result


def _refuse(config: SweepConfig, rates: set[float]) -> None:
  """Raise ValueError for rates that are none, and for what a sweep has not."""
  for rate in rates:
    optimizer_config(dataclasses.replace(config, learning_rate=rate))
  for name in ("asgd_patience", "nonfinite", "mesh"):
    value = getattr(config, name)
    if value != getattr(TrainConfig(), name):
      raise ValueError(
        f"a sweep has no {name}: it must be left as it is, got {value!r}"
      )


def _learn(
  config: SweepConfig,
  parts: TrainSetup,
  members: list[Member],
  update: TrainStep,
  state: TrainState,
  seconds: float,
  directory: Path,
  console: Console,
) -> tuple[float, signal.Signals | None]:
  """Make the updates that are left, look and save.

  Returns:
    The seconds of all updates, and the signal that stopped them.
  """
  corpus, made = parts.corpus, int(state.step)
  description = run_dir.describe(config, corpus.vocabulary)
  unit, quiet = corpus.vocabulary.unit, config.quiet
  bar = TrainingBar(console, parts.num_steps, unit, quiet=quiet)
  writer = CheckpointWriter(directory / run_dir.CHECKPOINTS)
  writer.forget_after(made)
  updates = train(update, state, parts.reading.epochs(corpus.training.tokens))
  read = len(members) * config.num_epochs * len(corpus.training.tokens)
  with closing(writer), bar, stoppable() as requests:
    began = time.monotonic()
    for step, (after, metrics) in enumerate(updates, made + 1):
      writer.wait()
      last = step == parts.num_steps
      stop = requests[0] if requests and not last else None
      look = last or is_evaluation_step(config, step)
      if not (look or stop):
        continue
      loss = float(np.nanmean(jax.device_get(metrics.loss)))
      seconds += time.monotonic() - began
      if look:
        bar.update(step, loss, read * step / parts.num_steps / seconds)
        for i, one in enumerate(members):
          params = learnt(member(after, i))
          nats = stateful_loss(parts.model, params, corpus.watched.tokens)
          one.looks.append((step, nats))
      save(writer, description, members, after, seconds)
      if stop:
        return seconds, stop
      began = time.monotonic()
  return seconds, None


def _keep(result: Result) -> None:
  record = {
    "members": [one.told() for one in result.members],
    "seconds": round(result.seconds, 3),
  }
  run_dir.write_json(result.directory / run_dir.RESULT, record)


def _tell(result: Result, console: Console) -> None:
  """Print the tables, as far as there are looks, and where all is kept."""
  looked = [one for one in result.members if one.looks]
  if result.stopped_by:
    console.print(f"\n{result.stopped_by.name}: stopped")
  if looked:
    console.print(table(looked))
    console.print(summary(looked))
  told = f"{result.seconds:.0f} s of training, kept in {result.directory}"
  first = leader(result.members)
  if first:
    told += (
      f"\nthe best, of seed {first.seed} at {first.learning_rate:g}, writes:\n"
      "  python -m experiments.sample --run="
      f"{shlex.quote(str(result.directory))}"
    )
  console.print(told, soft_wrap=True)


def table(members: list[Member]) -> Table:
  """Return a row for each member."""
  result = Table(box=SIMPLE_HEAD, pad_edge=False)
  for name in ("learning rate", "seed", "best", "at update", "last"):
    result.add_column(name, justify="right", no_wrap=True)
  for one in members:
    update, nats = one.best
    result.add_row(
      f"{one.learning_rate:g}",
      f"{one.seed}",
      f"{nats:.4f}",
      f"{update}",
      f"{one.looks[-1][1]:.4f}",
    )
  return result


def summary(members: list[Member]) -> Table:
  """Return a row for each rate: mean and deviation of the seeds' best."""
  result = Table(box=SIMPLE_HEAD, pad_edge=False)
  for name in ("learning rate", "seeds", "mean of the best", "deviation"):
    result.add_column(name, justify="right", no_wrap=True)
  for rate in dict.fromkeys(one.learning_rate for one in members):
    best = [one.best[1] for one in members if one.learning_rate == rate]
    spread = f"{np.std(best, ddof=1):.4f}" if len(best) > 1 else ""
    mean = f"{np.mean(best):.4f}"
    result.add_row(f"{rate:g}", f"{len(best)}", mean, spread)
  return result


def main() -> int:
  """Read the flags and run."""
  config = SweepConfig(**{flag.name: flag.value for flag in FLAGS})
  console = plain_console()
  result = run(config, console)
  if result.stopped_by is None:
    return 0
  console.print(to_go_on("sweep", config, result.directory), soft_wrap=True)
  return SIGNALLED + result.stopped_by


if __name__ == "__main__":
  FLAGS = [
    *define_flags(),
    flags.DEFINE_integer(
      "num_seeds", 1, "Seeds at each rate, from --seed on.", 1
    ),
    flags.DEFINE_multi_float(
      "rate", [], "A learning rate; repeat it. --learning_rate if none."
    ),
  ]
  launch(main)
