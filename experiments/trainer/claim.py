"""Taking a run's folder: for a new run, or to go on with an unfinished one.

A run is unfinished while its folder has no result.json, and can go on where a
checkpoint has a state, or where there is none: then from the beginning.
"""

import dataclasses
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

from experiments.trainer import run_dir
from experiments.trainer.config import TrainConfig
from experiments.trainer.lock import locked
from experiments.trainer.run_dir import (
  CHECKPOINTS,
  CONFIG,
  EVALUATION,
  METRICS,
  PAGE,
  PICTURE,
  PROFILE,
  REPORT,
  RESULT,
  SAMPLES,
  TENSORBOARD,
)
from lstm_jax.training import has_state, list_checkpoints

PREVIOUS = "previous"
OWN = "run", "overwrite", "resume", "mesh", "quiet"  # where, and not what
FILES = (
  METRICS,
  SAMPLES,
  PICTURE,
  PROFILE,
  EVALUATION,
  PAGE,
  REPORT,
  TENSORBOARD,
  RESULT,
  CHECKPOINTS,
  CONFIG,
)


@contextmanager
def claimed(
  config: TrainConfig, corpus_sha256: str
) -> Iterator[tuple[Path, bool]]:
  """Hold the folder of a run, with its configuration written, during the block.

  Yields:
    The folder, and whether it holds a run to go on with.

  Raises:
    ValueError: another process holds the folder; it has a finished run, or one
      of another configuration or corpus, and the configuration does not say
      that it may be overwritten; or something else of that name.
  """
  directory = Path(config.run) if config.run else _new_folder()
  _refuse_strangers(directory)
  directory.mkdir(parents=True, exist_ok=True)
  with locked(directory):
    yield directory, _prepare(directory, config, corpus_sha256)


def forget_previous(directory: Path) -> None:
  """Delete the run that was set aside for the folder's own, if any."""
  shutil.rmtree(directory / PREVIOUS, ignore_errors=True)


def to_go_on(program: str, config: TrainConfig, directory: Path) -> str:
  """Return what is said when a program was stopped: how it is called again."""
  again = sys.argv[1:]
  again += [] if config.run else [f"--run={directory}"]
  again += ["--nooverwrite"] if config.overwrite else []
  again += [] if config.resume else ["--resume"]
  return (
    f"to go on training:\n  python -m experiments.{program} {shlex.join(again)}"
  )


def _prepare(directory: Path, config: TrainConfig, corpus_sha256: str) -> bool:
  """Return whether the run in the folder goes on, or write a new one's."""
  record = run_dir.read_config(directory)
  if record is not None and not config.overwrite:
    if not (config.resume and _can_go_on(directory)):
      raise ValueError(
        f"{directory} already holds a run; --overwrite replaces it, "
        "another --run keeps it"
      )
    _refuse_changes(directory, record, config, corpus_sha256)
    return True
  if record is not None:
    _set_aside(directory)
  now = datetime.now().astimezone().isoformat(timespec="seconds")
  record = dataclasses.asdict(config) | run_dir.origin()
  record |= {"corpus_sha256": corpus_sha256, "started": now}
  run_dir.write_json(directory / CONFIG, record)
  return False


def _can_go_on(directory: Path) -> bool:
  checkpoints = directory / CHECKPOINTS
  steps = list_checkpoints(checkpoints)
  stateful = any(has_state(checkpoints, step) for step in steps)
  return (stateful or not steps) and not (directory / RESULT).exists()


def _refuse_strangers(directory: Path) -> None:
  present = [name for name in FILES if (directory / name).exists()]
  if present and run_dir.read_config(directory) is None:
    raise ValueError(
      f"{directory} holds {present[-1]}, which is not of a run: "
      "choose another --run"
    )


def _refuse_changes(
  directory: Path,
  record: dict[str, Any],
  config: TrainConfig,
  corpus_sha256: str,
) -> None:
  """Raise ValueError for an unfinished run of something else."""
  changes = [
    f"{name} is {record.get(name)!r} there and {value!r} here"
    for name, value in dataclasses.asdict(config).items()
    if name not in OWN and record.get(name) != value
  ]
  if changes:
    raise ValueError(
      f"{directory} holds an unfinished run of another configuration: "
      f"{'; '.join(changes)}; --overwrite replaces it, another --run keeps it"
    )
  if record.get("corpus_sha256") != corpus_sha256:
    raise ValueError(
      f"corpus {config.corpus} has changed since the run in {directory} began; "
      "--overwrite begins it again"
    )


def _set_aside(directory: Path) -> None:
  """Move a run into `previous`, until the run that replaces it has succeeded.

  A run that never reached a checkpoint does not take the place of one that did.
  The configuration moves last: without one, `previous` is not yet whole.
  """
  previous = directory / PREVIOUS
  whole = (previous / CONFIG).exists()
  if whole and not list_checkpoints(directory / CHECKPOINTS):
    for name in FILES:
      _delete(directory / name)
    return
  if whole:
    _delete(previous)
  previous.mkdir(exist_ok=True)
  for name in FILES:
    if (directory / name).exists():
      _delete(previous / name)
      (directory / name).rename(previous / name)


def _delete(path: Path) -> None:
  if path.is_dir():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)


def _new_folder() -> Path:
  """Make a folder of its own under runs/, named after the time."""
  stamp = datetime.now().strftime("%Y-%m-%d-%H%M%S")
  for number in count(1):
    directory = Path("runs") / (stamp if number == 1 else f"{stamp}-{number}")
    try:
      directory.mkdir(parents=True)
    except FileExistsError:
      continue
    return directory
  raise AssertionError("count has no end")
