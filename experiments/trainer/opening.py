"""Opening a run directory: for a new run, or to resume the one in it."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from experiments.trainer.config import TrainConfig
from experiments.trainer.corpus_path import KEPT, corpus_when_resumed
from experiments.trainer.environment import environment, time_now
from experiments.trainer.extension import (
  MAY_CHANGE,
  check_extension,
  extended_record,
  extends,
)
from experiments.trainer.files import (
  check_regular,
  ensure_directory,
  real_path,
  remove_parts,
  write_json,
)
from experiments.trainer.locking import lock
from experiments.trainer.records import to_record
from experiments.trainer.run_dir import (
  CHECKPOINTS,
  CONFIG,
  CONTENTS,
  METRICS,
  PICTURE,
  PREVIOUS,
  RESULT,
  SAMPLES,
  SHA256,
  TEACHERS,
  check_has_hash,
  check_is_run_or_empty,
  is_sweep,
  move_back,
  read_config,
  read_result,
  set_aside,
)
from experiments.trainer.same_run import (
  REPLACE_OR_KEEP,
  changed_flags,
  check_unchanged,
  check_values,
  described,
  recorded_flags,
)
from lstm_jax.training import has_state, list_checkpoints
from lstm_jax.training.durable import check_path, sync


def _check_corpus_stays(directory: Path, config: TrainConfig) -> None:
  """Raise ValueError if a new run would replace the text to train on."""
  corpus, run = Path(config.data.corpus), real_path(directory)
  # The path may be a link in the run, or lead into it.
  for place in (real_path(corpus), real_path(corpus.parent) / corpus.name):
    parts = place.relative_to(run).parts if place.is_relative_to(run) else ()
    if parts and parts[0] in (*CONTENTS, PREVIOUS):
      raise ValueError(
        f"a new run would replace --corpus={corpus}, which is a file of the "
        "run: copy it to another place, and train on that"
      )


def _check_sources_stay(directory: Path, config: TrainConfig) -> None:
  """Raise ValueError if --overwrite would replace a run that this one reads."""
  sources = [("teacher", name) for name in config.distillation.teacher]
  for flag, name in (*sources, ("init_from", config.init_from)):
    if name and real_path(Path(name)).is_relative_to(real_path(directory)):
      raise ValueError(
        f"--overwrite would replace the run of --{flag}={name}: pass another "
        "--run"
      )


class OpenedRun(NamedTuple):
  """A locked run directory."""

  directory: Path
  resuming: bool  # whether it holds a run to resume
  extended_from: int | None = None  # epochs before, if it is extended now


@contextmanager
def open_run_dir(
  config: TrainConfig, facts: dict[str, Any], *, may_extend: bool = False
) -> Iterator[OpenedRun]:
  """Lock a run directory during the block, with config.json brought up to date.

  Args:
    config: of the run.
    facts: further entries of config.json, among them SHA256, the hash of the
      corpus.
    may_extend: whether a run may be resumed with more epochs or another
      patience, as `extends` says.

  Raises:
    ValueError: another process holds the directory; it holds a run that cannot
      be resumed or extended with this configuration, and --overwrite is not
      given; a new run would replace what it reads; its config.json is damaged;
      it holds other files than a run's, is not a directory, or lies in what
      another run may delete; or its path is not UTF-8, or is one that
      `check_path` refuses.
  """
  job = config.job
  check_path(Path(job.run or "runs"))
  directory = Path(job.run) if job.run else _new_directory()
  try:
    os.path.abspath(directory).encode()
  except UnicodeEncodeError:
    # In the locale C, Python reads file names as ASCII: UTF-8 fails, too.
    encoding = sys.getfilesystemencoding()
    advice = f"; Python reads names as {encoding} here: set PYTHONUTF8=1"
    raise ValueError(
      f"the path of a run directory must be UTF-8, got {str(directory)!r}"
      f"{'' if encoding == 'utf-8' else advice}"
    ) from None
  check_is_run_or_empty(directory)
  ensure_directory(directory)
  with lock(directory):
    opened = _resume_or_start(directory, config, facts, may_extend)
    # What a kill has left half-written, of files that only this process writes.
    remove_parts(directory, (CONFIG, PICTURE, RESULT, KEPT))
    yield opened


def _resume_or_start(
  directory: Path,
  config: TrainConfig,
  facts: dict[str, Any],
  may_extend: bool,
) -> OpenedRun:
  """Find a run to resume, or extend it, or start a new one."""
  move_back(directory)  # if a kill interrupted `set_aside`
  record = read_config(directory)
  if record is None or config.job.overwrite:
    _check_corpus_stays(directory, config)  # it may lie in `previous`
    if record is not None:
      _check_sources_stay(directory, config)
      set_aside(directory)
    record = recorded_flags(config) | environment() | facts
    write_json(directory / CONFIG, record | {"started": time_now()})
    return OpenedRun(directory, resuming=False)
  # Directories may be links: checkpoints/ may lie on another disk.
  for name in (CONFIG, METRICS, SAMPLES, PICTURE, RESULT):
    check_regular(directory / name)
  check_has_hash(directory, record, "; --overwrite replaces the run")
  result = read_result(directory)
  _check_kind(directory, config, record)
  changes = changed_flags(record, config, facts)
  # `extends` computes with values of config.json, so they are checked first;
  # a change of any other flag is refused below in any case.
  if changes.keys() <= {*MAY_CHANGE}:
    check_values(directory, config, record)
  extending = may_extend and extends(record, changes, result)
  if not (config.job.resume and _can_resume(directory, result, extending)):
    if result is None:
      found = _unfinished(config)
    else:
      found = _finished(directory, config, record, changes, result, may_extend)
    raise ValueError(f"{directory} already holds {found}")
  if not extending:
    check_unchanged(directory, record, changes)
  _check_facts(directory, config, record, facts, may_extend)
  begins_again = not list_checkpoints(directory / CHECKPOINTS)
  if begins_again:
    record |= facts  # the step and checksum of --init_from as it is now
  before = record["corpus"]
  record["corpus"] = corpus_when_resumed(
    directory, before, config.data.corpus, facts[SHA256]
  )
  if extending:
    return _extend(directory, config, record, result)
  if begins_again or record["corpus"] != before:
    write_json(directory / CONFIG, record)
  return OpenedRun(directory, resuming=True)


def _extend(
  directory: Path,
  config: TrainConfig,
  record: dict[str, Any],
  result: dict[str, Any] | None,
) -> OpenedRun:
  """Give a run more epochs or another patience; it is unfinished again."""
  check_extension(directory, record, config, result)
  resumption = environment() | {"started": time_now()}
  extended = extended_record(record, config, result, resumption)
  # Delete the result first: after a kill, the run must not count as finished.
  (directory / RESULT).unlink(missing_ok=True)
  sync(directory)
  write_json(directory / CONFIG, extended)
  epochs = record["num_epochs"]
  return OpenedRun(directory, resuming=True, extended_from=epochs)


def _can_resume(
  directory: Path, result: dict[str, Any] | None, extending: bool
) -> bool:
  """Return whether a run is unfinished or extended, and can be resumed.

  That takes a checkpoint with a train state, but an unfinished run without any
  checkpoint starts again.
  """
  if _has_state(directory):
    return extending or result is None
  return not list_checkpoints(directory / CHECKPOINTS) and result is None


def _has_state(directory: Path) -> bool:
  """Return whether a run has a checkpoint that a training can continue from."""
  checkpoints = directory / CHECKPOINTS
  return any(has_state(checkpoints, s) for s in list_checkpoints(checkpoints))


def _unfinished(config: TrainConfig) -> str:
  """Return what a message says of an unfinished run that is not resumed."""
  if config.job.resume:
    kind, advice = "a run without a checkpoint to resume from", ""
  else:
    kind, advice = "an unfinished run", "--resume continues it, "
  return f"{kind}; {advice}{REPLACE_OR_KEEP}"


def _finished(
  directory: Path,
  config: TrainConfig,
  record: dict[str, Any],
  changes: dict[str, Any],
  result: dict[str, Any],
  may_extend: bool,
) -> str:
  """Return what a message says of a finished run that is not extended."""
  kind, advice = "a finished run", ""
  allowed = MAY_CHANGE if may_extend else ()
  others = {n: v for n, v in changes.items() if n not in allowed}
  if config.job.resume and others:
    kind += f" of another configuration: {described(record, others)}"
  elif config.job.resume and may_extend and not _has_state(directory):
    kind += " without a checkpoint to continue from"
  elif config.job.resume and may_extend:
    more = f"--num_epochs above {record['num_epochs']}"
    if result.get("stopped_early"):
      more = "a larger --patience, or 0,"
    advice = f", {more} extends it"
  return f"{kind}; {REPLACE_OR_KEEP}{advice}"


def _check_kind(
  directory: Path, config: TrainConfig, record: dict[str, Any]
) -> None:
  """Raise ValueError if a sweep would resume a single run, or the reverse."""
  if is_sweep(record) != is_sweep(to_record(config)):
    kind = "a sweep" if is_sweep(record) else "a single run"
    raise ValueError(f"{directory} holds {kind}; {REPLACE_OR_KEEP}")


def _check_facts(
  directory: Path,
  config: TrainConfig,
  record: dict[str, Any],
  facts: dict[str, Any],
  may_extend: bool,
) -> None:
  """Raise ValueError if the corpus or the teachers' weights have changed."""
  if record.get(SHA256) != facts[SHA256]:
    another = f", --init_from={directory} starts another from its weights"
    raise ValueError(
      f"corpus {config.data.corpus} has changed since the run in {directory} "
      f"started; --overwrite starts it again{another if may_extend else ''}"
    )
  if facts.get(TEACHERS) != record.get(TEACHERS):
    raise ValueError(
      f"the teachers have other weights than when the run in {directory} "
      "started; --overwrite starts it again"
    )


def _new_directory() -> Path:
  """Create a new directory under runs/, named after the time."""
  runs, stamp = Path("runs"), datetime.now().strftime("%Y-%m-%d-%H%M%S")
  ensure_directory(runs, ": pass --run")
  name, number = stamp, 1
  while True:
    try:
      directory = runs / name
      directory.mkdir()
      sync(runs)
      return directory
    except FileExistsError:
      number += 1
      name = f"{stamp}-{number}"
