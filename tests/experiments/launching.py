"""Launch the training program with many inputs, each in a forked process.

  python -m tests.experiments.launching FOLDER < inputs > results

An input is [flags, flagfile, corpus], the last two as hexadecimal bytes; its
result is [status, what was printed]. Both are lists in JSON.
"""

import json
import os
import sys
from pathlib import Path

from experiments.config import TrainConfig
from experiments.parts import make
from experiments.program import launch
from experiments.train_flags import define_flags


def status_of(argv, told):
  """Run in a process of its own; return its exit status."""
  child = os.fork()
  if not child:
    status = 99
    try:
      sys.argv = argv
      sys.stdout = sys.stderr = told.open("w", encoding="utf-8")
      names = define_flags()
      launch(lambda: make(TrainConfig(**{f.name: f.value for f in names})))
    except SystemExit as end:
      status = end.code if isinstance(end.code, int) else 98
    finally:
      sys.stderr.flush()
      os._exit(status)
  return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main():
  folder, results = Path(sys.argv[1]), []
  flagfile, corpus, told = (folder / n for n in ("x.flags", "corpus", "told"))
  for flags, lines, text in json.load(sys.stdin):
    flagfile.write_bytes(bytes.fromhex(lines))
    corpus.write_bytes(bytes.fromhex(text))
    argv = ["train", f"--flagfile={flagfile}", *flags]
    argv += [f"--corpus={corpus}", f"--run={folder / 'run'}"]
    status = status_of(argv, told)
    results.append([status, told.read_text("utf-8", errors="replace")])
  json.dump(results, sys.stdout)


if __name__ == "__main__":
  main()
