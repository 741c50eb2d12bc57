"""Start programs as a shell does, each in a fork of a process.

What the programs import is imported once, in the process that is forked, which
is by default a fork itself (`tests.forking`).

  python -m tests.experiments.starting CASES > results

The file CASES and the results are lists in JSON. A case is [program, *flags].
Before the program there may be "pipe", for a pipe that nobody reads. A result
is [status, output, errors].
"""

import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.forking import status_of
from tests.processes import ROOT, environment, run_program

PROGRAMS = (
  "train",
  "sweep",
  "ablate",
  "compare_cells",
  "policy",
  "evaluate",
  "reproduce",
  "board",
  "sample",
  "export",
  "explore",
  "report",
  "gradcheck",
  "benchmark",
  "collectives",
)


def start_all(
  cases: Sequence[tuple], variables: Mapping[str, str] | None = None
) -> list[tuple[int, str, str]]:
  """Return (status, output, errors) of each (program, *flags).

  "pipe" may stand before a program, as the module says. With
  variables, which are added to the environment, the process that is forked is
  a new interpreter, which reads them at its imports.
  """
  with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
    json.dump(cases, file)
    file.flush()
    if variables is None:
      results = run_program(__name__, file.name)
    else:
      results = subprocess.run(
        [sys.executable, "-m", __name__, file.name],
        cwd=ROOT,
        env=environment() | variables,
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
        check=True,
      ).stdout
  return [tuple(result) for result in json.loads(results)]


def start(case: list[str], directory: Path) -> tuple[int, str, str]:
  """Run a case in a forked process; return (status, output, errors)."""
  piped = case[0] == "pipe"
  out, err = (directory / name for name in ("out", "err"))
  out.write_text("")
  child = os.fork()
  if not child:
    status = status_of(lambda: run(piped, case[piped:], out, err))
    try:
      sys.stdout.flush()  # as the interpreter does at its exit
    except OSError:
      status = 120  # the interpreter's status if the flush fails
    os._exit(status)
  status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
  return status, *(path.read_text(errors="replace") for path in (out, err))


def run(piped: bool, case: list[str], out: Path, err: Path) -> None:
  """Run a program in this process.

  Its standard output is the file `out`, or a pipe that nobody reads.
  """
  signal.alarm(60)
  os.dup2(os.open(err, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
  if piped:
    reader, writer = os.pipe()
    os.dup2(writer, 1)
    os.close(reader)
  else:
    os.dup2(os.open(out, os.O_WRONLY), 1)
  sys.stdout = os.fdopen(1, "w", closefd=False)
  program, *_ = sys.argv = case
  runpy.run_module(f"experiments.{program}", None, "__main__", True)


def main():
  cases = json.loads(Path(sys.argv[1]).read_text())
  # Imports what most programs need, and starts no device.
  runpy.run_module("experiments.train")
  with tempfile.TemporaryDirectory() as directory:
    results = [start(case, Path(directory)) for case in cases]
  json.dump(results, sys.stdout)


if __name__ == "__main__":
  main()
