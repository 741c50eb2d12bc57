"""`--part=gpu` of `experiments.benchmark`: its sections, and what it prints.

A section is a list of cases with a time limit. The checks come first. A
check that fails is printed and recorded, and does not end the run: a program is
timed if its own outputs are right.
"""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from rich.console import Console

from experiments.benchmarks.gpu import cases
from experiments.benchmarks.gpu.case import Result
from experiments.benchmarks.gpu.floor import find_device
from experiments.benchmarks.gpu.report import summary_tables
from experiments.benchmarks.gpu.supervisor import (
  Section,
  Supervisor,
  WorkerProcess,
)
from experiments.benchmarks.tables import Row, case_table
from experiments.trainer.format import counted, print_table
from lstm_jax.sequence.implementation import VERSIONS, VERSIONS_TEXT

Record = dict[str, Any]


def run(
  sizes: Row,
  rounds: int,
  console: Console,
  save: Callable[[Record], None] = lambda record: None,
) -> Record:
  """Check and time the kernels on this machine's GPU.

  Args:
    sizes: hidden_size, seq_len and batch_size of one layer, timed in place of
      the grid of layers; empty for the grid.
    rounds: measurements of each program.
    console: where to print.
    save: called with the record after every section.

  Returns:
    The record: environment, peaks (of the device: its name, bandwidth and
    operations), seconds of each section, rows and failures as in `Result`, and
    skipped, a list of {case, what, why}.

  Raises:
    ValueError: a size is not one of a layer's; there is no H100 or H200; or
      this version of JAX cannot run the kernels, or lacks its CUDA packages.
  """
  for name in sizes:
    if name not in cases.LAYER_SIZES:
      raise ValueError(f"--{name} needs --part=model, got gpu")
  supervisor = Supervisor(WorkerProcess, cases.SECONDS)
  try:
    environment = supervisor.environment()
    check_device(environment)
    sections = cases.sections(sizes, rounds)
    return run_sections(sections, supervisor, environment, console, save)
  finally:
    supervisor.close()


def check_device(environment: dict[str, Any]) -> None:
  """Raise ValueError unless a worker's environment can run the kernels."""
  needs = (
    f"--part=gpu needs an H100 or H200 and jax {VERSIONS_TEXT} with its CUDA "
    "packages"
  )
  if "why" in environment:
    raise ValueError(f"{needs}: {environment['why']}")
  platform = environment["platform"]
  capability = environment.get("compute_capability")
  version = environment["jax_version"]
  first, last = VERSIONS
  if platform == "gpu" and capability == "9.0" and first <= version < last:
    return
  device = environment["device"] if platform == "gpu" else f"a {platform}"
  raise ValueError(
    f"{needs}, got {device} and jax {'.'.join(map(str, version))}"
  )


def run_sections(
  sections: Sequence[Section],
  supervisor: Supervisor,
  environment: dict[str, Any],
  console: Console,
  save: Callable[[Record], None],
) -> Record:
  """Run the sections, and print what each case finds.

  Args:
    sections: run in this order.
    supervisor: runs their cases.
    environment: of a worker, as `Supervisor.environment` returns it.
    console: where to print.
    save: called with the record after every section.

  Returns:
    The record, as `run` returns it.
  """
  console.print(environment)
  device = find_device(str(environment.get("device")))
  console.print(f"floors are those of an {device.name}")
  record: Record = {
    "environment": environment,
    "peaks": device._asdict(),
    "seconds": {},
    "rows": [],
    "skipped": [],
    "failures": [],
  }
  printed: set[tuple[str, str]] = set()
  for section in sections:
    begin = supervisor.elapsed()
    for case, result in supervisor.run(section):
      record["rows"] += result.rows
      record["failures"] += result.failures
      record["skipped"] += [
        {"case": case.name, "what": what, "why": why}
        for what, why in result.skipped.items()
      ]
      print_result(result, printed, console)
    seconds = supervisor.elapsed() - begin
    record["seconds"][section.name] = seconds
    console.print(f"{section.name}: {seconds:.0f} s")
    save(record)
  for table in summary_tables(record["rows"]):
    print_table(table, console)
  count = counted(len(record["failures"]), "failure")
  for failure in record["failures"]:
    console.print(f"FAILED {failure}", soft_wrap=True, markup=False)
  passed = sum(row.get("failed") is False for row in record["rows"])
  console.print(
    f"{counted(passed, 'check')} passed; {count} of checks and programs"
  )
  return record


def print_result(
  result: Result, printed: set[tuple[str, str]], console: Console
) -> None:
  """Print what a case found; a reason to skip something only once.

  Args:
    result: what the case found.
    printed: the (what, why) of what earlier cases skipped; those of this case
      are added.
    console: where to print.
  """

  def line(text):
    console.print(text, soft_wrap=True, markup=False, highlight=False)

  for failure in result.failures:
    line(f"FAILED {failure}")
  for row in result.rows:
    if "failed" in row and not row["failed"]:
      detail = "the same each time"
      if "error" in row:
        detail = "{error:.1e} of {allowed:.0e}, {array}".format(**row)
      line(f"ok {row['case']}: {detail}")
  timed = [row for row in result.rows if "failed" not in row]
  for _, rows in groupby(timed, lambda row: row.get("backward")):
    print_table(case_table(list(rows)), console)
  for what, why in result.skipped.items():
    if (what, why) not in printed:
      line(f"skipped: {what}: {why}")
      printed.add((what, why))
