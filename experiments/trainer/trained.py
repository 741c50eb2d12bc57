"""Load the trained model of a run, also of one that is still training."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from experiments.trainer import run_dir
from experiments.trainer.checkpoint import MODEL_FLAGS
from experiments.trainer.config import TrainConfig
from experiments.trainer.data import stored_tokenizer
from experiments.trainer.format import escape_controls
from experiments.trainer.own_cell import init_shapes
from experiments.trainer.records import from_record, to_record
from experiments.trainer.run_dir import LOCK
from lstm_jax.cells.checks import check_count
from lstm_jax.language import (
  LanguageModel,
  LanguageParams,
  Tokenizer,
  language_model,
)
from lstm_jax.training import (
  Checkpoint,
  CheckpointError,
  list_checkpoints,
  read_checkpoint,
  read_params,
)

BEST, LAST = "best", "last"  # the values of --checkpoint
ATTEMPTS, PAUSE = 10, 0.1  # of `read_replaced`; seconds between attempts
Value = TypeVar("Value")


class Trained(NamedTuple):
  """A trained model, read from a run directory."""

  config: TrainConfig
  model: LanguageModel
  params: LanguageParams
  tokenizer: Tokenizer
  step: int  # training steps made
  val_loss: float | None  # None for a checkpoint between evaluations
  corpus_sha256: str


def load(directory: Path, checkpoint: str = BEST) -> Trained:
  """Return a model of a run, with averaged weights if the run averages.

  Args:
    directory: the run directory. The run may be training: see `read_replaced`.
    checkpoint: BEST is the checkpoint of the lowest validation loss, or before
      the first evaluation, the newest one. LAST is the checkpoint of a finished
      run's last training step, whatever its loss.

  Raises:
    ValueError: the directory holds no run or no usable checkpoint, or its
      config.json is damaged or of another model; or for LAST, the run is not
      finished, or it is a sweep, which keeps only its best member's weights.
  """
  return read_replaced(directory, lambda: _load(directory, checkpoint))


def read_replaced(directory: Path, read: Callable[[], Value]) -> Value:
  """Return what `read` returns of a run, which may be training meanwhile.

  A training run deletes old checkpoints as it writes new ones, even while they
  are being read. Then `read` is called again, and lists the checkpoints anew.

  Raises:
    CheckpointError: `read` raises it, and there are no checkpoints or no run is
      writing there; or `read` raises it at every attempt.
  """
  checkpoints = directory / run_dir.CHECKPOINTS
  for attempt in range(1, ATTEMPTS + 1):
    steps = list_checkpoints(checkpoints)
    try:
      return read()
    except CheckpointError:
      if list_checkpoints(checkpoints) == steps:
        locked = (directory / LOCK).exists()  # a run may be deleting one
        if not steps or not locked or attempt == ATTEMPTS:
          raise
    time.sleep(PAUSE)
  raise CheckpointError(
    f"no checkpoint in {checkpoints} can be read before the run that is "
    "training replaces it: try again, or after the run"
  )


def _load(directory: Path, checkpoint: str) -> Trained:
  record = run_dir.read_record(directory)
  config = run_dir.to_config(directory, record, TrainConfig())
  checkpoints = directory / run_dir.CHECKPOINTS
  if checkpoint == LAST:
    _check_has_last(directory, record)
    step, description = read_checkpoint(checkpoints)  # the newest
  else:
    step, description = _best_checkpoint(checkpoints)
  try:
    described = {name: description["model"][name] for name in MODEL_FLAGS}
    fields = dict(description["tokenizer"])
    tokenizer = stored_tokenizer(described["tokenizer"], fields)
    val_loss = description["val_loss"]
    if not isinstance(val_loss, int | float | None):
      raise ValueError(f"val_loss must be a number, got {val_loss!r}")
    built = from_record(TrainConfig(), to_record(TrainConfig()) | described)
    model = language_model(built.model, tokenizer.size)
  except (KeyError, TypeError, ValueError) as error:
    raise CheckpointError(
      f"the checkpoint in {checkpoints} describes no model: {error}"
    ) from None
  for name, value in described.items():
    if record[name] != value:
      raise ValueError(
        "the checkpoint is of another configuration than "
        f"{directory / run_dir.CONFIG}: {name} is {value!r} in the "
        f"checkpoint and {record[name]!r} in {run_dir.CONFIG}"
      )
  like = init_shapes(config.model.cell, model.init)
  params = read_params(checkpoints, step, like)
  return Trained(
    config,
    model,
    jax.tree.map(jnp.asarray, params),
    tokenizer,
    step,
    val_loss,
    str(record.get(run_dir.SHA256)),
  )


def _check_has_last(directory: Path, record: dict[str, Any]) -> None:
  """Raise ValueError unless a run is finished, and not a sweep."""
  if run_dir.is_sweep(record):
    raise ValueError(
      f"{directory} is a sweep, which keeps the weights of its best member: "
      "the checkpoint must be best, got last"
    )
  if not (directory / run_dir.RESULT).exists():
    raise ValueError(
      f"the run in {directory} is not finished: the checkpoint must be best, "
      "got last"
    )


def _best_checkpoint(checkpoints: Path) -> Checkpoint:
  """Return the checkpoint that the newest readable one names as the best.

  Before the first evaluation, it names none, and is itself returned.

  A kill while a checkpoint is deleted leaves a directory that cannot be read:
  standard error names it.
  """
  first_error = None
  steps = list_checkpoints(checkpoints)
  for step in reversed(steps):
    try:
      newest = read_checkpoint(checkpoints, step)
    except CheckpointError as error:
      if list_checkpoints(checkpoints) != steps:
        raise  # the run has replaced some: `read_replaced` reads anew
      print(escape_controls(f"{error}: not used"), file=sys.stderr)
      first_error = first_error or error
      continue
    try:
      best = newest.description.get("progress", {}).get("best")
      if not best:
        return newest
      _, best_step = best  # the loss, and its step
      check_count("the best step", best_step, 0)
    except (AttributeError, TypeError, ValueError) as error:
      raise CheckpointError(
        f"the checkpoint {checkpoints}/{step} names no best one: {error}"
      ) from None
    if best_step == step:
      return newest
    return read_checkpoint(checkpoints, best_step)
  raise first_error or CheckpointError(f"{checkpoints} holds no checkpoint")
