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
from experiments.trainer.config import TrainConfig
from experiments.trainer.data import stored_tokenizer
from experiments.trainer.format import escape_controls
from experiments.trainer.own_cell import init_shapes
from experiments.trainer.records import from_record, to_record
from experiments.trainer.setup import TrainSetup
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
SPLIT_FLAGS = "val_fraction", "test_fraction", "dev_fraction"
# Flags of the model in which a run must be equal to that of --init_from;
# `check_fits` compares the symbols of the vocabulary themselves.
SHAPE_FLAGS = (
  *("tokenizer", "cell", "tied"),
  *("num_layers", "hidden_size", "embedding_size"),
)
LISTED = 5  # symbols of another vocabulary that an error names
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
  for _ in range(ATTEMPTS - 1):
    steps = list_checkpoints(checkpoints)
    try:
      return read()
    except CheckpointError:
      is_training = steps and (directory / run_dir.LOCK).exists()
      if list_checkpoints(checkpoints) == steps and not is_training:
        raise
    time.sleep(PAUSE)
  return read()


def _load(directory: Path, checkpoint: str) -> Trained:
  record = run_dir.read_record(directory)
  config = run_dir.to_config(directory, record, TrainConfig())
  checkpoints = directory / run_dir.CHECKPOINTS
  if checkpoint == LAST:
    sweep = "a sweep, which keeps the weights of its best member"
    reason = sweep if run_dir.is_sweep(record) else "not finished"
    if reason == sweep or run_dir.read_result(directory) is None:
      raise ValueError(
        f"{directory} is {reason}: the checkpoint must be best, got last"
      )
    step, description = read_checkpoint(checkpoints)  # the newest
  else:
    step, description = _best_checkpoint(checkpoints)
  try:
    described = {name: description["model"][name] for name in MODEL_FLAGS}
    kind, val_loss = described["tokenizer"], description["val_loss"]
    tokenizer = stored_tokenizer(kind, description["tokenizer"])
  except (KeyError, TypeError) as error:
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
  built = from_record(TrainConfig(), to_record(TrainConfig()) | described)
  model = language_model(built.model, tokenizer.size)
  like = init_shapes(model.init)
  params = jax.tree.map(jnp.asarray, read_params(checkpoints, step, like))
  sha256 = str(record.get(run_dir.SHA256))
  return Trained(config, model, params, tokenizer, step, val_loss, sha256)


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
    best = newest.description.get("progress", {}).get("best")
    return read_checkpoint(checkpoints, best[1]) if best else newest
  raise first_error or CheckpointError(f"{checkpoints} holds no checkpoint")


def load_members(directories: list[Path], checkpoint: str) -> list[Trained]:
  """Load the models of runs that have one corpus, vocabulary and splits.

  Raises:
    ValueError: a run is given twice; the runs differ in their corpus,
      vocabulary or splits; or as `load`.
  """
  places = [directory.resolve() for directory in directories]
  for number, directory in enumerate(directories):
    if places[number] in places[:number]:
      raise ValueError(f"{directory} is given twice")
  members = [load(directory, checkpoint) for directory in directories]
  first = _text_of(members[0])
  for directory, member in zip(directories, members, strict=True):
    for what, value in _text_of(member).items():
      if value != first[what]:
        raise ValueError(
          "the runs must have the same corpus, vocabulary and splits: "
          f"{what} of {directory} differs from that of {directories[0]}"
        )
  return members


def _text_of(trained: Trained) -> dict[str, Any]:
  """Return, by name, what the members of an ensemble must have in common."""
  splits = {f"--{f}": getattr(trained.config.data, f) for f in SPLIT_FLAGS}
  corpus = {"the corpus": trained.corpus_sha256}
  return corpus | {"the vocabulary": trained.tokenizer} | splits


def cost(directories: list[Path], members: list[Trained]) -> dict[str, Any]:
  """Return the number of members, and their parameters and training_seconds.

  The seconds are None if those of any member are unknown: of a run that is not
  finished, or of a sweep, whose result.json has those of all its members.
  """
  leaves = jax.tree.leaves([member.params for member in members])
  seconds: list[float] = []
  for directory in directories:
    result = run_dir.read_result(directory) or {}
    is_sweep = run_dir.is_sweep(run_dir.read_config(directory) or {})
    if "seconds" in result and not is_sweep:
      seconds.append(result["seconds"])
  known = len(seconds) == len(directories)
  return {
    "members": len(members),
    "parameters": sum(leaf.size for leaf in leaves),
    "training_seconds": round(sum(seconds), 3) if known else None,
  }


def read_pretrained(setup: TrainSetup) -> Trained | None:
  """Return the trained model that --init_from names, its weights on the host.

  Returns:
    None without --init_from, and if this run has a checkpoint of its own to
    resume from.

  Raises:
    ValueError: the directory holds no trained model, or one of another shape
      or vocabulary than this run's, or of other splits of the same corpus.
  """
  source, job = setup.config.init_from, setup.config.job
  checkpoints = Path(job.run) / run_dir.CHECKPOINTS
  if not source or (job.may_resume and list_checkpoints(checkpoints)):
    return None
  try:
    trained = load(Path(source))
  except ValueError as error:
    raise ValueError(f"--init_from: {error}") from None
  check_fits(setup, trained, f"--init_from={source}", SHAPE_FLAGS)
  return on_host(trained)


def on_host(trained: Trained) -> Trained:
  """Return a model whose weights are in the memory of the host."""
  return trained._replace(params=jax.tree.map(np.asarray, trained.params))


def check_fits(
  setup: TrainSetup, trained: Trained, name: str, flags: Sequence[str] = ()
) -> None:
  """Raise ValueError unless a run can learn from a trained model.

  Both must have one vocabulary, equal `flags`, and on the same text the same
  splits: the model may know text that the run is tested on. The message begins
  with `name`, of the flag that gives the model.
  """
  ours, theirs = to_record(setup.config), to_record(trained.config)
  is_same_text = trained.corpus_sha256 == setup.corpus.sha256
  for flag in (*flags, *(SPLIT_FLAGS if is_same_text else ())):
    if theirs[flag] != ours[flag]:
      raise ValueError(
        f"{name} does not fit: {flag} must be {ours[flag]!r}, as in this run, "
        f"got {theirs[flag]!r}"
      )
  here, there = setup.corpus.tokenizer.symbols, trained.tokenizer.symbols
  if tuple(here) != tuple(there):
    differing = sorted({*here} ^ {*there})[:LISTED]
    raise ValueError(
      f"{name} has another vocabulary: it must be the {len(here):,} "
      f"{setup.corpus.tokenizer.unit}s of {setup.config.data.corpus}, got "
      f"{len(there):,}; only one of them has {differing}"
    )
