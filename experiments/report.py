"""Look at training runs: a page of their losses, differences and samples.

  python -m experiments.report RUN [RUN ...]

writes one file that a browser opens from the disk, without a network: the
losses of all runs over updates, epochs or seconds, a table of what they came
to, the flags in which they differ, and what each wrote as it learnt. A run that
still goes on is shown as far as it is; of a sweep, each member is a run. The
page is report.html, in the run's folder if there is one and in the current one
if there are several, or what --output says.
"""

import statistics
from dataclasses import dataclass
from datetime import timedelta
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from rich.console import Console

from experiments.cli import launch, plain_console
from experiments.pages.packing import page
from experiments.trainer import run_dir
from experiments.trainer.claim import OWN
from experiments.trainer.history import (
  Derived,
  RunHistory,
  derive,
  read_run_histories,
)

TEMPLATE = Path(__file__).parent / "pages" / "report.html"
NONE = "–"  # where there is nothing to say


@dataclass(frozen=True)
class ReportConfig:
  """What a page is made of; the program's --help explains each."""

  runs: tuple[str, ...]
  output: str = ""


class Report(NamedTuple):
  """The page that was written."""

  path: Path
  size: int  # bytes


def run(config: ReportConfig, console: Console) -> Report:
  """Read the runs and write the page.

  Raises:
    ValueError: there are no runs, one twice, or a folder that holds none or a
      damaged one.
    OSError: the page cannot be written.
  """
  directories = [Path(name) for name in config.runs]
  if not directories:
    raise ValueError("expected the folders of runs: report RUN [RUN ...]")
  for directory in directories:
    if sum(directory.resolve() == other.resolve() for other in directories) > 1:
      raise ValueError(f"{directory} is given twice")
  courses = [
    one for directory in directories for one in read_run_histories(directory)
  ]
  beside = directories[0] if len(directories) == 1 else Path()
  path = Path(config.output) if config.output else beside / run_dir.REPORT
  run_dir.check_parent(path)
  written = page(TEMPLATE, describe(courses), []).encode()
  path.write_bytes(written)
  console.print(f"page    {path}: {len(written) / 1e3:,.0f} kB", soft_wrap=True)
  return Report(path, len(written))


def describe(courses: list[RunHistory]) -> dict[str, Any]:
  """Return what the page's header says of runs."""
  names = [_name(course, course.directory.resolve().name) for course in courses]
  if len(set(names)) < len(names):
    names = [_name(course, str(course.directory)) for course in courses]
  units = {course.unit for course in courses}
  facts = [derive(course) for course in courses]
  summaries = list(map(_summary, courses, facts))
  heads = [h for h in summaries[0] if any(s[h] != NONE for s in summaries)]
  return {
    "unit": units.pop() if len(units) == 1 else "token",
    "runs": [
      {"name": name} | _curves(course, derived)
      for name, course, derived in zip(names, courses, facts, strict=True)
    ],
    "table": {
      "head": ["run", *heads],
      "rows": [
        [name, *(summary[head] for head in heads)]
        for name, summary in zip(names, summaries, strict=True)
      ],
    },
    "differences": {
      "head": ["flag", *names],
      "rows": differences([course.record for course in courses]),
    },
  }


def _name(course: RunHistory, directory: str) -> str:
  return f"{directory}, {course.member}" if course.member else directory


def differences(records: list[dict[str, Any]]) -> list[list[str]]:
  """Return a row for each thing that config.json does not say in all alike."""
  unsaid = *OWN, "started", "versions"
  flat = []
  for record in records:
    versions = record.get("versions")
    versions = versions if isinstance(versions, dict) else {}
    told = {n: v for n, v in record.items() if n not in unsaid}
    flat.append(told | {f"version of {n}": v for n, v in versions.items()})
  names = dict.fromkeys(name for each in flat for name in each)
  rows = [[name, *(_told(each, name) for each in flat)] for name in names]
  return [row for row in rows if len(set(row[1:])) > 1]


def _told(record: dict[str, Any], name: str) -> str:
  return str(record[name]) if name in record else NONE


def _curves(course: RunHistory, derived: Derived | None) -> dict[str, Any]:
  """Return what the page draws and shows of a run."""
  rows = course.rows
  # A look has the seconds of the row of updates before it.
  seconds = list(accumulate((row.get("seconds", 0) for row in rows), max))
  epochs = None  # of an update
  if derived:
    epochs = course.config.num_epochs / derived.num_steps
  elif course.finished and rows:
    epochs = course.config.num_epochs / max(row["step"] for row in rows)

  def curve(name):
    found = [(r, s) for r, s in zip(rows, seconds, strict=True) if name in r]
    return {
      "step": [row["step"] for row, _ in found],
      "loss": [row[name] for row, _ in found],
      "seconds": [s for _, s in found],
    }

  return {
    "epochs": epochs,
    "watched": course.watched.replace("_", "-"),
    "training": curve("loss"),
    "looks": curve(course.watched),
    "samples": [sample._asdict() for sample in course.samples],
  }


def _summary(course: RunHistory, derived: Derived | None) -> dict[str, str]:
  """Return what the table says of a run, by column."""
  rows, watched = course.rows, course.watched
  looks = [row for row in rows if watched in row]
  best = min(looks, key=lambda row: row[watched], default=None)
  chosen = [row["held_out"] for row in rows if "held_out" in row]
  speed = f"{course.unit}s_per_second"
  rates = [row[speed] for row in rows if speed in row]
  pace = f"{statistics.median(rates):,.0f} {course.unit}s/s" if rates else NONE
  seconds = max((row.get("seconds", 0) for row in rows), default=0)
  time = str(timedelta(seconds=round(seconds)))
  total = f" of {derived.num_steps:,}" if derived else ""
  made = max((row["step"] for row in rows), default=0)
  held_out = watched == "development" and chosen
  return {
    "watched": watched.replace("_", "-"),
    "best loss": f"{best[watched]:.4f}" if best else NONE,
    "at update": f"{best['step']:,}" if best else NONE,
    "held-out loss of the best": f"{chosen[-1]:.4f}" if held_out else NONE,
    "parameters": f"{derived.parameters:,}" if derived else NONE,
    "updates": f"{made:,}{total}",
    "training time": NONE if course.member else time,
    "median speed": pace,
    "finished": "yes" if course.finished else "no",
  }


def _flags() -> list[flags.FlagHolder]:
  return [
    flags.DEFINE_string(
      "output",
      "",
      "The page's file; empty for report.html, in the run's folder if there is "
      "one run, and in the current one if there are several.",
    ),
  ]


def main(runs: list[str]) -> None:
  """Read the flags and write the page."""
  options = {flag.name: flag.value for flag in FLAGS}
  run(ReportConfig(tuple(runs), **options), plain_console())


if __name__ == "__main__":
  FLAGS = _flags()
  launch(main, takes_arguments=True)
