"""Load the trained model of a run, also of one that is still training."""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from experiments.trainer import run_dir
from experiments.trainer.checkpoint import MODEL_FLAGS
from experiments.trainer.config import DataConfig, TrainConfig
from experiments.trainer.data import stored_tokenizer
from experiments.trainer.files import are_numbers
from experiments.trainer.format import escape_controls
from experiments.trainer.own_cell import init_shapes
from experiments.trainer.records import from_record, to_record
from experiments.trainer.run_dir import CHECKPOINTS, LOCK
from experiments.trainer.setup import TrainSetup
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


SPLIT_FLAGS = "val_fraction", "test_fraction", "dev_fraction"


class Cost(NamedTuple):
  """What the members of an ensemble cost together."""

  members: int
  parameters: int
  training_seconds: float | None  # None if unknown for any member


def load_members(directories: list[Path], checkpoint: str) -> list[Trained]:
  """Load the models of runs that have one corpus, vocabulary and splits.

  Raises:
    ValueError: a run is given twice; the runs differ in their corpus,
      vocabulary or splits; or as `load`.
  """
  seen: set[Path] = set()
  for directory in directories:
    place = directory.resolve()
    if place in seen:
      raise ValueError(f"{directory} is given twice")
    seen.add(place)
  members = [load(directory, checkpoint) for directory in directories]
  for directory, member in zip(directories, members, strict=True):
    difference = _difference(members[0], member)
    if difference:
      raise ValueError(
        f"the runs must have the same corpus, vocabulary and splits: "
        f"{difference} of {directory} differs from that of "
        f"{directories[0]}"
      )
  return members


def _difference(one: Trained, other: Trained) -> str | None:
  """Return what two runs differ in; None where they can be averaged."""
  if one.corpus_sha256 != other.corpus_sha256:
    return "the corpus"
  if one.tokenizer != other.tokenizer:
    return "the vocabulary"
  flag = differing_split(one.config.data, other.config.data)
  return flag and f"--{flag}"


def differing_split(one: DataConfig, other: DataConfig) -> str | None:
  """Return the first of SPLIT_FLAGS in which two runs differ, or None."""
  differing = (f for f in SPLIT_FLAGS if getattr(one, f) != getattr(other, f))
  return next(differing, None)


def cost(directories: list[Path], members: list[Trained]) -> Cost:
  """Return what the members cost together."""
  leaves = jax.tree.leaves([member.params for member in members])
  seconds = [_training_seconds(directory) for directory in directories]
  known = [s for s in seconds if s is not None]
  return Cost(
    len(members),
    sum(leaf.size for leaf in leaves),
    round(sum(known), 3) if len(known) == len(seconds) else None,
  )


def _training_seconds(directory: Path) -> float | None:
  """Return how many seconds a run has trained.

  None for a sweep, a run that is not finished, and a damaged result.json.
  """
  if run_dir.is_sweep(run_dir.read_config(directory) or {}):
    return None  # its result.json has the seconds of all members together
  result = run_dir.read_result(directory) or {}
  seconds: Any = result.get("seconds")
  return float(seconds) if are_numbers([seconds]) else None


# Flags that must be equal; `check_vocabulary` compares the symbols themselves.
MODEL = (
  "tokenizer",
  "cell",
  "tied",
  "num_layers",
  "hidden_size",
  "embedding_size",
)
LISTED = 5  # symbols of another vocabulary that an error names


def read_pretrained(setup: TrainSetup) -> Trained | None:
  """Return the trained model that --init_from names, its weights on the host.

  Returns:
    None without --init_from, and if this run has a checkpoint of its own to
    resume from.

  Raises:
    ValueError: the directory holds no trained model, or one of another shape
      or vocabulary than this run's, or of other splits of the same corpus.
  """
  config, job = setup.config, setup.config.job
  if not config.init_from:
    return None
  if job.may_resume and list_checkpoints(Path(job.run) / CHECKPOINTS):
    return None
  try:
    trained = load(Path(config.init_from))
  except ValueError as error:
    raise ValueError(f"--init_from: {error}") from None
  _check_fits(setup, trained)
  return trained._replace(params=jax.tree.map(np.asarray, trained.params))


def _check_fits(setup: TrainSetup, trained: Trained) -> None:
  """Raise ValueError unless the weights are of this run's model and splits."""
  expected, found = to_record(setup.config), to_record(trained.config)
  name = f"--init_from={setup.config.init_from}"
  for flag in MODEL:
    if found[flag] != expected[flag]:
      raise ValueError(
        f"{name} has another model: {flag} must be {expected[flag]!r}, as in "
        f"this run, got {found[flag]!r}"
      )
  check_vocabulary(setup, trained, name)
  if trained.corpus_sha256 == setup.corpus.sha256:
    check_splits(setup, trained, name)


def check_splits(setup: TrainSetup, trained: Trained, name: str) -> None:
  """Raise ValueError where a model may know text that a run is tested on.

  Args:
    setup: of the run.
    trained: the model, which has learned from the same text.
    name: the flag that names the model, with its value, for the message.
  """
  ours, theirs = setup.config.data, trained.config.data
  if flag := differing_split(ours, theirs):
    raise ValueError(
      f"{name} has other splits: {flag} must be {getattr(ours, flag)}, as in "
      f"this run, got {getattr(theirs, flag)}"
    )


def check_vocabulary(setup: TrainSetup, trained: Trained, name: str) -> None:
  """Raise ValueError where a model has another vocabulary than a run's corpus.

  Args:
    setup: of the run.
    trained: the model.
    name: the flag that names the model, with its value, for the message.
  """
  here, there = setup.corpus.tokenizer.symbols, trained.tokenizer.symbols
  if tuple(here) != tuple(there):
    unit = setup.corpus.tokenizer.unit
    differences = _listed(", without ", here, there)
    differences += _listed(", with ", there, here)
    raise ValueError(
      f"{name} has another vocabulary: it must be the {len(here):,} {unit}s "
      f"of {setup.config.data.corpus}, got {len(there):,}"
      f"{differences or ' in another order'}"
    )


def _listed(word: str, some: Sequence[str], others: Sequence[str]) -> str:
  """Return `word` and the first symbols of `some` not in `others`, or ""."""
  known = set(others)
  symbols = [repr(symbol) for symbol in some if symbol not in known]
  if not symbols:
    return ""
  more = f" and {len(symbols) - LISTED} more" if len(symbols) > LISTED else ""
  return word + ", ".join(symbols[:LISTED]) + more
