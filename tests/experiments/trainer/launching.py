"""Launch the training program with many inputs, each in a forked process.

  python -m tests.experiments.trainer.launching DIRECTORY > results

The inputs, in the file inputs.json of the directory, and the results are lists
in JSON. An input is [flags, flagfile, corpus], the last two as hexadecimal
bytes; its result is [status, what was printed, whether there is a run
directory]. No run makes a training step. After an exception that the program
does not expect, the status is 1 and a traceback is printed.
"""

import json
import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path

from experiments import train
from experiments.cli import launch, make_console
from experiments.trainer.config import TrainConfig
from experiments.trainer.flags import config_from_flags, define_flags
from tests.forking import status_of


class Started(Exception):
  """Raised where the training loop would start."""


def program(argv, output):
  """Run the program up to its training loop, and write what it prints."""

  def fit(*arguments, **options):
    raise Started

  def start():
    config = config_from_flags(TrainConfig(), holders)
    with suppress(Started):
      train.run(config, make_console())

  sys.argv = argv
  sys.stdout = sys.stderr = output.open("w", encoding="utf-8")
  train.fit = fit
  holders = define_flags(TrainConfig())
  launch(start)


def exit_status(argv, output):
  """Run `program` in a forked process; return its exit status."""
  child = os.fork()
  if not child:
    status = status_of(lambda: program(argv, output))
    sys.stderr.flush()
    os._exit(status)
  return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main():
  directory, results = Path(sys.argv[1]), []
  names = "x.flags", "corpus", "output"
  flagfile, corpus, output = (directory / name for name in names)
  inputs = json.loads((directory / "inputs.json").read_text())
  for flags, lines, text in inputs:
    flagfile.write_bytes(bytes.fromhex(lines))
    corpus.write_bytes(bytes.fromhex(text))
    argv = ["train", f"--flagfile={flagfile}", *flags]
    argv += [f"--corpus={corpus}", f"--run={directory / 'run'}"]
    status = exit_status(argv, output)
    run = directory / "run"
    printed = output.read_text("utf-8", errors="replace")
    results.append([status, printed, run.exists()])
    shutil.rmtree(run, ignore_errors=True)
  json.dump(results, sys.stdout)


if __name__ == "__main__":
  main()
