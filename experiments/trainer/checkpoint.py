"""Going on with a run: the newest checkpoint that is whole, and what it holds.

What the rest of a run depends on is in a checkpoint (parameters, optimiser,
averages, carried state, step, what the journal has still to write) or follows
from the configuration and the step (the noise, the epochs, the samples' keys).
So a run that goes on computes, bit by bit, what one that never stopped does.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
from rich.console import Console

from experiments.trainer import run_dir
from lstm_jax.language import LanguageParams
from lstm_jax.training import (
  Average,
  CheckpointError,
  TrainState,
  begin_average,
  list_checkpoints,
  read_checkpoint,
  read_params,
  read_state,
  zero_carry,
)

Found = TypeVar("Found")
LOGS = run_dir.METRICS, run_dir.SAMPLES


class Progress(NamedTuple):
  """Where a run stands after an update, beside its `TrainState`."""

  batch_size: int  # of the carried state
  averaging: bool  # whether the weights are averaged since a look (NT-ASGD)
  looks: list[float]  # every watched loss so far, nats per token
  best: tuple[float, int] | None  # the lowest of them, and after which update
  pending: list[list[float]]  # metrics of the updates that no row has yet
  pending_seconds: float  # that they took
  seconds: float  # of the updates that rows have
  skipped: tuple[int, int]  # updates not finite: of all, and just now in a row
  bytes: dict[str, int]  # of each log


class Restored(NamedTuple):
  """What a checkpoint of an unfinished run holds."""

  state: TrainState
  average: Average | None
  progress: Progress
  best: LanguageParams | None  # of progress.best


def log_bytes(directory: Path) -> dict[str, int]:
  """Return how long each of the run's logs is."""
  paths = {name: directory / name for name in LOGS}
  return {n: p.stat().st_size if p.exists() else 0 for n, p in paths.items()}


def cut_logs(
  directory: Path, lengths: dict[str, int], console: Console
) -> None:
  """Cut from the logs what was written after the checkpoint.

  One that has lost some of what was written before, as when the power failed,
  keeps its whole lines.
  """
  for name, length in log_bytes(directory).items():
    path, wanted = directory / name, lengths.get(name, 0)
    if length > wanted:
      os.truncate(path, wanted)
    elif length < wanted:
      console.print(f"{path} has lost {wanted - length} bytes", soft_wrap=True)
      if length:
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)


def restore(
  directory: Path, state: TrainState, console: Console
) -> Restored | None:
  """Return what the newest whole checkpoint holds; None before the first.

  Args:
    directory: of the run.
    state: like the one to be read.
    console: where damaged checkpoints are named.

  Raises:
    CheckpointError: there are checkpoints, and all are damaged.
  """
  checkpoints = directory / run_dir.CHECKPOINTS
  return newest(
    checkpoints,
    lambda step: _restore(checkpoints, step, state, console),
    console,
  )


def newest(
  checkpoints: Path, read: Callable[[int], Found], console: Console
) -> Found | None:
  """Return what `read` makes of the newest step that it can read.

  Args:
    checkpoints: the folder; None is returned where it has none.
    read: raises CheckpointError for the damaged, which are named.
    console: where.

  Raises:
    CheckpointError: there are checkpoints, and all are damaged.
  """
  steps = list_checkpoints(checkpoints)
  for step in reversed(steps):
    try:
      return read(step)
    except CheckpointError as error:
      console.print(f"{error}: not used", soft_wrap=True)
  if steps:
    raise CheckpointError(
      f"none of the checkpoints in {checkpoints} can be used; --overwrite "
      "begins the run again"
    )
  return None


def _restore(
  checkpoints: Path,
  step: int,
  state: TrainState,
  console: Console,
) -> Restored:
  progress = read_progress(checkpoints, step, Progress)
  like = saved(
    state._replace(carry=zero_carry(state.carry, progress.batch_size)),
    begin_average(state.params) if progress.averaging else None,
  )
  found = read_state(checkpoints, step, like)
  best = None
  if progress.best:
    try:
      best = read_params(checkpoints, progress.best[1], state.params)
    except CheckpointError as error:
      console.print(f"{error}: the best is forgotten", soft_wrap=True)
      progress = progress._replace(best=None)
  return Restored(found["state"], found["average"], progress, best)


def read_progress(
  checkpoints: Path, step: int, kind: Callable[..., Found]
) -> Found:
  """Return where a run of that kind stood, of what a checkpoint says.

  Raises:
    CheckpointError: it says nothing of the kind, or cannot be read.
  """
  _, description = read_checkpoint(checkpoints, step)
  try:
    return kind(**description["progress"])
  except (KeyError, TypeError) as error:
    raise CheckpointError(
      f"the checkpoint of update {step} in {checkpoints} describes no such "
      f"run: {error}"
    ) from None


def saved(state: TrainState, average: Average | None) -> dict[str, Any]:
  """Return the tree that a checkpoint keeps of a run."""
  return {"state": state, "average": average}


def carried_streams(state: TrainState) -> int:
  """Return B of the carried state."""
  return int(jax.tree.leaves(state.carry)[0].shape[-2])
