"""Checkpoints: a model's parameters, a train state, and a JSON description.

Orbax writes them: arrays by TensorStore, descriptions as JSON, each checkpoint
into a temporary directory that is renamed once it is complete. A checkpoint
holds the SHA-256 of each array and of its description, which is compared when
it is read: orbax alone would return an array in which a bit has flipped. Arrays
that are split over devices are written in their shards, by all processes, and
have a checksum for each; they are read whole, into the memory of the host.
Reading a checkpoint runs no code from it. Its files are on the disk before the
rename, and the rename before `wait` returns in the first process, so that a
power failure costs no checkpoint that was complete.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from lstm_jax.training.checksum import (
  array_checksums,
  find_damaged,
  is_whole,
  json_checksum,
  named_leaves,
)
from lstm_jax.training.durable import make_directory, sync, sync_tree

PARAMS, STATE = "params", "state"
DESCRIPTION, CHECKSUMS = "description", "checksums"
LAST = 2  # checkpoints kept beside the best
TIMEOUT = 300  # seconds for which processes wait for each other's shards


class Checkpoint(NamedTuple):
  """One checkpoint of a directory."""

  step: int  # training steps made
  description: dict[str, Any]


class CheckpointError(ValueError):
  """A checkpoint is missing, unreadable or damaged, or cannot be written."""


class CheckpointWriter:
  """Writes checkpoints in the background; keeps the last two and the best.

  It removes what a killed writer left unfinished in the directory. Several
  processes write together: all of them must make the same calls, in the same
  order, and see the same directory. If one of them cannot write, the others
  raise an error after TIMEOUT seconds.
  """

  def __init__(self, directory: Path):
    self._policy = _Policy()
    self._directory = directory.absolute()
    self._unsynced: int | None = None  # the step of a new checkpoint
    options = ocp.CheckpointManagerOptions(
      async_options=ocp.AsyncOptions(
        timeout_secs=TIMEOUT, post_finalization_callback=self._sync_new
      ),
      preservation_policy=self._policy,
      cleanup_tmp_directories=True,
      create=False,
    )
    with _as_errors(f"no checkpoint can be written to {directory}"):
      make_directory(self._directory)
      self._manager = ocp.CheckpointManager(self._directory, options=options)

  def save(
    self,
    step: int,
    params: Any,
    description: dict[str, Any],
    *,
    state: Any = None,
    best: int | None = None,
  ) -> None:
    """Save the arrays and a JSON description, in the background.

    It returns once the arrays may be donated.

    Args:
      step: training steps made.
      params: the weights, which `read_params` will return; they may be split
        over devices, as the arrays of `state` may.
      description: what `read_checkpoint` will return; the first process's.
      state: what `read_state` will return; None to save none.
      best: the step of the best checkpoint, which this save keeps; None to keep
        the last two alone.

    Raises:
      CheckpointError: the directory holds a checkpoint of this or a later step,
        or this checkpoint or the one before it cannot be written.
    """
    trees = {PARAMS: params} | ({} if state is None else {STATE: state})
    trees = jax.tree.map(_copied, trees)  # training steps donate them
    arrays = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
    checksums = array_checksums(trees)
    checksums[DESCRIPTION] = json_checksum(description)
    items = ocp.args.Composite(
      **arrays,
      description=ocp.args.JsonSave(description),
      checksums=ocp.args.JsonSave(checksums),
    )
    self.wait()  # so that its error is not reported as this checkpoint's
    self._policy.best = best
    with _as_errors(f"the checkpoint of step {step} cannot be written"):
      if not self._manager.save(step, args=items):
        raise CheckpointError(f"there is a checkpoint of step {step} or later")
      self._unsynced = step

  def delete_after(self, step: int) -> None:
    """Delete the checkpoints of later steps.

    Raises:
      CheckpointError: one cannot be deleted.
    """
    self.wait()
    for later in self._manager.all_steps():
      if later > step:
        with _as_errors(f"the checkpoint of step {later} cannot be deleted"):
          self._manager.delete(later)
          if jax.process_index() == 0:
            sync(self._directory)

  def wait(self) -> None:
    """Wait until the last checkpoint is on the disk.

    Raises:
      CheckpointError: it could not be written.
    """
    with _as_errors("the last checkpoint cannot be written"):
      self._manager.wait_until_finished()
      if self._unsynced is not None:
        # Not in `_sync_new`: after it, orbax writes the time of the commit.
        if jax.process_index() == 0:
          sync_tree(self._directory / str(self._unsynced))
          sync(self._directory)
        self._unsynced = None

  def close(self) -> None:
    """Wait as `wait` does, and release the directory in any case."""
    try:
      self.wait()
    finally:
      with _as_errors("the last checkpoint cannot be written"):
        self._manager.close()

  def _sync_new(self) -> None:
    """Wait for the files of a checkpoint that orbax is about to rename.

    Orbax calls it in its own thread, where the training does not wait.
    """
    for path in self._directory.glob(f"*{ocp.utils.TMP_DIR_SUFFIX}*"):
      sync_tree(path)


class _Policy:
  """Tells orbax which checkpoints to keep."""

  best: int | None = None

  def should_preserve(self, checkpoints: Sequence[Any], *, context: Any):
    del context
    last = {info.step for info in checkpoints[-LAST:]}
    return [info.step in last | {self.best} for info in checkpoints]


def list_checkpoints(directory: Path) -> list[int]:
  """Return the steps of the complete checkpoints, in ascending order."""
  if not directory.is_dir():
    return []
  names = [path.name for path in directory.iterdir() if path.is_dir()]
  return sorted(int(name) for name in names if name.isdecimal())


def read_checkpoint(directory: Path, step: int | None = None) -> Checkpoint:
  """Return the step and the description of one checkpoint, or of the newest.

  Raises:
    CheckpointError: the checkpoint is missing, unreadable or damaged.
  """
  steps = list_checkpoints(directory)
  if not steps or step not in (None, *steps):
    of_step = "" if step is None else f" of step {step}"
    raise CheckpointError(f"{directory} holds no checkpoint{of_step}")
  step = steps[-1] if step is None else step
  with _reading(directory, step) as manager:
    description = dict(_read_json(manager, step, DESCRIPTION))
    checksums = _read_json(manager, step, CHECKSUMS)
    if checksums.get(DESCRIPTION) != json_checksum(description):
      raise CheckpointError(_damage(directory, step, "its description"))
    return Checkpoint(step, description)


def read_params(directory: Path, step: int, like: Any) -> Any:
  """Return the parameters of one checkpoint.

  Args:
    directory: the directory of checkpoints.
    step: the checkpoint's step.
    like: a tree of the expected arrays, or of their shapes and dtypes.

  Returns:
    A tree of NumPy arrays; `place` divides them over devices.

  Raises:
    CheckpointError: the checkpoint holds other arrays than `like`, or is
      unreadable or damaged.
  """
  return _read_arrays(directory, step, PARAMS, like)


def read_state(directory: Path, step: int, like: Any) -> Any:
  """Return the state of one checkpoint; see `read_params`."""
  return _read_arrays(directory, step, STATE, like)


def has_state(directory: Path, step: int) -> bool:
  """Return whether a checkpoint holds a state to resume from."""
  return (directory / str(step) / STATE).is_dir()


def _read_arrays(directory: Path, step: int, item: str, like: Any) -> Any:
  with _reading(directory, step) as manager:
    stored = manager.item_metadata(step)[item]
    _check_shapes(directory, step, getattr(stored, "tree", stored), like)
    # As NumPy arrays (these take no memory): for others, orbax would look for
    # the devices that wrote them.
    empty = jax.tree.map(
      lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape), like
    )
    arguments = ocp.args.Composite(**{item: ocp.args.StandardRestore(empty)})
    tree = manager.restore(step, args=arguments)[item]
    checksums = _read_json(manager, step, CHECKSUMS)
    if name := find_damaged({item: tree}, checksums):
      raise CheckpointError(_damage(directory, step, name))
    return tree


def _copied(leaf: Any) -> Any:
  """Return a copy on the host; an array that is split is returned as it is.

  Orbax copies its shards to the host before `save` returns. On a CPU it takes
  views of them, and a donated buffer that has a view is not overwritten.
  """
  return np.array(leaf) if is_whole(leaf) else leaf


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
  with _as_errors(f"the checkpoint in {directory}/{step} cannot be read"):
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


@contextmanager
def _as_errors(message: str) -> Iterator[None]:
  """Raise CheckpointError for whatever orbax and TensorStore raise."""
  try:
    yield
  except CheckpointError:
    raise
  except Exception as error:  # orbax and TensorStore often raise bare ones
    cause: BaseException = error
    while "DEADLINE_EXCEEDED" in str(cause) and cause.__context__:
      cause = cause.__context__  # why this process kept the others waiting
    reason = str(cause).strip().split("\n")[0]
    # The system's own message stands at the far end of TensorStore's.
    system = re.search(r"([^:]+) \[os_error_code=", reason)
    raise CheckpointError(
      f"{message}: {system[1].strip() if system else reason[:200]}"
    ) from None


def _read_json(manager: ocp.CheckpointManager, step: int, item: str) -> Any:
  arguments = ocp.args.Composite(**{item: ocp.args.JsonRestore()})
  return manager.restore(step, args=arguments)[item]


def _damage(directory: Path, step: int, name: str) -> str:
  return (
    f"the checkpoint in {directory}/{step} is damaged: {name} is not what was "
    "written"
  )


def _check_shapes(directory: Path, step: int, stored: Any, like: Any) -> None:
  """Raise CheckpointError where the stored arrays are not those expected."""
  found, expected = _shapes(stored), _shapes(like)
  for name in [*expected, *found]:
    if found.get(name) != expected.get(name):
      raise CheckpointError(
        f"the checkpoint in {directory}/{step} is of another configuration: "
        f"{name} must be {expected.get(name, 'absent')}, "
        f"got {found.get(name, 'none')}"
      )


def _shapes(tree: Any) -> dict[str, str]:
  """Return the dtype and shape of each leaf, by its path."""
  return {
    name: f"{np.dtype(leaf.dtype)} {tuple(leaf.shape)}"
    for name, leaf in named_leaves(tree).items()
  }
