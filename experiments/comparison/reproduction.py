"""The reproduction of a row of the board: its jobs, its losses and its record.

`reproduction.json`, beside the directories of the seeds, has what each run was
evaluated as, and the losses beside the published ones.
"""

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from rich.table import Table

from experiments.comparison.board import (
  Result,
  Row,
  format_minutes,
  read_board,
)
from experiments.trainer import run_dir
from experiments.trainer.config import LARGEST, TrainConfig
from experiments.trainer.corpus import REPOSITORY
from experiments.trainer.files import are_numbers, read_json, write_json
from experiments.trainer.format import number_table
from experiments.trainer.records import config_from_flags, define_flags
from lstm_jax.language.options import check_options, option
from lstm_jax.training.durable import check_path

RECORD = "reproduction.json"
RECIPES = REPOSITORY / "experiments" / "recipes"
UNIT = "nats_per_character"  # entry of evaluation.json, {protocol: loss}


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

  @property
  def config(self) -> TrainConfig:
    """The configuration of its training."""
    return parse(TrainConfig(), self.train_flags)

  @property
  def is_trained(self) -> bool:
    """Whether the directory holds a finished run."""
    return (self.directory / run_dir.RESULT).exists()


def parse(default: Any, arguments: Sequence[str]) -> Any:
  """Return the configuration of command-line flags.

  Args:
    default: the configuration if no flag is given.
    arguments: the flags.

  Raises:
    absl.flags.Error: a flag is unknown, or its value is not of its kind or is
      outside of absl's bounds; an argument is not a flag; or there is no such
      recipe.
    ValueError: a value within absl's bounds is out of its range.
  """
  values = flags.FlagValues()
  holders = define_flags(default, values)
  program = ""  # argv[0], which is not read
  _, *others = values([program, *arguments])
  if others:
    raise flags.Error(f"unknown argument {others[0]!r}: flags begin with --")
  return config_from_flags(default, holders)


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
  recipe = f"--flagfile={RECIPES / row.recipe}.flags"
  protocols = [f"--protocol={r.protocol}" for r in row.single_results]
  jobs = []
  for seed in dict.fromkeys(config.seeds or published):
    directory = base / f"seed{seed}"
    run = f"--run={directory}"
    train_flags = [recipe, *row.flags, f"--seed={seed}", run]
    evaluate_flags = [run, *protocols, *row.evaluate]
    jobs.append(Job(seed, train_flags, evaluate_flags, directory))
  return jobs


def plan_teachers(config: TrainConfig) -> list[Job]:
  """Return the jobs of the teachers that a recipe distils, finished or not.

  Raises:
    ValueError: a teacher is not a directory seedN under the name of a row.
  """
  jobs: list[Job] = []
  for name in dict.fromkeys(config.distillation.teacher):
    directory = Path(name)
    seed = re.fullmatch("seed(0|[1-9][0-9]*)", directory.name)
    if not seed:
      raise ValueError(
        f"teacher {name} must be a directory seedN under the name of a row of "
        "the board, such as runs/reproduce/tinyshakespeare/seed0"
      )
    row = read_board().find(directory.parent.name)
    jobs += plan(row, ReproduceConfig(str(directory.parent), (int(seed[1]),)))
  return jobs


def ensemble_flags(row: Row, jobs: Sequence[Job]) -> list[str]:
  """Return experiments.evaluate's flags for the jobs' runs together.

  They are [] if the row has no ensemble result of exactly the jobs' seeds.
  """
  results = row.ensemble_results(job.seed for job in jobs)
  if not results:
    return []
  runs = [f"--run={job.directory}" for job in jobs]
  # experiments.evaluate takes the protocol's name without "ensemble_".
  protocols = [f"--protocol={result.evaluated_by}" for result in results]
  return [*runs, *protocols, *row.evaluate]


class Reproduced(NamedTuple):
  """What the runs beside reproduction.json were evaluated as."""

  # Of each seed: {UNIT: {protocol: loss}, "step", "seconds", "environment"}.
  seeds: dict[int, dict[str, Any]]
  together: dict[str, float]  # losses of the seeds' ensemble, by protocol


def read_reproduced(path: Path, row: Row) -> Reproduced:
  """Return what reproduction.json holds; nothing if it is not of this row.

  What is missing, as from a damaged file, is evaluated again.
  """
  try:
    record = read_json(path)
    if _head(row).items() <= record.items():
      protocols = {result.protocol for result in row.single_results}
      seeds = {
        int(seed): entry
        for seed, entry in record["seeds"].items()
        if protocols <= entry[UNIT].keys() and are_numbers([entry["seconds"]])
      }
      together = dict(record["together"])
      wanted = {r.evaluated_by for r in row.results if r.is_ensemble}
      return Reproduced(seeds, together if wanted <= together.keys() else {})
  except (OSError, ValueError, KeyError, TypeError, AttributeError):
    pass
  return Reproduced({}, {})


def write_reproduced(
  path: Path, row: Row, found: Reproduced, rows: Sequence[dict[str, Any]]
) -> None:
  """Write reproduction.json, whole or not at all.

  Args:
    path: reproduction.json.
    row: the row of the board.
    found: what the runs were evaluated as.
    rows: of the printed table.
  """
  seeds = {str(seed): found.seeds[seed] for seed in sorted(found.seeds)}
  record = {"seeds": seeds, "together": found.together, "results": [*rows]}
  write_json(path, _head(row) | record)


def _head(row: Row) -> dict[str, Any]:
  """Return the entries that identify a reproduction of this row."""
  return {
    "name": row.name,
    "flags": [*row.flags],
    "evaluate": [*row.evaluate],
    "protocols": [result.protocol for result in row.single_results],
  }


def compare(published: Result, losses: Mapping[int, float]) -> dict[str, Any]:
  """Return the losses by one protocol beside the published ones.

  The published mean is that of the same seeds, if each of them was published,
  and otherwise that of all published seeds.

  Args:
    published: the result of the board.
    losses: {seed: loss}, in nats per character.
  """
  recorded = {"mean": published.mean, "std": published.std}
  if published.values:
    known = dict(zip(published.seeds, published.values, strict=True))
    if losses.keys() < known.keys():
      recorded = _summary([known[seed] for seed in losses])
  ours = _summary([*losses.values()])
  return {
    "protocol": published.protocol,
    "published": recorded,
    **ours,
    "seeds": [*losses],
    "values": [*losses.values()],
    "difference": ours["mean"] - recorded["mean"],
  }


def compare_together(published: Result, loss: float) -> dict[str, Any]:
  """Return the loss of an ensemble of all seeds beside the published one."""
  seeds = {"seeds": [*published.seeds]}
  return compare(published, {published.seeds[0]: loss}) | seeds


def make_table(rows: Sequence[dict[str, Any]]) -> Table:
  """Return a table of the results of `compare`, in nats per character."""

  def shown(mean: float, std: float | None) -> str:
    return f"{mean:.4f}" + (f" ± {std:.4f}" if std is not None else "")

  table = number_table("protocol", "published", "here", "− published")
  for row in rows:
    table.add_row(
      row["protocol"],
      shown(**row["published"]),
      shown(row["mean"], row["std"]),
      f"{row['difference']:+.4f}",
    )
  return table


def cost(row: Row, minutes: Sequence[float]) -> str:
  """Return a line with each seed's minutes of training, and the published ones.

  Published minutes that the seeds share, as for teachers, are named separately.
  """
  text = f"minutes of training: {', '.join(f'{m:.1f}' for m in minutes)}"
  if row.training:
    shared = row.training.shared
    own = format_minutes([m - shared for m in row.training.minutes])
    common = f" and, for all seeds together, {shared:g}" if shared else ""
    text += f"; published {own}{common}, {row.training.machine}"
  return text


def _summary(values: Sequence[float]) -> dict[str, Any]:
  std = statistics.stdev(values) if len(values) > 1 else None
  return {"mean": statistics.mean(values), "std": std}
