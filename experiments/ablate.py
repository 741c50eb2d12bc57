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
--teacher; once they have changed, nothing is added to it. --overwrite trains
the recipe and all changes again; every change in a file of this recipe and
corpus must then be given. If this program is interrupted, the command that it
prints resumes it, without --overwrite.
"""

import shlex
import signal
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import flags
from rich.console import Console

from experiments import train
from experiments.cli import (
  collect_stop_requests,
  exit_status,
  launch,
  make_console,
)
from experiments.comparison.ablation_models import add_models, models_of_run
from experiments.comparison.ablations import (
  BASE,
  RECORD,
  Ablations,
  check_all_named,
  check_directories,
  check_kept,
  make_table,
  read_ablations,
  start_times,
)
from experiments.comparison.changes import apply_change, check_changes
from experiments.trainer import run_dir
from experiments.trainer.config import DataConfig, JobConfig, TrainConfig
from experiments.trainer.corpus import (
  find_corpus,
  read_corpus_text,
  text_sha256,
)
from experiments.trainer.data import (
  SPLITS,
  check_unchanged,
  read_corpus,
)
from experiments.trainer.distributed import share_batches
from experiments.trainer.environment import environment, environment_of
from experiments.trainer.files import are_numbers
from experiments.trainer.flags import config_from_flags, define_flags
from experiments.trainer.format import print_table, print_title
from experiments.trainer.loop import Diverged
from experiments.trainer.records import replace
from experiments.trainer.run_dir import (
  JOB_FLAGS,
  REPLACE_OR_KEEP,
  check_not_extended,
  check_same_run,
  recorded_flags,
)
from experiments.trainer.trained import load
from lstm_jax.language.evaluate import cold_nats, stateful_nats
from lstm_jax.training.durable import check_path


class Result(NamedTuple):
  """The results of the runs."""

  rows: list[dict[str, Any]]  # of the table: the recipe's, and each change's
  stopped_by: signal.Signals | None = None  # before all runs were done


def run(config: TrainConfig, changes: list[str], console: Console) -> Result:
  """Train the recipe and each change, and print the table.

  Raises:
    ValueError: a change is malformed, has no effect, changes the corpus or its
      tokens, equals another, or can have no directory of its own; --run is not
      given, is a run, is refused by `check_path`, holds another recipe's or
      corpus's results, or with --overwrite, those of changes not given; the
      corpus or the weights of --init_from or --teacher change
      meanwhile or are not those of the results; another process begins all
      again; or as in `train.run`: for the corpus, the flags and those weights,
      before the first run; for a run's directory and the memory, at that run.
    Diverged: the recipe itself diverges.
  """
  job = config.job
  if not job.run:
    raise ValueError("--run must be the directory of the runs, got none")
  check_path(Path(job.run))
  run_dir.check_is_no_run(job.run, "changes")
  configs = _make_configs(config, changes)
  check_changes(configs)
  sha256 = text_sha256(read_corpus_text(config.data.corpus))
  path, recipe = Path(job.run) / RECORD, _recipe(config)
  results = _start(path, config, recipe, sha256, configs)
  rows, stopped_by = results.rows, None  # `rows` is changed in place
  if rows:
    console.print(f"results kept in {path}: {len(rows)}", soft_wrap=True)
  for number, (name, changed) in enumerate(configs.items(), start=1):
    if results.has(name):
      continue
    print_title(f"{name} ({number} of {len(configs)})", console)
    directory = _directory(job, name)
    single = results.config_in(directory, changed)
    results = add_models(results, path, single)
    row, stopped_by = _train(name, single, sha256, console)
    if row:
      results = results.with_models(path, models_of_run(directory))
      if path.exists():  # another process may have added a row meanwhile
        found = read_ablations(path, recipe, sha256)
        check_kept(path, results, found)
        found = found.with_models(path, results.models)
        rows[:], results = found.rows, results._replace(models=found.models)
      if not results.has(name):  # that process may have measured the same run
        rows.append({"change": name} | row)
      results.write(path)
    if stopped_by:
      break
  if rows:
    print_table(make_table(rows), console)
    name = SPLITS[results.split]
    console.print(f"cold, stateful: nats per token of the {name} split")
    console.print(f"saved in {shlex.quote(str(path))}", soft_wrap=True)
  is_done = all(map(results.has, configs))
  return Result(rows, None if is_done else stopped_by)


def _make_configs(
  config: TrainConfig, changes: list[str]
) -> dict[str, TrainConfig]:
  """Return the configurations of BASE and of each change.

  All keep the common --run; `Ablations.config_in` sets that of each run.

  Raises:
    ValueError: a change is malformed, or can have no directory of its own; or
      as in `share_batches`.
  """
  job = config.job
  configs = {BASE: config} | {c: apply_change(config, c) for c in changes}
  # `share_batches` reads in --run how many devices a resumed run has.
  runs = [replace(c, run=str(_directory(job, n))) for n, c in configs.items()]
  for name, shared in zip(configs, share_batches(runs), strict=True):
    mesh, devices = shared.job.mesh, shared.job.devices
    configs[name] = replace(configs[name], mesh=mesh, devices=devices)
  check_directories({name: _directory(job, name) for name in configs})
  return configs


def _start(
  path: Path,
  config: TrainConfig,
  recipe: dict[str, Any],
  sha256: str,
  configs: dict[str, TrainConfig],
) -> Ablations:
  """Return the results kept in ablations.json; none with --overwrite.

  Raises:
    ValueError: as in `run`, about that file and the models that a run reads.
  """
  split = "dev" if config.data.dev_fraction else "val"
  if config.job.overwrite:
    check_all_named(path, recipe, sha256, configs)
    outdated = start_times(path.parent.glob("*"))  # of all runs to be replaced
    results = Ablations(recipe, sha256, [], outdated, split)
  else:
    results = read_ablations(path, recipe, sha256)._replace(split=split)
  for name, changed in configs.items():
    if not results.has(name):
      single = results.config_in(_directory(config.job, name), changed)
      results = add_models(results, path, single)
  if config.job.overwrite and path.parent.is_dir():
    results.write(path)  # now: the command that resumes has no --overwrite
  return results


def _train(
  name: str, config: TrainConfig, sha256: str, console: Console
) -> tuple[dict[str, Any] | None, signal.Signals | None]:
  """Train a run, if it is not finished, and measure it.

  Returns:
    (row, signal): the entries of its row, or None if a signal stopped the
    training; and the signal that came, if one did.

  Raises:
    Diverged: the recipe itself diverges.
  """
  try:
    result = _finished(config, sha256)
    if result is None:
      check_not_extended(
        Path(config.job.run), recorded_flags(config), advice=REPLACE_OR_KEEP
      )
      text = read_corpus_text(config.data.corpus)
      check_unchanged(config.data, text_sha256(text), sha256)
      result = train.run(config, console)
  except Diverged as error:
    if name == BASE:
      raise
    console.print(f"{error}", soft_wrap=True)
    return {"diverged": True, "environment": environment()}, error.signalled
  if result.stopped_by:
    return None, result.stopped_by
  with collect_stop_requests() as requests:  # so that the row is saved
    row = _measure(result, config.data, sha256)
  return row, requests[-1] if requests else result.signalled


def _finished(config: TrainConfig, sha256: str) -> train.Result | None:
  """Return the result of a run that has finished already, if it has.

  That happens if this program was interrupted after the end of the run, before
  its losses were measured, or if ablations.json was deleted.

  Raises:
    ValueError: the directory holds a run of another configuration or corpus, or
      the run's result is damaged.
  """
  directory = Path(config.job.run)
  path = directory / run_dir.RESULT
  if config.job.overwrite or not path.exists():
    return None
  flags = recorded_flags(config)
  check_same_run(directory, flags, sha256, advice=REPLACE_OR_KEEP)
  result = run_dir.read_result(directory) or {}
  names = "step", "val_loss", "seconds"  # step is Result's best_step
  entries: list[Any] = [result.get(name) for name in names]
  if not are_numbers(entries):
    raise ValueError(f"{path} is damaged: it must have step, val_loss, seconds")
  return train.Result(directory, *entries)


def _directory(job: JobConfig, name: str) -> Path:
  """Return the run directory of a change."""
  return Path(job.run) / name.replace("/", "-")


def _measure(
  result: train.Result, data: DataConfig, sha256: str
) -> dict[str, Any]:
  """Return the losses of a finished run, in nats per token.

  They are of `Corpus.val`: the development split, if there is one, or else the
  validation split. A choice between changes must not see the test split.
  """
  trained = load(result.directory)
  data = find_corpus(result.directory, data, sha256)
  corpus = read_corpus(data)
  check_unchanged(data, corpus.sha256, sha256)
  tokens, model, params = corpus.val.tokens, trained.model, trained.params
  return {
    "parameters": sum(p.size for p in jax.tree.leaves(params)),
    "cold": float(cold_nats(model, params, tokens).mean()),
    "stateful": float(stateful_nats(model, params, tokens).mean()),
    "val_loss": trained.val_loss,
    "step": trained.step,
    "seconds": round(result.seconds, 3),
    "environment": environment_of(run_dir.read_record(result.directory)),
  }


def _recipe(config: TrainConfig) -> dict[str, Any]:
  """Return the recipe's flags except JOB_FLAGS, with config.json's paths."""
  record = recorded_flags(config)
  return {
    name: value for name, value in record.items() if name not in JOB_FLAGS
  }


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
