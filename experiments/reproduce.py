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
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from experiments import evaluate, train
from experiments.cli import SIGNALLED, command_line, launch, make_console
from experiments.comparison.board import Row, read_board
from experiments.comparison.plan import (
  Job,
  ReproduceConfig,
  ensemble_flags,
  ensemble_results,
  ensemble_seeds,
  is_trained,
  parse,
  plan,
  plan_teachers,
  single_run_results,
  with_absolute_recipe,
)
from experiments.comparison.published import (
  UNIT,
  compare,
  compare_together,
  cost,
  make_table,
)
from experiments.comparison.reproduction import (
  RECORD,
  read_done,
  read_together,
  write_reproduction,
)
from experiments.trainer import run_dir
from experiments.trainer.config import TrainConfig
from experiments.trainer.corpus import REPOSITORY, read_corpus_text, text_sha256
from experiments.trainer.distributed import share_batches
from experiments.trainer.environment import environment_of
from experiments.trainer.flags import config_from_flags, define_flags
from experiments.trainer.format import print_table, print_title
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
      another run, or one whose result.json lacks the seconds of training; or
      --run is itself a run, or its reproduction.json is a link, a pipe or a
      device.
    Diverged: as in `train.run`.
  """
  jobs = plan(row, config)
  base = jobs[0].directory.parent
  run_dir.check_is_no_run(base, "seeds")
  path = base / RECORD
  configs = [parse(TrainConfig(), job.train_flags) for job in jobs]
  sha256 = text_sha256(read_corpus_text(configs[0].data.corpus))
  teachers = _untrained_teachers(configs[0], sha256)
  # One call for all trainings: JAX starts its CPU devices only once.
  shared = share_batches([*teachers, *configs])
  configs = shared[len(teachers) :]
  if stopped_by := _train_teachers(shared[: len(teachers)], sha256, console):
    return Reproduction([], stopped_by)
  # {seed: what `_evaluate` returns}; {protocol: loss} of the ensemble, or {}.
  done, together = read_done(path, row), read_together(path, row, jobs)
  rows: list[dict[str, Any]] = []
  for job, single in zip(jobs, configs, strict=True):
    print_title(f"{row.name}, seed {job.seed}", console)
    advice = "another --run keeps it"
    if not is_trained(job.directory):
      check_not_extended(job.directory, recorded_flags(single), advice=advice)
      outdated = bool(done.pop(job.seed, None))  # losses of an earlier run
      if together and job.seed in ensemble_seeds(row):
        outdated, together = True, {}
      if outdated:
        write_reproduction(path, row, done, together, rows)
      result = train.run(single, console)
      # A signal too late to stop the run (`signalled`) stops this program.
      if stopped_by := result.stopped_by or result.signalled:
        return Reproduction(rows, stopped_by)
    recorded = recorded_flags(single)
    check_same_run(job.directory, recorded, sha256, advice=advice)
    if job.seed not in done:
      done[job.seed] = _evaluate(job, console)
    # Another process may have evaluated other seeds meanwhile.
    done = read_done(path, row) | done
    together = read_together(path, row, jobs)
    chosen = {j.seed: done[j.seed] for j in jobs if j.seed in done}
    rows = [compare(result, chosen) for result in single_run_results(row)]
    write_reproduction(path, row, done, together, rows)
  if flags := ensemble_flags(row, jobs):
    if not together:
      print_title(f"{row.name}, {len(jobs)} seeds together", console)
      options = parse(evaluate.EvaluateConfig(), flags)
      together = evaluate.run(options, console)[UNIT]
      done = read_done(path, row) | done
    results = ensemble_results(row, jobs)
    rows += [compare_together(result, together) for result in results]
    write_reproduction(path, row, done, together, rows)
  minutes = [done[job.seed]["seconds"] / 60 for job in jobs]
  _report(row, rows, minutes, console)
  console.print(f"saved in {shlex.quote(str(path))}", soft_wrap=True)
  return Reproduction(rows)


def _untrained_teachers(config: TrainConfig, sha256: str) -> list[TrainConfig]:
  """Return the configurations of a recipe's teachers that are not trained yet.

  Raises:
    ValueError: as `plan_teachers` and `_is_trained_teacher`.
  """
  configs = []
  for job in plan_teachers(config):
    single = parse(TrainConfig(), job.train_flags)
    if not _is_trained_teacher(single, sha256) and single not in configs:
      configs.append(single)
  return configs


def _is_trained_teacher(config: TrainConfig, sha256: str) -> bool:
  """Return whether a teacher's directory holds its finished run.

  Raises:
    ValueError: the directory holds another finished run, or an unfinished one
      that the recipe would extend.
  """
  directory = Path(config.job.run)
  advice = "move it, and the teacher is trained there"
  if not is_trained(directory):
    check_not_extended(directory, recorded_flags(config), advice=advice)
    return False
  check_same_run(directory, recorded_flags(config), sha256, advice=advice)
  return True


def _train_teachers(
  configs: Sequence[TrainConfig], sha256: str, console: Console
) -> signal.Signals | None:
  """Train teachers; return the signal that stopped the training, or None."""
  for config in configs:
    if _is_trained_teacher(config, sha256):  # by another process, meanwhile
      continue
    print_title(f"teacher {config.job.run}", console)
    result = train.run(config, console)
    if stopped_by := result.stopped_by or result.signalled:
      return stopped_by
  return None


def _evaluate(job: Job, console: Console) -> dict[str, Any]:
  """Evaluate a finished run; return its losses and seconds of training."""
  config = parse(evaluate.EvaluateConfig(), job.evaluate_flags)
  record = evaluate.run(config, console)
  seconds = record["training_seconds"]
  if seconds is None:
    path = job.directory / run_dir.RESULT
    raise ValueError(f"{path} is damaged: it has no seconds of training")
  entry = {UNIT: record[UNIT], "step": record["step"], "seconds": seconds}
  trained = environment_of(run_dir.read_record(job.directory))
  return entry | {"environment": trained}


def _report(
  row: Row,
  rows: list[dict[str, Any]],
  minutes: Sequence[float],
  console: Console,
) -> None:
  """Print the table, each seed's minutes of training, and what is left out."""
  print_table(make_table(rows), console)
  console.print(cost(row, minutes), soft_wrap=True)
  compared = {entry["protocol"] for entry in rows}
  for left in (r for r in row.results if r.protocol not in compared):
    seeds = ", ".join(map(str, left.seeds))
    message = f"not evaluated here: {left.protocol}, of seeds {seeds}"
    console.print(message, soft_wrap=True)


def commands(job: Job) -> list[str]:
  """Return the commands to train and evaluate, for the current directory."""
  here = Path.cwd() == REPOSITORY
  train_flags = (
    job.train_flags if here else with_absolute_recipe(job.train_flags)
  )
  return [
    command_line("train", train_flags),
    command_line("evaluate", job.evaluate_flags),
  ]


def main(arguments: list[str]) -> int:
  """Read the flags; print the commands or run them."""
  # Our names have no spaces: for several arguments, or none, `find` raises.
  row = read_board().find(" ".join(arguments))
  config, console = config_from_flags(ReproduceConfig(), FLAGS), make_console()
  if config.dry_run:
    jobs = plan(row, config)
    teachers = plan_teachers(parse(TrainConfig(), jobs[0].train_flags))
    # Teachers are not evaluated.
    untrained = [job for job in teachers if not is_trained(job.directory)]
    lines = [commands(job)[0] for job in untrained]
    lines += [line for job in jobs for line in commands(job)]
    if flags := ensemble_flags(row, jobs):
      lines.append(command_line("evaluate", flags))
    console.print("\n".join(lines), soft_wrap=True)
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
