r"""Ablate a recipe: train it once more for each change, and compare.

  python -m experiments.ablate --flagfile=experiments/recipes/ablations.flags \
    --change=weight_drop=0 --change=num_layers=2,layer_dropout=0.3

trains the recipe, and then once more with each change. Seed and budget are the
recipe's unless the change names them. Each run has a directory under --run,
named after its change, with - in place of /, or "base" for the recipe. The
table compares the mean losses over the development split, if there is one, or
else over the validation split, never over the test split. The cold loss is that
of windows of 256 tokens, each read from the zero state; the stateful loss is
that of one pass over the text. --change=seed=1 shows what the seed alone does.
The results are kept in ablations.json: a change that has a row there is not
trained again, and one that was interrupted is resumed. A change that diverges
is marked. The file has the checksums of the weights of --init_from and
--teacher; once they have changed, nothing is added to it. --overwrite deletes
the file and the runs, and trains the recipe and all changes again; every change
in the file must then be given. If this program is interrupted, the command that
it prints resumes it, without --overwrite.
"""

import shlex
import signal
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from rich.console import Console

from experiments import evaluate, train
from experiments.cli import (
  collect_stop_requests,
  exit_status,
  launch,
  make_console,
)
from experiments.comparison.ablations import (
  BASE,
  RECORD,
  Ablations,
  apply_change,
  check_changes,
  make_table,
  read_ablations,
)
from experiments.comparison.results import opened
from experiments.trainer import run_dir
from experiments.trainer.config import TrainConfig
from experiments.trainer.corpus import read_corpus_text, text_sha256
from experiments.trainer.data import SPLITS
from experiments.trainer.distributed import share_batches
from experiments.trainer.environment import environment, environment_of
from experiments.trainer.format import print_table, print_title
from experiments.trainer.loop import Diverged
from experiments.trainer.records import config_from_flags, define_flags, replace
from experiments.trainer.run_dir import (
  JOB_FLAGS,
  REPLACE_OR_KEEP,
  check_not_extended,
  check_same_run,
  lock,
  recorded_flags,
)


class Result(NamedTuple):
  """The results of the runs."""

  rows: list[dict[str, Any]]  # of the table: the recipe's, and each change's
  stopped_by: signal.Signals | None = None  # before all runs were done


def run(config: TrainConfig, changes: list[str], console: Console) -> Result:
  """Train the recipe and each change, and print the table.

  Raises:
    ValueError: a change is malformed, has no effect, changes the corpus or its
      tokens, or equals another; --run is not given, is a run, is in use, or
      holds the results of another recipe or corpus, or with --overwrite, those
      of changes that are not given; the corpus or the weights of --init_from or
      --teacher change meanwhile; or as in `train.run`.
    Diverged: the recipe itself diverges.
  """
  if not config.job.run:
    raise ValueError("--run must be the directory of the runs, got none")
  base = Path(config.job.run)
  run_dir.check_is_no_run(base, "changes")
  configs = {BASE: config} | {c: apply_change(config, c) for c in changes}
  # `share_batches` reads in --run how many devices a resumed run has. One call
  # for all runs: JAX starts its CPU devices only once.
  runs = [
    replace(single, run=str(base / name.replace("/", "-")))
    for name, single in configs.items()
  ]
  names = [Path(single.job.run).name for single in runs]
  if len({*names}) < len(names) or max(map(len, names)) > 255:
    raise ValueError(
      "each --change must name a directory of its own, of at most 255 "
      f"characters, got {', '.join(names[1:])}"
    )
  configs = dict(zip(configs, share_batches(runs), strict=True))
  check_changes(configs)
  for single in configs.values():
    for name in _models(single):
      run_dir.read_record(Path(name))  # raises if it is no run
  sha256 = text_sha256(read_corpus_text(config.data.corpus))
  recipe = {
    name: value
    for name, value in recorded_flags(config).items()
    if name not in JOB_FLAGS
  }
  split = "dev" if config.data.dev_fraction else "val"
  results = Ablations(recipe, sha256, split, rows=[], models={})
  with opened(base):
    return _run(base, configs, results, console)


def _run(
  base: Path,
  configs: dict[str, TrainConfig],
  results: Ablations,
  console: Console,
) -> Result:
  """Train each configuration that has no row yet, into a directory of `base`.

  Args:
    base: the directory of the runs.
    configs: those of BASE and of each change, by name.
    results: the results if there are none so far.
    console: where to print.
  """
  path, stopped_by = base / RECORD, None
  if configs[BASE].job.overwrite:
    _delete(path, configs, results)
  results = read_ablations(path, results)
  if results.rows:
    console.print(
      f"results kept in {path}: {len(results.rows)}", soft_wrap=True
    )
  for number, (name, single) in enumerate(configs.items(), start=1):
    if results.has(name):
      continue
    print_title(f"{name} ({number} of {len(configs)})", console)
    try:
      single = replace(single, overwrite=False)  # an old run is deleted
      row, stopped_by = _train(single, results, console)
    except Diverged as error:
      if name == BASE:
        raise
      console.print(f"{error}", soft_wrap=True)
      if record := run_dir.read_config(Path(single.job.run)):
        results.add_models(record)
      row = {"diverged": True, "environment": environment()}
      stopped_by = error.signalled
    if row:
      results.rows.append({"change": name} | row)
      results.write(path)
    if stopped_by:
      break
  if results.rows:
    print_table(make_table(results.rows), console)
    split = SPLITS[results.split]
    console.print(f"cold, stateful: nats per token of the {split} split")
    console.print(f"saved in {shlex.quote(str(path))}", soft_wrap=True)
  is_done = all(map(results.has, configs))
  return Result(results.rows, None if is_done else stopped_by)


def _delete(
  path: Path, configs: dict[str, TrainConfig], new: Ablations
) -> None:
  """Delete the results and the runs of these changes, for --overwrite.

  Raises:
    ValueError: there are results of other changes, which new ones could be
      compared with; or a run is in use.
  """
  try:
    rows = read_ablations(path, new).rows
  except ValueError:  # damaged, or rows that cannot stay beside new ones
    rows = []
  others = [row["change"] for row in rows if row["change"] not in configs]
  if others:
    raise ValueError(
      f"--overwrite trains all again, and {path} also holds "
      f"{', '.join(others)}: name them with --change, or choose another --run"
    )
  directories = [Path(single.job.run) for single in configs.values()]
  read = {Path(name).resolve() for c in configs.values() for name in _models(c)}
  for directory in directories:
    if directory.resolve() in read:
      raise ValueError(
        f"--overwrite would replace {directory}, whose weights a change reads: "
        "pass another --run"
      )
  with ExitStack() as locks:
    held = list(filter(run_dir.read_config, directories))
    for directory in held:
      locks.enter_context(lock(directory))
    # First, so that no row stays beside runs that are gone.
    path.unlink(missing_ok=True)
    for directory in held:
      run_dir.delete_run(directory)
  for directory in held:
    with suppress(OSError):  # it holds other files
      directory.rmdir()


def _models(config: TrainConfig) -> list[str]:
  """Return the runs whose weights a run reads."""
  names = [config.init_from, *config.distillation.teacher]
  return [name for name in names if name]


def _train(
  config: TrainConfig, results: Ablations, console: Console
) -> tuple[dict[str, Any] | None, signal.Signals | None]:
  """Train a run, if it is not finished, and measure it.

  A run has finished without a row if this program was interrupted before its
  losses were measured, or if ablations.json was deleted.

  Returns:
    (row, signal): the entries of its row, or None if a signal stopped the
    training; and the signal that came, if one did.
  """
  directory, signalled = Path(config.job.run), None
  recorded = recorded_flags(config)
  if not (directory / run_dir.RESULT).exists():
    check_not_extended(directory, recorded, advice=REPLACE_OR_KEEP)
    result = train.run(config, console)
    if result.stopped_by:
      return None, result.stopped_by
    signalled = result.signalled
  sha256 = results.corpus_sha256
  check_same_run(directory, recorded, sha256, advice=REPLACE_OR_KEEP)
  record = run_dir.read_record(directory)
  results.add_models(record)
  options = evaluate.EvaluateConfig(
    run=(str(directory),),
    split=results.split,
    protocol=("cold", "stateful"),
  )
  with collect_stop_requests() as requests:  # so that the row is saved
    found = evaluate.run(options, console)
  if found["training_seconds"] is None:
    raise ValueError(f"{directory / run_dir.RESULT} has no seconds")
  row = {
    "parameters": found["parameters"],
    "cold": found["nats"]["cold"],
    "stateful": found["nats"]["stateful"],
    "val_loss": found["val_loss"][0],
    "step": found["step"],
    "seconds": found["training_seconds"],
    "environment": environment_of(record),
  }
  return row, requests[-1] if requests else signalled


def main() -> int:
  """Read the flags and run."""
  config, console = config_from_flags(TrainConfig(), FLAGS), make_console()
  stopped_by = run(config, CHANGES.value, console).stopped_by
  directory = Path(config.job.run)
  return exit_status("ablate", config, directory, stopped_by, console)


if __name__ == "__main__":
  FLAGS = define_flags(TrainConfig())
  CHANGES = flags.DEFINE_multi_string(
    "change", [], "NAME=VALUE[,NAME=VALUE ...] of other flags; may be repeated."
  )
  launch(main)
