"""The jobs that reproduce a row of the board: one for each seed."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from experiments.comparison.board import Result, Row, read_board
from experiments.trainer import run_dir
from experiments.trainer.config import LARGEST, TrainConfig
from experiments.trainer.corpus import REPOSITORY
from experiments.trainer.flags import config_from_flags, define_flags
from lstm_jax.language.options import check_options, option
from lstm_jax.training.durable import check_path

RECIPES = "experiments/recipes"


@dataclass(frozen=True)
class ReproduceConfig:
  """Which seeds are trained, and where; each field is a flag."""

  run: str = option("", "Directory of the runs; empty for runs/reproduce/ROW.")
  seeds: tuple[int, ...] = option(
    (),
    "Seed; may be repeated. If not given, those of the published result.",
    bounds=f"[0, {LARGEST}]",
  )
  dry_run: bool = option(False, "Print the commands, and exit.")

  def __post_init__(self):
    check_options(self)


class Job(NamedTuple):
  """The training and the evaluation of one seed."""

  seed: int
  train_flags: list[str]
  evaluate_flags: list[str]
  directory: Path


def plan(row: Row, config: ReproduceConfig) -> list[Job]:
  """Return the jobs of a row of the board, one for each seed.

  Raises:
    ValueError: no seeds are given, and the row has published none; or
      checkpoints cannot be written to the path of the runs (`check_path`).
  """
  base = Path(config.run or f"runs/reproduce/{row.name}")
  check_path(base)
  published = sorted({seed for result in row.results for seed in result.seeds})
  if not config.seeds and not published:
    raise ValueError(f"no seeds of {row.name} were published: give --seeds")
  protocols = [f"--protocol={r.protocol}" for r in single_run_results(row)]
  jobs = []
  for seed in dict.fromkeys(config.seeds or published):
    directory = base / f"seed{seed}"
    run = f"--run={directory}"
    recipe = f"--flagfile={RECIPES}/{row.recipe}.flags"
    jobs.append(
      Job(
        seed,
        [recipe, *row.flags, f"--seed={seed}", run],
        [run, *protocols, *row.evaluate],
        directory,
      )
    )
  return jobs


def plan_teachers(config: TrainConfig) -> list[Job]:
  """Return the jobs of the teachers that a recipe distils, finished or not.

  Raises:
    ValueError: a teacher is not a directory seedN under the name of a row, or
      N is not a seed; or as `plan`, for the path.
  """
  jobs: list[Job] = []
  for name in config.distillation.teacher:
    directory = Path(name)
    seed = re.fullmatch("seed(0|[1-9][0-9]*)", directory.name)
    if not seed:
      raise ValueError(
        f"teacher {name} must be a directory seedN under the name of a row of "
        "the board, such as runs/reproduce/tinyshakespeare/seed0"
      )
    try:
      row = read_board().find(directory.parent.name)
      own = ReproduceConfig(run=str(directory.parent), seeds=(int(seed[1]),))
    except ValueError as error:
      raise ValueError(f"teacher {name}: {error}") from None
    jobs += plan(row, own)
  return jobs


def is_trained(directory: Path) -> bool:
  """Return whether a directory holds a finished run."""
  return (directory / run_dir.RESULT).exists()


def single_run_results(row: Row) -> list[Result]:
  """Return the results of a row that are of single runs, not of an ensemble."""
  return [r for r in row.results if not r.is_ensemble]


def ensemble_results(row: Row, jobs: Sequence[Job]) -> list[Result]:
  """Return the ensemble results whose seeds are exactly those of the jobs."""
  seeds = {job.seed for job in jobs}
  return [r for r in row.results if r.is_ensemble and {*r.seeds} == seeds]


def ensemble_seeds(row: Row) -> set[int]:
  """Return the seeds of all ensemble results of a row."""
  return {seed for r in row.results if r.is_ensemble for seed in r.seeds}


def ensemble_flags(row: Row, jobs: Sequence[Job]) -> list[str]:
  """Return experiments.evaluate's flags for the jobs' runs together.

  They are [] if the row has no ensemble result of exactly the jobs' seeds.
  """
  results = ensemble_results(row, jobs)
  if not results:
    return []
  # experiments.evaluate takes the protocol's name without "ensemble_".
  protocols = [f"--protocol={result.evaluated_by}" for result in results]
  return [
    *(f"--run={job.directory}" for job in jobs),
    *protocols,
    *row.evaluate,
  ]


def with_absolute_recipe(arguments: Sequence[str]) -> list[str]:
  """Return flags in which the path of the recipe is absolute."""
  prefix = f"--flagfile={RECIPES}/"
  absolute = f"--flagfile={REPOSITORY / RECIPES}/"
  return [a.replace(prefix, absolute, 1) for a in arguments]


def parse(default: Any, arguments: list[str]) -> Any:
  """Return the configuration of command-line flags.

  Args:
    default: the configuration if no flag is given.
    arguments: the flags. A recipe's path is relative to the repository,
      whatever the current directory is.

  Raises:
    absl.flags.Error: a flag is unknown, or its value is not of its kind or is
      outside of absl's bounds; an argument is not a flag; or there is no such
      recipe.
    ValueError: a value within absl's bounds is out of its range.
  """
  values = flags.FlagValues()
  holders = define_flags(default, values)
  program = ""  # argv[0], which is not read
  _, *others = values([program, *with_absolute_recipe(arguments)])
  if others:
    raise flags.Error(f"unknown argument {others[0]!r}: flags begin with --")
  return config_from_flags(default, holders)
