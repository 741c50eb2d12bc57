"""Launch the training program with many inputs, each in a forked process.

  python -m tests.experiments.trainer.launching FOLDER < inputs > results

An input is [flags, flagfile, corpus], the last two as hexadecimal bytes; its
result is [status, what was printed, whether there is a folder of the run]. Both
are lists in JSON. A run that begins makes no updates.
"""

import json
import os
import shutil
import sys
from pathlib import Path

from experiments import train
from experiments.cli import launch, plain_console
from experiments.trainer.config import TrainConfig
from experiments.trainer.flags import define_flags


def begin(config):
  train._learn = lambda *parts: None
  train.run(config, plain_console())


def status_of(argv, told):
  """Run in a process of its own; return its exit status."""
  child = os.fork()
  if not child:
    status = 99
    try:
      sys.argv = argv
      sys.stdout = sys.stderr = told.open("w", encoding="utf-8")
      names = define_flags()
      launch(lambda: begin(TrainConfig(**{f.name: f.value for f in names})))
    except SystemExit as end:
      code = end.code or 0  # as the interpreter takes it
      status = code if isinstance(code, int) else 98
    finally:
      sys.stderr.flush()
      os._exit(status)
  return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main():
  directory, results = Path(sys.argv[1]), []
  flagfile, corpus, told = (
    directory / n for n in ("x.flags", "corpus", "told")
  )
  for flags, lines, text in json.load(sys.stdin):
    flagfile.write_bytes(bytes.fromhex(lines))
    corpus.write_bytes(bytes.fromhex(text))
    argv = ["train", f"--flagfile={flagfile}", *flags]
    argv += [f"--corpus={corpus}", f"--run={directory / 'run'}"]
    status = status_of(argv, told)
    run = directory / "run"
    text = told.read_text("utf-8", errors="replace")
    results.append([status, text, run.exists()])
    shutil.rmtree(run, ignore_errors=True)
  json.dump(results, sys.stdout)


if __name__ == "__main__":
  main()
