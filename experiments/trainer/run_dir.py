"""A run directory: its files, and how a process locks it.

config.json      every flag, versions, device, and the corpus's hash
corpus.txt       the corpus, if it came through a pipe
metrics.jsonl    one JSON object a line: training and validation losses
samples.txt      what the model wrote as it learned
loss.png         both losses over training steps
result.json      the best loss; written when the run finishes
evaluation.json  written by `experiments.evaluate`
ensemble.json    the same of an ensemble whose first member this run is
explore.html     written by `experiments.explore`
report.html      written by `experiments.report`
profile/         the trace of --profile
tensorboard/     the same metrics for TensorBoard, if tensorboardX is installed
checkpoints/     the last two and the best: parameters and train state
previous/        what --overwrite replaces, until this run has a checkpoint
lock             the id of the process that is writing here

A run is unfinished as long as it has no result.json. It can be resumed if a
checkpoint holds a state, or, from the beginning, if it has no checkpoint.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from experiments.trainer.config import JobConfig, TrainConfig
from experiments.trainer.corpus_path import KEPT, recorded_path
from experiments.trainer.environment import environment
from experiments.trainer.files import write_json
from experiments.trainer.records import leaves, to_record
from lstm_jax.training import has_state, list_checkpoints

CONFIG, METRICS, SAMPLES = "config.json", "metrics.jsonl", "samples.txt"
PICTURE, RESULT, EVALUATION = "loss.png", "result.json", "evaluation.json"
ENSEMBLE = "ensemble.json"
PAGE, REPORT = "explore.html", "report.html"
PROFILE, TENSORBOARD, CHECKPOINTS = "profile", "tensorboard", "checkpoints"
PREVIOUS, LOCK = "previous", "lock"
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
JOB_FLAGS = tuple(leaf.name for leaf in leaves(JobConfig()))


@contextmanager
def open_run_dir(
  config: TrainConfig, corpus_sha256: str
) -> Iterator[tuple[Path, bool]]:
  """Lock a run directory, with its config.json written, during the block.

  Yields:
    (directory, whether it holds an unfinished run to resume).

  Raises:
    ValueError: another process holds the directory; it holds a finished run, or
      one of another configuration or corpus, and --overwrite is not given; or
      it holds files of another kind, or is no directory.
  """
  job = config.job
  directory = Path(job.run) if job.run else _new_directory()
  _check_is_run_or_empty(directory)
  try:
    directory.mkdir(parents=True, exist_ok=True)
  except FileExistsError:  # a file, or a link that leads to no directory
    raise ValueError(f"{directory} is not a directory") from None
  with lock(directory):
    yield directory, _resume_or_start(directory, config, corpus_sha256)


@contextmanager
def lock(directory: Path) -> Iterator[None]:
  """Lock an existing directory until the end of the block.

  The kernel releases the lock when the process ends, however it ends: a file
  that a crash leaves behind locks nothing.

  Raises:
    ValueError: another process holds it.
  """
  path = directory / LOCK
  while True:
    file = path.open("a+", encoding="utf-8")
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      file.seek(0)
      pid = file.read().strip()
      file.close()
      holder = f"process {pid}" if pid else "another process"
      raise ValueError(f"{directory} is in use by {holder}") from None
    if _is_same(file, path):
      break
    file.close()  # the previous holder has just deleted it
  try:
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    yield
  finally:
    path.unlink(missing_ok=True)
    file.close()


def read_config(directory: Path) -> dict[str, Any] | None:
  """Return the contents of config.json; None if it is missing or invalid."""
  try:
    record = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
  except (OSError, ValueError):
    return None
  names = {leaf.name for leaf in leaves(TrainConfig())}
  return record if isinstance(record, dict) and names <= set(record) else None


def read_record(directory: Path) -> dict[str, Any]:
  """Return config.json.

  Raises:
    ValueError: the directory holds no run.
  """
  record = read_config(directory)
  if record is None:
    reason = (
      f"no {CONFIG} of a run" if directory.is_dir() else "no such directory"
    )
    raise ValueError(f"there is no run in {directory}: {reason}")
  return record


def delete_previous(directory: Path) -> None:
  """Delete the run that --overwrite moved aside, if any."""
  shutil.rmtree(directory / PREVIOUS, ignore_errors=True)


def _check_is_run_or_empty(directory: Path) -> None:
  """Raise ValueError if a directory holds other files than those of a run."""
  if read_config(directory) is not None:
    return
  present = [name for name in CONTENTS if (directory / name).exists()]
  if present:
    raise ValueError(
      f"{directory} holds {present[-1]} but no {CONFIG} of a run: choose "
      "another --run"
    )
  if not directory.is_dir():
    return
  leftovers = {LOCK, PREVIOUS, CONFIG + ".part"}  # of a run that was killed
  names = sorted({path.name for path in directory.iterdir()} - leftovers)
  if names:
    others = f" and {len(names) - 1} more" if len(names) > 1 else ""
    raise ValueError(
      f"{directory} is not a run and not empty: it holds {names[0]}{others}; "
      "choose another --run, such as a new directory"
    )


def _resume_or_start(
  directory: Path, config: TrainConfig, corpus_sha256: str
) -> bool:
  """Return whether to resume the run; if not, write a new config.json."""
  record = read_config(directory)
  job = config.job
  if record is not None and not job.overwrite:
    if not (job.resume and _can_resume(directory)):
      resume = "" if job.resume else "--resume continues it if unfinished, "
      raise ValueError(
        f"{directory} already holds a run; {resume}--overwrite replaces it, "
        "another --run keeps it"
      )
    _check_unchanged(directory, record, config, corpus_sha256)
    return True
  if record is not None:
    _set_aside(directory)
  now = datetime.now().astimezone().isoformat(timespec="seconds")
  record = _record(config) | environment()
  record |= {"corpus_sha256": corpus_sha256, "started": now}
  write_json(directory / CONFIG, record)
  return False


def _record(config: TrainConfig) -> dict[str, Any]:
  """Return the flags as config.json holds them."""
  return to_record(config) | {"corpus": recorded_path(config.data.corpus)}


def _can_resume(directory: Path) -> bool:
  checkpoints = directory / CHECKPOINTS
  steps = list_checkpoints(checkpoints)
  resumable = any(has_state(checkpoints, step) for step in steps)
  return (resumable or not steps) and not (directory / RESULT).exists()


def _check_unchanged(
  directory: Path,
  record: dict[str, Any],
  config: TrainConfig,
  corpus_sha256: str,
) -> None:
  """Raise ValueError if the run has another configuration or corpus."""
  changes = [
    f"{name} is {record.get(name)!r} there and {value!r} here"
    for name, value in _record(config).items()
    if name not in JOB_FLAGS and record.get(name) != value
  ]
  if changes:
    raise ValueError(
      f"{directory} holds an unfinished run of another configuration: "
      f"{'; '.join(changes)}; --overwrite replaces it, another --run keeps it"
    )
  if record.get("corpus_sha256") != corpus_sha256:
    raise ValueError(
      f"corpus {config.data.corpus} has changed since the run in {directory} "
      "started; --overwrite starts it again"
    )


def _set_aside(directory: Path) -> None:
  """Move a run into `previous`, until its successor has a checkpoint.

  A run without a checkpoint does not replace a previous run that has one.
  """
  previous = directory / PREVIOUS
  complete = (previous / CONFIG).exists()
  if complete and not list_checkpoints(directory / CHECKPOINTS):
    for name in CONTENTS:
      _delete(directory / name)
    return
  if complete:
    _delete(previous)
  previous.mkdir(exist_ok=True)
  for name in CONTENTS:
    if (directory / name).exists():
      _delete(previous / name)
      (directory / name).rename(previous / name)


def _delete(path: Path) -> None:
  if path.is_dir():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)


def _new_directory() -> Path:
  """Create a directory of its own under runs/, named after the time."""
  stamp = datetime.now().strftime("%Y-%m-%d-%H%M%S")
  name, number = stamp, 1
  while True:
    try:
      directory = Path("runs") / name
      directory.mkdir(parents=True)
      return directory
    except FileExistsError:
      number += 1
      name = f"{stamp}-{number}"


def _is_same(file, path: Path) -> bool:
  """Return whether a path still refers to the open file."""
  try:
    return os.path.samestat(os.fstat(file.fileno()), path.stat())
  except FileNotFoundError:
    return False
