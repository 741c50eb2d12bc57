"""Compare training runs: a page of their losses, differences and samples.

  python -m experiments.report RUN [RUN ...]

writes one file that a browser opens from the disk, without a network: the
losses of all runs over training steps, epochs or seconds, a table of results,
the flags in which the runs differ, and the samples of each. A run that is still
training is shown as far as it has got. Each member of a sweep is shown as a run
of its own. The page is the file that --out names, or else report.html: in
the run directory if one is given, in the current directory if several are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from experiments.cli import launch, make_console
from experiments.pages.packing import Page, check_out, write_page
from experiments.pages.report import make_page
from experiments.trainer import run_dir
from experiments.trainer.history import read_run_histories
from experiments.trainer.records import config_from_flags, define_flags
from lstm_jax.language.options import option


@dataclass(frozen=True)
class ReportConfig:
  """Where the page is written."""

  out: str = option(
    "",
    "File of the page, to write or to replace; in a run directory, no other "
    "than its report.html. Empty for report.html, in the run directory if one "
    "is given, in the current directory if several are.",
  )


def run(runs: Sequence[str], config: ReportConfig, console: Console) -> Page:
  """Read the runs in these directories and write the page.

  Raises:
    ValueError: no run is given, or one is '' or is given twice; a directory
      holds no run or a damaged one; or the page would replace a run's corpus or
      another file of a run directory.
    OSError: a file of a run cannot be read, or the page cannot be written.
  """
  directories = [Path(name) for name in runs]
  if not directories:
    raise ValueError("expected run directories: report RUN [RUN ...]")
  if "" in runs:  # as a path, it would be the current directory
    raise ValueError("RUN must be a run directory, got ''")
  resolved = [directory.resolve() for directory in directories]
  for directory, real in zip(directories, resolved, strict=True):
    if resolved.count(real) > 1:
      raise ValueError(f"{directory} is given twice")
  histories = [run for each in directories for run in read_run_histories(each)]
  default = directories[0] if len(directories) == 1 else Path()
  path = Path(config.out or default / run_dir.REPORT)
  hashes = {str(run.record.get(run_dir.SHA256)) for run in histories}
  check_out(path, hashes, run_dir.REPORT)
  return write_page(path, make_page(histories), console)


def main(runs: list[str]) -> None:
  """Read the flags and write the page."""
  run(runs, config_from_flags(ReportConfig(), FLAGS), make_console())


if __name__ == "__main__":
  FLAGS = define_flags(ReportConfig())
  launch(main, takes_arguments=True)
