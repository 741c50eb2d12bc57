"""The files of a run directory, and what else may lie in it.

config.json      every flag, versions, device, and the corpus's hash
corpus.txt       the corpus, if it came through a pipe
metrics.jsonl    one JSON object a line: training and validation losses
samples.txt      what the model wrote as it learned
loss.png         both losses over training steps
result.json      the best loss; written when the run finishes
evaluation.json  written by `experiments.evaluate`
ensemble.json    the evaluation of an ensemble whose first member is this run
explore.html     written by `experiments.explore`
report.html      written by `experiments.report`
profile/         the trace of --profile
tensorboard/     the same metrics for TensorBoard, if tensorboardX is installed
checkpoints/     the last two and the best: parameters and train state
previous/        the run that --overwrite replaced, until this one has ended or
                 was stopped, and has a best checkpoint
lock             the id of the process that is writing here

A run is unfinished as long as it has no result.json. It is resumed from its
newest checkpoint that holds a train state; without any checkpoint it starts
again.
"""

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from experiments.trainer.config import JobConfig, TrainConfig
from experiments.trainer.corpus_path import KEPT
from experiments.trainer.files import check_regular, read_json, real_path
from experiments.trainer.locking import LOCK
from experiments.trainer.records import Config, from_record, leaves
from lstm_jax.training import (
  CheckpointError,
  list_checkpoints,
  read_checkpoint,
)
from lstm_jax.training.durable import sync

CONFIG, METRICS, SAMPLES = "config.json", "metrics.jsonl", "samples.txt"
PICTURE, RESULT, EVALUATION = "loss.png", "result.json", "evaluation.json"
ENSEMBLE = "ensemble.json"
PAGE, REPORT = "explore.html", "report.html"
PROFILE, TENSORBOARD, CHECKPOINTS = "profile", "tensorboard", "checkpoints"
PREVIOUS = "previous"
SHA256, TEACHERS = "corpus_sha256", "teacher_sha256"  # entries of CONFIG
INIT_FROM = "init_from_sha256"  # of the weights, as TEACHERS
# A run is moved in this order; CONFIG, the last, marks the move as complete.
CONTENTS = (
  METRICS,
  SAMPLES,
  PICTURE,
  PROFILE,
  EVALUATION,
  ENSEMBLE,
  PAGE,
  REPORT,
  TENSORBOARD,
  RESULT,
  CHECKPOINTS,
  KEPT,
  CONFIG,
)
FLAGS = tuple(leaf.name for leaf in leaves(TrainConfig()))
JOB_FLAGS = tuple(leaf.name for leaf in leaves(JobConfig()))


def check_outside_runs(flag: str, path: Path, page: str = "") -> None:
  """Raise ValueError if a file would be written into a run directory.

  Args:
    flag: of the path, for the message.
    path: of the file; in a run directory, only `page` is allowed.
    page: PAGE or REPORT; "" for none.
  """
  place = real_path(path)
  # A config.json that cannot be read is another user's.
  readable = (p for p in place.parents if os.access(p / CONFIG, os.R_OK))
  directory = next(filter(read_config, readable), None)  # the innermost
  if directory is not None and place != directory / page:
    exception = f", or its {page}" if page else ""
    raise ValueError(
      f"{flag} must be outside the run directory {directory}{exception}, got "
      f"{path}"
    )


def read_config(directory: Path) -> dict[str, Any] | None:
  """Return config.json; None if it is missing or invalid. See `_read_json`."""
  record = _read_json(directory / CONFIG)
  return record if record and set(FLAGS) <= set(record) else None


def _read_json(path: Path) -> dict[str, Any] | None:
  """Return a file's object, or None; raise PermissionError if unreadable."""
  try:
    record = read_json(path)
  except PermissionError:
    raise  # there may be a run
  except (OSError, ValueError, RecursionError):
    return None
  return record if isinstance(record, dict) else None


def read_result(directory: Path) -> dict[str, Any] | None:
  """Return result.json; None for an unfinished run, {} if it is damaged."""
  path = directory / RESULT
  return (_read_json(path) or {}) if path.exists() else None


def is_sweep(record: dict[str, Any]) -> bool:
  """Return whether config.json is of a sweep: a single run has no num_seeds."""
  return "num_seeds" in record


def check_is_no_run(base: Path | str, parts: str) -> None:
  """Raise ValueError if a directory for several runs is itself a run.

  `parts` names what has one run each, for the message: "seeds", for example.
  """
  if read_config(Path(base)) is not None:
    raise ValueError(
      f"--run must hold the runs of all {parts}, got {base}, which is a run"
    )


def check_has_hash(
  directory: Path, record: dict[str, Any], advice: str = ""
) -> None:
  """Raise ValueError, ending with `advice`, if config.json lacks SHA256."""
  if SHA256 not in record:
    raise ValueError(f"{directory / CONFIG} lacks {SHA256}{advice}")


def read_record(directory: Path) -> dict[str, Any]:
  """Return config.json.

  Raises:
    ValueError: the directory holds no run.
  """
  record = read_config(directory)
  if record is not None:
    return record
  reason = "no such directory"
  if directory.is_dir():
    reason = _other_version(directory) or f"no {CONFIG} of a run"
  raise ValueError(f"there is no run in {directory}: {reason}")


def to_config(
  directory: Path, record: dict[str, Any], default: Config
) -> Config:
  """Return the configuration of a directory's config.json.

  Args:
    directory: of the run.
    record: what `read_record` returns for it.
    default: an instance of the configuration's class.

  Raises:
    ValueError: a value is missing, or not of its flag's kind or range; or there
      is no module of its cell. The message names the file.
  """
  try:
    return from_record(default, record)
  except ValueError as error:
    raise ValueError(f"{directory / CONFIG}: {error}") from None


def _other_version(directory: Path) -> str | None:
  """Return a message if CONFIG has some of the flags, but not all."""
  record = _read_json(directory / CONFIG) or {}
  missing = [name for name in FLAGS if name not in record]
  if not missing or missing == [*FLAGS]:
    return None
  return f"{CONFIG} lacks {missing[0]}, as that of another version"


def delete_previous(directory: Path) -> None:
  """Delete the run that --overwrite moved aside, if any; its CONFIG last."""
  previous = directory / PREVIOUS
  if not previous.is_symlink() and previous.is_dir():
    with suppress(OSError):  # then CONFIG stays, and a later call tries again
      for name in CONTENTS:
        _delete(previous / name)
      shutil.rmtree(previous)


def check_is_run_or_empty(directory: Path) -> None:
  """Raise ValueError unless a directory holds a run, is empty or is missing.

  A directory inside what another run may move or delete is refused, too, and
  one whose PREVIOUS is a link: what it leads to would be moved or deleted.
  """
  _check_is_no_part(directory)
  check_regular(directory / PREVIOUS)
  if read_config(directory) is not None:
    return
  present = [name for name in CONTENTS if (directory / name).exists()]
  if present:
    reason = _other_version(directory)
    reason = reason or f"it holds {present[-1]} but no {CONFIG} of a run"
    raise ValueError(
      f"{directory} is not a run of this version: {reason}; choose another "
      "--run"
    )
  if not directory.is_dir():
    return
  found = (path.name for path in directory.iterdir())
  names = sorted(n for n in found if not _is_leftover(n))  # of a killed run
  if names:
    others = f" and {len(names) - 1} more" if len(names) > 1 else ""
    raise ValueError(
      f"{directory} is not a run and not empty: it holds {names[0]}{others}; "
      "choose another --run, such as a new directory"
    )


def _check_is_no_part(directory: Path) -> None:
  """Raise ValueError if a directory is in what a run may move or delete."""
  place = real_path(directory)
  for parent in place.parents:
    name = place.relative_to(parent).parts[0]
    if name in (*CONTENTS, PREVIOUS) and read_config(parent) is not None:
      raise ValueError(
        f"{directory} is inside {parent / name}, which the run {parent} may "
        "delete: choose another --run"
      )


def _is_leftover(name: str) -> bool:
  """Return whether a file is the lock, `previous` or half-written."""
  whole, *unique = name.rsplit(".", 2)  # `write_bytes`: NAME.<8 hex>.part
  return name in (LOCK, PREVIOUS) or (
    whole in CONTENTS and unique[1:] == ["part"]
  )


def set_aside(directory: Path) -> None:
  """Move a run into `previous`; a successor with a best checkpoint deletes it.

  A run in `previous` is deleted; or this one, if it has no best checkpoint.
  """
  previous = directory / PREVIOUS
  complete = (previous / CONFIG).exists()
  if complete and not _has_best(directory):
    for name in CONTENTS:
      _delete(directory / name)
    return
  if complete:
    delete_previous(directory)
    if (previous / CONFIG).exists():  # two runs would be mixed
      raise OSError(f"{previous} cannot be deleted")
  previous.mkdir(exist_ok=True)
  for name in CONTENTS:
    if name == CONFIG:
      sync(previous)
    if os.path.lexists(directory / name):
      _delete(previous / name)
      (directory / name).rename(previous / name)
  sync(previous)
  sync(directory)


def move_back(directory: Path) -> None:
  """Undo a `set_aside` that a kill interrupted before CONFIG was moved."""
  previous = directory / PREVIOUS
  if not previous.is_dir() or (previous / CONFIG).exists():
    return
  if (directory / CONFIG).exists():
    for name in reversed(CONTENTS):
      if (previous / name).exists() and not (directory / name).exists():
        (previous / name).rename(directory / name)
    sync(directory)


def _has_best(directory: Path) -> bool:
  """Return whether a run has a best loss, by its newest readable checkpoint.

  If none can be read, a finished run counts as having one.
  """
  checkpoints = directory / CHECKPOINTS
  for step in reversed(list_checkpoints(checkpoints)):
    try:
      description = read_checkpoint(checkpoints, step).description
    except CheckpointError:
      continue
    progress = description.get("progress")
    return isinstance(progress, dict) and bool(progress.get("best"))
  return (directory / RESULT).exists()


def _delete(path: Path) -> None:
  if path.is_dir() and not path.is_symlink():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)
