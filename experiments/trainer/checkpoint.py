"""Checkpoints of a run, to resume it.

A checkpoint holds the train state (parameters, average, optimizer state, step,
and the carried state: the recurrent state after the last batch) and the
`Progress` of the run. All else that the rest of the run depends on, such as
noise, batches and sampling keys, follows from the configuration and the step.
So on a CPU, a resumed run computes, bit by bit, what an uninterrupted one does.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from rich.console import Console

from experiments.trainer import run_dir
from experiments.trainer.config import TrainConfig
from experiments.trainer.format import format_nats
from experiments.trainer.records import leaves, to_record
from lstm_jax.language import (
  LanguageParams,
  ModelConfig,
  Tokenizer,
)
from lstm_jax.training import (
  CheckpointError,
  TrainState,
  list_checkpoints,
  read_checkpoint,
  read_params,
  read_state,
  zero_carry,
)

Value = TypeVar("Value")
LOGS = run_dir.METRICS, run_dir.SAMPLES
# Flags of how a run computes; its model can be rebuilt without them.
COMPUTATION = "compute_dtype", "implementation"
# The flags that a model is rebuilt from.
MODEL_FLAGS = (
  *(
    leaf.name for leaf in leaves(ModelConfig()) if leaf.name not in COMPUTATION
  ),
  "tokenizer",
  "min_count",
)


class Progress(NamedTuple):
  """Where a run stands after a training step, beside its train state.

  A row, of metrics.jsonl, has the mean metrics of several training steps.
  """

  batch_size: int  # of the carried state
  val_losses: list[float]  # of every evaluation so far, nats per token
  best: tuple[float, int] | None  # the lowest of them, and its step
  # [loss, grad_norm, num_tokens] of each step since the last row
  pending: list[list[float]]
  pending_seconds: float  # that those steps took
  seconds: float  # of the steps in the rows so far
  # Non-finite steps in the rows so far: in all, and consecutive at the end.
  skipped: tuple[int, int]
  log_bytes: dict[str, int]  # length of each log


class Restored(NamedTuple):
  """An unfinished run, read from a checkpoint."""

  state: TrainState
  progress: Progress
  best_params: LanguageParams | None  # those of progress.best, unless lost


def describe(config: TrainConfig, tokenizer: Tokenizer) -> dict[str, Any]:
  """Return the part of a checkpoint's description that its model needs."""
  record = to_record(config)
  flags = {name: record[name] for name in MODEL_FLAGS}
  return {"model": flags, "tokenizer": tokenizer._asdict()}


def carried_batch_size(state: TrainState) -> int:
  """Return B of the carried state, h [B, H], in a sweep h [members, B, H]."""
  return int(state.carry[0].h.shape[-2])


def log_bytes(directory: Path) -> dict[str, int]:
  """Return the length of each log of a run."""
  paths = {name: directory / name for name in LOGS}
  return {n: p.stat().st_size if p.exists() else 0 for n, p in paths.items()}


def truncate_logs(
  directory: Path, lengths: dict[str, int], console: Console
) -> None:
  """Cut the logs to their lengths at the checkpoint that a run resumes from.

  A log that is shorter than it was at the checkpoint, as after a power failure,
  keeps its complete lines. If the run was then resumed, and killed before its
  next checkpoint, the log has grown again: rows of steps after the checkpoint
  may stay, and are then written a second time.
  """
  for name, length in log_bytes(directory).items():
    path, expected = directory / name, lengths.get(name, 0)
    if length < expected:
      console.print(
        f"{path} has lost {expected - length} bytes", soft_wrap=True
      )
    if length and length != expected:
      kept = path.read_bytes()[:expected]
      os.truncate(path, kept.rfind(b"\n") + 1)


def restore(
  directory: Path, state: TrainState, console: Console
) -> Restored | None:
  """Return the newest usable checkpoint of a run; None if it has none.

  Args:
    directory: the run directory.
    state: a state with the expected shapes and dtypes.
    console: prints which checkpoints are damaged.

  Raises:
    CheckpointError: there are checkpoints, and none can be used.
  """
  checkpoints = directory / run_dir.CHECKPOINTS

  def read(step: int) -> Restored:
    progress = read_progress(checkpoints, step, Progress)
    restored = read_resized_state(checkpoints, step, state, progress.batch_size)
    consequence = "and later evaluations choose others"
    best_params = read_best(
      checkpoints, progress.best, state.params, consequence, console
    )
    return Restored(restored, progress, best_params)

  return read_newest(checkpoints, read, console)


def read_best(
  checkpoints: Path,
  best: tuple[float, int] | None,
  params: LanguageParams,
  consequence: str,
  console: Console,
) -> LanguageParams | None:
  """Return the weights of the lowest loss so far.

  Args:
    checkpoints: the directory of checkpoints.
    best: that loss and its step; None if there is none.
    params: weights with the expected shapes and dtypes.
    consequence: what follows if they are damaged, the end of the message.
    console: prints that message.

  Returns:
    The weights; None if there are none yet, or they are damaged.
  """
  if not best:
    return None
  loss, step = best
  try:
    return read_params(checkpoints, step, params)
  except CheckpointError as error:
    console.print(
      f"{error}: the best weights, of step {step} and a loss of "
      f"{format_nats(loss)}, are lost, {consequence}",
      soft_wrap=True,
    )
    return None


def read_newest(
  checkpoints: Path, read: Callable[[int], Value], console: Console
) -> Value | None:
  """Return what `read` returns for the newest step that it can read.

  Args:
    checkpoints: the directory of checkpoints.
    read: reads one step; raises CheckpointError for a damaged checkpoint.
    console: prints which checkpoints are damaged.

  Returns:
    None if there is no checkpoint.

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
      "starts the run again"
    )
  return None


def read_progress(
  checkpoints: Path, step: int, kind: Callable[..., Value]
) -> Value:
  """Return the progress that a checkpoint describes, as a NamedTuple `kind`.

  Raises:
    CheckpointError: it describes another kind of run, or cannot be read.
  """
  _, description = read_checkpoint(checkpoints, step)
  try:
    return kind(**description["progress"])
  except (KeyError, TypeError) as error:
    raise CheckpointError(
      f"the checkpoint of step {step} in {checkpoints} is of another kind of "
      f"run, or of another version: {error}"
    ) from None


def read_resized_state(
  checkpoints: Path, step: int, state: TrainState, batch_size: int
) -> TrainState:
  """Return a checkpoint's train state, with the carried state of a batch size.

  With --late_batch_size, it may differ from the batch size of `state`.

  Raises:
    CheckpointError: it has other arrays than `state`, or cannot be read.
  """
  like = state._replace(carry=zero_carry(state.carry, batch_size))
  return read_state(checkpoints, step, like)
