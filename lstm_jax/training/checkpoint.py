"""Checkpoints of a model: its parameters, and what describes them.

Written by orbax: arrays by TensorStore, the description as JSON, each
checkpoint into a temporary folder that is renamed once it is whole. Reading
one runs no code from it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp


class Checkpoint(NamedTuple):
  """The newest checkpoint of a folder."""

  step: int  # updates made
  description: dict[str, Any]


class CheckpointError(ValueError):
  """A folder without the checkpoint that was asked for."""


class CheckpointWriter:
  """Writes checkpoints in the background; keeps the newest one.

  Of several processes the first writes, and waits for no other.
  """

  def __init__(self, folder: Path):
    self._manager = None
    if jax.process_index() == 0:
      folder.mkdir(parents=True, exist_ok=True)
      options = ocp.CheckpointManagerOptions(
        max_to_keep=1, create=False, multiprocessing_options=_alone()
      )
      self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

  def save(self, step: int, params: Any, description: dict[str, Any]) -> None:
    """Save params and a JSON description; returns once they are copied.

    Raises:
      CheckpointError: the folder holds a checkpoint of this step or a later.
    """
    arguments = ocp.args.Composite(
      params=ocp.args.StandardSave(params),
      description=ocp.args.JsonSave(description),
    )
    if self._manager and not self._manager.save(step, args=arguments):
      raise CheckpointError(f"there is a checkpoint of update {step} or later")

  def close(self) -> None:
    """Wait until what was saved is on the disk."""
    if self._manager:
      self._manager.wait_until_finished()
      self._manager.close()


def read_checkpoint(folder: Path) -> Checkpoint:
  """Return the newest checkpoint's step and description.

  Raises:
    CheckpointError: the folder has no checkpoint, or one that cannot be read.
  """
  with _reading(folder) as manager:
    step = manager.latest_step()
    if step is None:
      raise CheckpointError(f"{folder} holds no checkpoint")
    arguments = ocp.args.Composite(description=ocp.args.JsonRestore())
    description = manager.restore(step, args=arguments).description
    return Checkpoint(step, dict(description))


def read_params(folder: Path, step: int, like: Any) -> Any:
  """Return the parameters of one checkpoint.

  Args:
    folder: the folder of checkpoints.
    step: which one.
    like: the tree of arrays (or their shapes and dtypes) that is expected.

  Raises:
    CheckpointError: the checkpoint holds other tensors than `like`, or cannot
      be read.
  """
  with _reading(folder) as manager:
    stored = manager.item_metadata(step)["params"]
    _compare(folder, getattr(stored, "tree", stored), like)
    arguments = ocp.args.Composite(params=ocp.args.StandardRestore(like))
    return manager.restore(step, args=arguments).params


def _alone() -> ocp.options.MultiprocessingOptions:
  """Have orbax take this process for the only one."""
  index = jax.process_index()
  return ocp.options.MultiprocessingOptions(
    primary_host=index,
    active_processes={index},
    barrier_sync_key_prefix=f"process{index}",
  )


@contextmanager
def _reading(folder: Path) -> Iterator[ocp.CheckpointManager]:
  if not folder.is_dir():
    raise CheckpointError(f"{folder} holds no checkpoint")
  # The handlers are named, so that metadata can be read before the arrays.
  handlers = {
    "params": ocp.StandardCheckpointHandler(),
    "description": ocp.JsonCheckpointHandler(),
  }
  try:
    options = ocp.CheckpointManagerOptions(
      create=False, multiprocessing_options=_alone()
    )
    manager = ocp.CheckpointManager(
      folder.absolute(), options=options, item_handlers=handlers
    )
    try:
      yield manager
    finally:
      manager.close()
  except CheckpointError:
    raise
  except Exception as error:  # orbax and TensorStore raise bare Exceptions
    reason = str(error).strip().split("\n")[0][:200]
    message = f"the checkpoint in {folder} cannot be read: {reason}"
    raise CheckpointError(message) from None


def _compare(folder: Path, stored: Any, like: Any) -> None:
  found, expected = _shapes(stored), _shapes(like)
  for name in [*expected, *found]:
    if found.get(name) != expected.get(name):
      raise CheckpointError(
        f"the checkpoint in {folder} is of another configuration: {name} must "
        f"be {expected.get(name, 'absent')}, got {found.get(name, 'none')}"
      )


def _shapes(tree: Any) -> dict[str, str]:
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator="."): (
      f"{np.dtype(leaf.dtype)} {tuple(leaf.shape)}"
    )
    for path, leaf in leaves
  }
