"""What is to be done to reproduce a row of the board: its jobs, one by one."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from experiments.analysis.protocols import PROTOCOLS
from experiments.comparison.board import ENSEMBLE, Result, Row, read_board
from experiments.trainer import run_dir
from experiments.trainer.config import TrainConfig
from experiments.trainer.corpus_path import REPOSITORY
from experiments.trainer.flags import config_from_flags, define_flags
from lstm_jax.language.options import check_options, option

RECIPES = "experiments/recipes"


@dataclass(frozen=True)
class ReproduceConfig:
  """Which seeds are trained, and where; each field is a flag."""

  run: str = option(
    "", "Directory of the runs; empty for runs/reproduce/ and the name."
  )
  seeds: tuple[int, ...] = option(
    (),
    "Seed; may be repeated. If not given, those of the published result.",
    bounds="[0, inf)",
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
  """Return the jobs of a row of the board, one for each seed."""
  base = Path(config.run or f"runs/reproduce/{row.name}")
  published = sorted({seed for result in row.results for seed in result.seeds})
  protocols = [f"--protocol={result.protocol}" for result in evaluated(row)]
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
  """Return the jobs of a recipe's teachers, finished or not.

  Raises:
    ValueError: one of them is no seed of a row of the board.
  """
  jobs: list[Job] = []
  for name in config.distillation.teacher:
    directory = Path(name)
    seed = directory.name.removeprefix("seed")
    if not seed.isdecimal():
      raise ValueError(
        f"its teacher {name} must end in seed and a number, to be one of the "
        "board's"
      )
    row = read_board().find(directory.parent.name)
    own = ReproduceConfig(run=str(directory.parent), seeds=(int(seed),))
    jobs += plan(row, own)
  return jobs


def is_trained(job: Job) -> bool:
  """Return whether the run of a job has finished."""
  return (job.directory / run_dir.RESULT).exists()


def evaluated(row: Row) -> list[Result]:
  """Return the results of a row whose protocol one run can be evaluated by."""
  return [r for r in row.results if r.protocol in PROTOCOLS]


def evaluated_together(row: Row, jobs: Sequence[Job]) -> list[Result]:
  """Return the results of a row that are those of all these jobs' seeds."""
  seeds = {job.seed for job in jobs}
  together = (r for r in row.results if r.protocol.startswith(ENSEMBLE))
  return [r for r in together if {*r.seeds} == seeds]


def plan_together(row: Row, jobs: Sequence[Job]) -> list[str]:
  """Return the flags that evaluate the seeds together; [] for nothing to do."""
  results = evaluated_together(row, jobs)
  if not results:
    return []
  names = [r.protocol.removeprefix(ENSEMBLE) for r in results]
  runs = [f"--run={job.directory}" for job in jobs]
  return [*runs, *(f"--protocol={name}" for name in names), *row.evaluate]


def parse(default: Any, arguments: list[str]) -> Any:
  """Return the configuration of command-line flags."""
  values = flags.FlagValues()
  holders = define_flags(default, values)
  prefix = f"--flagfile={RECIPES}"  # from the repository, wherever this runs
  absolute = f"--flagfile={REPOSITORY / RECIPES}"
  values(["", *(a.replace(prefix, absolute, 1) for a in arguments)])
  return config_from_flags(default, holders)
