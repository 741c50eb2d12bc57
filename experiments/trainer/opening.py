"""Opening a run directory: for a new run, or to resume the one in it."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from experiments.trainer.config import TrainConfig
from experiments.trainer.corpus_path import recorded_path
from experiments.trainer.environment import environment
from experiments.trainer.files import write_json
from experiments.trainer.locking import lock
from experiments.trainer.records import to_record
from experiments.trainer.run_dir import (
  CHECKPOINTS,
  CONFIG,
  JOB_FLAGS,
  RESULT,
  check_is_run_or_empty,
  read_config,
  set_aside,
)
from lstm_jax.training import has_state, list_checkpoints
from lstm_jax.training.durable import make_directory, sync


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
  check_is_run_or_empty(directory)
  try:
    make_directory(directory)
  except FileExistsError:  # a file, or a link that leads to no directory
    raise ValueError(f"{directory} is not a directory") from None
  with lock(directory):
    yield directory, _resume_or_start(directory, config, corpus_sha256)


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
    set_aside(directory)
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


def _new_directory() -> Path:
  """Create a directory of its own under runs/, named after the time."""
  stamp = datetime.now().strftime("%Y-%m-%d-%H%M%S")
  name, number = stamp, 1
  while True:
    try:
      directory = Path("runs") / name
      make_directory(directory.parent)
      directory.mkdir()
      sync(directory.parent)
      return directory
    except FileExistsError:
      number += 1
      name = f"{stamp}-{number}"
