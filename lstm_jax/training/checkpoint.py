"""Checkpoints: a model's parameters, what describes them, and a run's state.

Written by orbax: arrays by TensorStore, descriptions as JSON, each checkpoint
into a temporary folder that is renamed once it is whole. A checkpoint is sealed
by the SHA-256 of each array and of its description, and what is read back is
compared with that: orbax alone would return an array in which a bit has turned.
BatchingConfig one runs no code from it.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from lstm_jax.training.checksum import (
  array_checksums,
  named_leaves,
  text_checksum,
)

PARAMS, STATE = "params", "state"
DESCRIPTION, SEAL = "description", "seal"
LAST = 2  # checkpoints kept beside the best


class Checkpoint(NamedTuple):
  """One checkpoint of a folder."""

  step: int  # updates made
  description: dict[str, Any]


class CheckpointError(ValueError):
  """A folder without the checkpoint that was asked for."""


class CheckpointWriter:
  """Writes checkpoints in the background; keeps the last two and the best.

  What a killed writer left unfinished in the folder is removed.
  """

  def __init__(self, directory: Path):
    self._kept = _Kept()
    options = ocp.CheckpointManagerOptions(
      preservation_policy=self._kept,
      cleanup_tmp_directories=True,
      create=False,
      multiprocessing_options=_alone(),
    )
    with _as_errors(f"no checkpoint can be written to {directory}"):
      directory.mkdir(parents=True, exist_ok=True)
      self._manager = ocp.CheckpointManager(
        directory.absolute(), options=options
      )

  def save(
    self,
    step: int,
    params: Any,
    description: dict[str, Any],
    *,
    state: Any = None,
    best: int | None = None,
  ) -> None:
    """Save the arrays and a JSON description; returns once they are copied.

    Args:
      step: updates made.
      params: what `read_params` reads.
      description: what `read_checkpoint` returns.
      state: what `read_state` reads; None for nothing.
      best: the step of the best checkpoint, which is kept.

    Raises:
      CheckpointError: the folder holds a checkpoint of this step or a later, or
        this one or the one before cannot be written.
    """
    trees = {PARAMS: params} | ({} if state is None else {STATE: state})
    trees = jax.tree.map(np.array, trees)  # copies: updates donate theirs
    arrays = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
    seal = array_checksums(trees) | {DESCRIPTION: text_checksum(description)}
    items = ocp.args.Composite(
      **arrays,
      description=ocp.args.JsonSave(description),
      seal=ocp.args.JsonSave(seal),
    )
    self._kept.best = best
    with _as_errors(f"the checkpoint of update {step} cannot be written"):
      if not self._manager.save(step, args=items):
        raise CheckpointError(
          f"there is a checkpoint of update {step} or later"
        )

  def forget_after(self, step: int) -> None:
    """Delete the checkpoints of later updates than `step`."""
    for later in self._manager.all_steps():
      if later > step:
        self._manager.delete(later)

  def wait(self) -> None:
    """Wait until what was saved is on the disk.

    Raises:
      CheckpointError: it could not be written.
    """
    with _as_errors("the last checkpoint cannot be written"):
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Wait as `wait` does, and let go of the folder."""
    self.wait()
    with _as_errors("the last checkpoint cannot be written"):
      self._manager.close()


class _Kept:
  """Orbax asks it which checkpoints to preserve."""

  best: int | None = None

  def should_preserve(self, checkpoints: Sequence[Any], *, context: Any):
    del context
    last = {info.step for info in checkpoints[-LAST:]}
    return [info.step in last | {self.best} for info in checkpoints]


def list_checkpoints(directory: Path) -> list[int]:
  """Return the updates of which the folder has whole checkpoints, ascending."""
  if not directory.is_dir():
    return []
  names = [path.name for path in directory.iterdir() if path.is_dir()]
  return sorted(int(name) for name in names if name.isdecimal())


def read_checkpoint(directory: Path, step: int | None = None) -> Checkpoint:
  """Return the step and the description of a checkpoint: by default the newest.

  Raises:
    CheckpointError: there is none, or it cannot be read, or is damaged.
  """
  steps = list_checkpoints(directory)
  if not steps or step not in (None, *steps):
    of_step = "" if step is None else f" of update {step}"
    raise CheckpointError(f"{directory} holds no checkpoint{of_step}")
  step = steps[-1] if step is None else step
  with _reading(directory, step) as manager:
    description = dict(_json(manager, step, DESCRIPTION))
    seal = _read_seal(manager, step)
    if seal and seal.get(DESCRIPTION) != text_checksum(description):
      raise CheckpointError(_damaged(directory, step, "its description"))
    return Checkpoint(step, description)


def read_params(directory: Path, step: int, like: Any) -> Any:
  """Return the parameters of one checkpoint.

  Args:
    directory: the folder of checkpoints.
    step: which one.
    like: the tree of arrays (or their shapes and dtypes) that is expected.

  Raises:
    CheckpointError: the checkpoint holds other tensors than `like`, cannot be
      read, or is damaged.
  """
  return _read_arrays(directory, step, PARAMS, like)


def read_state(directory: Path, step: int, like: Any) -> Any:
  """Return the state of one checkpoint; arguments and errors as read_params."""
  return _read_arrays(directory, step, STATE, like)


def has_state(directory: Path, step: int) -> bool:
  """Return whether a checkpoint holds a state to go on from."""
  return (directory / str(step) / STATE).is_dir()


def _read_arrays(directory: Path, step: int, item: str, like: Any) -> Any:
  with _reading(directory, step) as manager:
    stored = manager.item_metadata(step)[item]
    _compare(directory, getattr(stored, "tree", stored), like)
    arguments = ocp.args.Composite(**{item: ocp.args.StandardRestore(like)})
    tree = manager.restore(step, args=arguments)[item]
    seal = _read_seal(manager, step)
    for name, found in array_checksums({item: tree}).items():
      if seal and seal.get(name) != found:
        raise CheckpointError(_damaged(directory, step, name))
    return tree


def _alone() -> ocp.options.MultiprocessingOptions:
  """Have orbax take this process for the only one, and wait for no other."""
  index = jax.process_index()
  return ocp.options.MultiprocessingOptions(
    primary_host=index,
    active_processes={index},
    barrier_sync_key_prefix=f"process{index}",
  )


@contextmanager
def _reading(directory: Path, step: int) -> Iterator[ocp.CheckpointManager]:
  # The handlers are named, so that metadata can be read before the arrays.
  handlers = {
    PARAMS: ocp.StandardCheckpointHandler(),
    STATE: ocp.StandardCheckpointHandler(),
    DESCRIPTION: ocp.JsonCheckpointHandler(),
    SEAL: ocp.JsonCheckpointHandler(),
  }
  with _as_errors(f"the checkpoint in {directory}/{step} cannot be read"):
    options = ocp.CheckpointManagerOptions(
      create=False, multiprocessing_options=_alone()
    )
    manager = ocp.CheckpointManager(
      directory.absolute(), options=options, item_handlers=handlers
    )
    try:
      yield manager
    finally:
      manager.close()


@contextmanager
def _as_errors(what: str) -> Iterator[None]:
  """Raise CheckpointError for whatever orbax and TensorStore raise."""
  try:
    yield
  except CheckpointError:
    raise
  except Exception as error:  # often bare ones
    reason = str(error).strip().split("\n")[0]
    system = re.search(r"([^:]+) \[os_error_code=", reason)  # at its far end
    raise CheckpointError(
      f"{what}: {system[1].strip() if system else reason[:200]}"
    ) from None


def _json(manager: ocp.CheckpointManager, step: int, item: str) -> Any:
  arguments = ocp.args.Composite(**{item: ocp.args.JsonRestore()})
  return manager.restore(step, args=arguments)[item]


def _read_seal(
  manager: ocp.CheckpointManager, step: int
) -> Mapping[str, str] | None:
  """Return the seal, or None for a checkpoint of before there were seals."""
  directory = Path(manager.directory) / str(step)
  if not (directory / SEAL).exists() and not (directory / STATE).exists():
    return None
  return _json(manager, step, SEAL)


def _damaged(directory: Path, step: int, what: str) -> str:
  return (
    f"the checkpoint in {directory}/{step} is damaged: {what} is not what was "
    "written"
  )


def _compare(directory: Path, stored: Any, like: Any) -> None:
  found, expected = _shapes(stored), _shapes(like)
  for name in [*expected, *found]:
    if found.get(name) != expected.get(name):
      raise CheckpointError(
        f"the checkpoint in {directory} is of another configuration: {name} "
        f"must be {expected.get(name, 'absent')}, got {found.get(name, 'none')}"
      )


def _shapes(tree: Any) -> dict[str, str]:
  return {
    name: f"{np.dtype(leaf.dtype)} {tuple(leaf.shape)}"
    for name, leaf in named_leaves(tree).items()
  }
