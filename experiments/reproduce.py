"""Reproduce a published result: train, evaluate and compare.

  python -m experiments.reproduce tinyshakespeare-small

trains the recipe of a row of the board (experiments/results/board.json) with
each of its seeds and evaluates every run by the protocols of that row. If the
row has a result of an ensemble of exactly these seeds, it evaluates that too.
It prints the losses beside the published ones. A named corpus is downloaded.
The teachers of a recipe are trained first, in the directories that the recipe
names. Each seed has a directory under --run, beside the result,
reproduction.json. The same command again skips what is finished, and resumes an
interrupted training. --dry_run prints each command that trains or evaluates.
"""

import shlex
import signal
import sys
from typing import Any, NamedTuple

from rich.console import Console

from experiments import evaluate, train
from experiments.cli import SIGNALLED, command_line, launch, make_console
from experiments.comparison.board import Row, read_board
from experiments.comparison.reproduction import (
  RECORD,
  UNIT,
  Job,
  ReproduceConfig,
  compare,
  compare_together,
  cost,
  ensemble_flags,
  make_table,
  parse,
  plan,
  plan_teachers,
  read_reproduced,
  write_reproduced,
)
from experiments.trainer import run_dir
from experiments.trainer.config import TrainConfig
from experiments.trainer.corpus import read_corpus_text, text_sha256
from experiments.trainer.distributed import share_batches
from experiments.trainer.environment import environment_of
from experiments.trainer.format import print_table, print_title
from experiments.trainer.records import config_from_flags, define_flags
from experiments.trainer.run_dir import (
  check_not_extended,
  check_same_run,
  recorded_flags,
)


class Reproduction(NamedTuple):
  """What was reproduced."""

  rows: list[dict[str, Any]]  # of the table, one for each protocol
  stopped_by: signal.Signals | None = None  # before the last run was evaluated


def run(row: Row, config: ReproduceConfig, console: Console) -> Reproduction:
  """Train, evaluate, print the table and write reproduction.json.

  Raises:
    ValueError: as `plan`, `plan_teachers` and `train.run`; or a directory holds
      another run; or --run is itself a run.
    Diverged: as in `train.run`.
  """
  jobs = plan(row, config)
  base = jobs[0].directory.parent
  run_dir.check_is_no_run(base, "seeds")
  path = base / RECORD
  teachers = plan_teachers(jobs[0].config)
  sha256 = text_sha256(read_corpus_text(jobs[0].config.data.corpus))
  # A directory of another run is refused before the first training.
  for job in (*teachers, *jobs):
    _check(job, sha256)
  missing = [job for job in teachers if not job.is_trained]
  # One call for all trainings: JAX starts its CPU devices only once.
  shared = share_batches([job.config for job in (*missing, *jobs)])
  for single in shared[: len(missing)]:
    print_title(f"teacher {single.job.run}", console)
    if stopped_by := _train(single, console):
      return Reproduction([], stopped_by)
  rows: list[dict[str, Any]] = []
  for job, single in zip(jobs, shared[len(missing) :], strict=True):
    print_title(f"{row.name}, seed {job.seed}", console)
    found = read_reproduced(path, row)
    if not job.is_trained:
      members = {s for r in row.results if r.is_ensemble for s in r.seeds}
      outdated = bool(found.seeds.pop(job.seed, None))  # of an earlier run
      if found.together and job.seed in members:
        outdated, found = True, found._replace(together={})
      if outdated:
        write_reproduced(path, row, found, rows)
      if stopped_by := _train(single, console):
        return Reproduction(rows, stopped_by)
    if job.seed not in found.seeds:
      _check(job, sha256)
      entry = _evaluate(job, console)
      found = read_reproduced(path, row)  # another process may have added some
      found.seeds[job.seed] = entry
    done = [j.seed for j in jobs if j.seed in found.seeds]
    rows = [
      compare(r, {s: found.seeds[s][UNIT][r.protocol] for s in done})
      for r in row.single_results
    ]
    write_reproduced(path, row, found, rows)
  if flags := ensemble_flags(row, jobs):
    if not found.together:
      print_title(f"{row.name}, {len(jobs)} seeds together", console)
      options = parse(evaluate.EvaluateConfig(), flags)
      losses = evaluate.run(options, console)[UNIT]
      found = read_reproduced(path, row)._replace(together=losses)
    rows += [
      compare_together(r, found.together[r.evaluated_by])
      for r in row.ensemble_results(job.seed for job in jobs)
    ]
    write_reproduced(path, row, found, rows)
  print_table(make_table(rows), console)
  minutes = [found.seeds[job.seed]["seconds"] / 60 for job in jobs]
  console.print(cost(row, minutes), soft_wrap=True)
  compared = {entry["protocol"] for entry in rows}
  for left in (r for r in row.results if r.protocol not in compared):
    seeds = ", ".join(map(str, left.seeds))
    message = f"not evaluated here: {left.protocol}, of seeds {seeds}"
    console.print(message, soft_wrap=True)
  console.print(f"saved in {shlex.quote(str(path))}", soft_wrap=True)
  return Reproduction(rows)


def _check(job: Job, sha256: str) -> None:
  """Raise ValueError if a directory holds another run than the recipe's."""
  advice, flags = "another directory keeps it", recorded_flags(job.config)
  if job.is_trained:
    check_same_run(job.directory, flags, sha256, advice=advice)
  else:
    check_not_extended(job.directory, flags, advice=advice)


def _train(config: TrainConfig, console: Console) -> signal.Signals | None:
  """Train; return the signal that came, if one did.

  One that is too late to stop the run stops this program.
  """
  result = train.run(config, console)
  return result.stopped_by or result.signalled


def _evaluate(job: Job, console: Console) -> dict[str, Any]:
  """Evaluate a finished run; return its losses and seconds of training."""
  config = parse(evaluate.EvaluateConfig(), job.evaluate_flags)
  record = evaluate.run(config, console)
  if record["training_seconds"] is None:
    raise ValueError(f"{job.directory / run_dir.RESULT} has no seconds")
  return {
    UNIT: record[UNIT],
    "step": record["step"],
    "seconds": record["training_seconds"],
    "environment": environment_of(run_dir.read_record(job.directory)),
  }


def commands(row: Row, config: ReproduceConfig) -> list[str]:
  """Return the commands to train and evaluate, in order."""
  jobs = plan(row, config)
  lines = [
    command_line("train", job.train_flags)
    for job in plan_teachers(jobs[0].config)
    if not job.is_trained
  ]
  for job in jobs:
    lines.append(command_line("train", job.train_flags))
    lines.append(command_line("evaluate", job.evaluate_flags))
  if flags := ensemble_flags(row, jobs):
    lines.append(command_line("evaluate", flags))
  return lines


def main(arguments: list[str]) -> int:
  """Read the flags; print the commands or run them."""
  # Our names have no spaces: for several arguments, or none, `find` raises.
  row = read_board().find(" ".join(arguments))
  config, console = config_from_flags(ReproduceConfig(), FLAGS), make_console()
  if config.dry_run:
    console.print("\n".join(commands(row, config)), soft_wrap=True)
    return 0
  stopped_by = run(row, config, console).stopped_by
  if not stopped_by:
    return 0
  command = command_line("reproduce", sys.argv[1:])
  console.print(f"to resume:\n  {command}", soft_wrap=True)
  return SIGNALLED + stopped_by


if __name__ == "__main__":
  FLAGS = define_flags(ReproduceConfig())
  launch(main, takes_arguments=True)
