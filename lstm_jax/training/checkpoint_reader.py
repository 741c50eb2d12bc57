"""Read checkpoints: their steps, their descriptions and their arrays.

Every array that is read, and every description, is compared with its checksum.
Each process reads whole arrays, into the memory of its host, without waiting
for other processes.
"""

import errno
import operator
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISDIR
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from lstm_jax.cells.checks import check_count
from lstm_jax.training.checkpoint import (
  CHECKSUMS,
  DESCRIPTION,
  PARAMS,
  STATE,
  CheckpointError,
  checkpoint_errors,
)
from lstm_jax.training.checksum import (
  find_damaged,
  json_checksum,
  named_leaves,
)
from lstm_jax.training.durable import check_files


class Checkpoint(NamedTuple):
  """One checkpoint of a directory."""

  step: int  # training steps made
  description: dict[str, Any]  # the JSON that was saved with the arrays


def list_checkpoints(directory: str | os.PathLike[str]) -> list[int]:
  """Return the steps of the complete checkpoints, in ascending order.

  Raises:
    OSError: the directory cannot be read. A missing one has no checkpoints.
  """
  directory = Path(directory)
  if not _mode(directory):
    return []
  names = [path.name for path in directory.iterdir() if S_ISDIR(_mode(path))]
  # A checkpoint's name is its step as `str` writes it, not "007" or "٣".
  return sorted(
    int(name) for name in names if name.isdecimal() and str(int(name)) == name
  )


def read_checkpoint(
  directory: str | os.PathLike[str], step: int | None = None
) -> Checkpoint:
  """Return the step and the description of one checkpoint, or of the newest.

  Raises:
    ValueError: step is not an integer ≥ 0.
    CheckpointError: the checkpoint is missing, unreadable or damaged.
  """
  directory = Path(directory)
  if step is None:
    with checkpoint_errors(f"{directory} cannot be read"):
      steps = list_checkpoints(directory)
    if not steps:
      raise CheckpointError(f"{directory} holds no checkpoint")
    step = steps[-1]
  with _reading(directory, step) as manager:
    description = dict(_read_json(manager, step, DESCRIPTION))
    checksums = _read_json(manager, step, CHECKSUMS)
    if checksums.get(DESCRIPTION) != json_checksum(description):
      raise CheckpointError(_damage(directory, step, "its description"))
    return Checkpoint(step, description)


def read_params(directory: str | os.PathLike[str], step: int, like: Any) -> Any:
  """Return the parameters of one checkpoint.

  Args:
    directory: the directory of checkpoints.
    step: the checkpoint's step.
    like: a tree of the expected arrays or numbers, or of their shapes and
      dtypes.

  Returns:
    A tree of NumPy arrays; `place` divides them over devices.

  Raises:
    ValueError: step is not an integer ≥ 0, or two arrays of `like` have the
      same name.
    CheckpointError: the checkpoint holds other arrays than `like`, or is
      missing, unreadable or damaged.
  """
  return _read_arrays(Path(directory), step, PARAMS, like)


def read_state(directory: str | os.PathLike[str], step: int, like: Any) -> Any:
  """Return the state of one checkpoint; see `read_params`.

  Raises:
    CheckpointError: also if the checkpoint was saved without a state.
  """
  return _read_arrays(Path(directory), step, STATE, like)


def has_state(directory: str | os.PathLike[str], step: int) -> bool:
  """Return whether a step has a checkpoint with a state to resume from.

  Raises:
    ValueError: step is not an integer ≥ 0.
    OSError: the directory of the step cannot be read.
  """
  check_count("step", step, 0)
  return S_ISDIR(_mode(Path(directory) / str(step) / STATE))


def _mode(path: Path) -> int:
  """Return the mode of a path, or 0 if there is no such path.

  Raises:
    OSError: the mode cannot be read. `Path.exists` and `Path.is_dir` return
      False in this case, from Python 3.14 on.
  """
  try:
    return path.stat().st_mode
  except OSError as error:
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
      return 0
    raise


def _read_arrays(directory: Path, step: int, item: str, like: Any) -> Any:
  like = jax.tree.map(  # numbers too were saved as arrays
    lambda leaf: leaf if hasattr(leaf, "dtype") else np.asarray(leaf), like
  )
  expected = _shapes({item: like})
  with _reading(directory, step) as manager:
    if item == STATE and not has_state(directory, step):
      raise CheckpointError(
        f"the checkpoint {directory}/{step} holds no state to resume from"
      )
    stored = manager.item_metadata(step)[item]
    if stored is None:  # the file with the names of the arrays is missing
      raise CheckpointError(
        f"the checkpoint {directory}/{step} cannot be read: the metadata of "
        f"its {item} are missing"
      )
    # orbax may return an object around the tree of the arrays' metadata.
    tree = {item: getattr(stored, "tree", stored)}
    _check_shapes(directory, step, _shapes(tree), expected)
    _check_chunks(directory, step, tree)
    # Broadcast zeros of NumPy (which take no memory) make orbax return NumPy
    # arrays: it would restore JAX arrays to the devices that wrote them.
    empty = jax.tree.map(
      lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape), like
    )
    arguments = ocp.args.Composite(**{item: ocp.args.StandardRestore(empty)})
    tree = manager.restore(step, args=arguments)[item]
    checksums = _read_json(manager, step, CHECKSUMS)
    if name := find_damaged({item: tree}, checksums):
      raise CheckpointError(_damage(directory, step, name))
    return tree


def _single_process() -> ocp.options.MultiprocessingOptions:
  """Return options by which orbax reads without waiting for other processes."""
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
    CHECKSUMS: ocp.JsonCheckpointHandler(),
  }
  check_count("step", step, 0)
  with checkpoint_errors(f"the checkpoint {directory}/{step} cannot be read"):
    if not S_ISDIR(_mode(directory / str(step))):
      raise CheckpointError(f"{directory} holds no checkpoint of step {step}")
    check_files(directory, (directory / str(step)).rglob("*"))
    options = ocp.CheckpointManagerOptions(
      create=False, multiprocessing_options=_single_process()
    )
    manager = ocp.CheckpointManager(
      directory.absolute(), options=options, item_handlers=handlers
    )
    try:
      yield manager
    finally:
      manager.close()


def _read_json(manager: ocp.CheckpointManager, step: int, item: str) -> Any:
  arguments = ocp.args.Composite(**{item: ocp.args.JsonRestore()})
  return manager.restore(step, args=arguments)[item]


def _damage(directory: Path, step: int, name: str) -> str:
  return (
    f"the checkpoint {directory}/{step} is damaged: {name} is not what was "
    "written"
  )


def _check_shapes(
  directory: Path, step: int, found: dict[str, str], expected: dict[str, str]
) -> None:
  """Raise CheckpointError where the stored arrays are not those expected."""
  for name in [*expected, *found]:
    if found.get(name) != expected.get(name):
      raise CheckpointError(
        f"the checkpoint {directory}/{step} is of another configuration: "
        f"{name} must be {expected.get(name, 'absent')}, "
        f"got {found.get(name, 'no such array')}"
      )


def _check_chunks(directory: Path, step: int, tree: Any) -> None:
  """Raise CheckpointError if an array is stored in chunks larger than itself.

  TensorStore unpacks whole chunks: a few bytes could fill the memory.
  """
  for name, leaf in named_leaves(tree).items():
    chunk = (leaf.storage and leaf.storage.chunk_shape) or ()
    largest = [max(size, 1) for size in leaf.shape]  # 1 if it has no elements
    if any(map(operator.gt, chunk, largest)):
      raise CheckpointError(
        f"the checkpoint {directory}/{step} is damaged: {name} of shape "
        f"{tuple(leaf.shape)} is stored in chunks of {tuple(chunk)}"
      )


def _shapes(tree: Any) -> dict[str, str]:
  """Return the dtype and shape of each leaf, by its path."""
  return {
    name: f"{leaf.dtype} {tuple(leaf.shape)}"
    for name, leaf in named_leaves(tree).items()
  }
