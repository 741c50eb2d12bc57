"""Write checkpoints: parameters, a train state, and a JSON description.

Orbax writes them: arrays by TensorStore, descriptions as JSON, each checkpoint
into a temporary directory that is renamed once it is complete. A checkpoint
holds the SHA-256 of each array and of its description, which is compared when
`checkpoint_reader` reads it: orbax alone would return an array in which a bit
has flipped. Arrays that are split over devices are written in their shards, by
all processes, and have a checksum for each shard. Reading a checkpoint runs no
code from it. Its data are on the disk before the rename, and the rename is on
the disk before `wait` returns in the first process, so that a power failure
costs no checkpoint that was complete.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from lstm_jax.cells.checks import check_count
from lstm_jax.training.checksum import (
  array_checksums,
  is_whole,
  json_checksum,
)
from lstm_jax.training.durable import (
  check_path,
  make_directory,
  sync,
  sync_tree,
)

PARAMS, STATE = "params", "state"
DESCRIPTION, CHECKSUMS = "description", "checksums"
LAST = 2  # checkpoints kept beside the best
TIMEOUT = 300  # seconds for which processes wait for each other's shards


class CheckpointError(ValueError):
  """A checkpoint is missing, unreadable or damaged, or cannot be written."""


class CheckpointWriter:
  """Writes checkpoints in the background; keeps the last two and the best.

  A program that ends without `close`, as by an error, may lose the last
  checkpoint. A new writer removes the unfinished checkpoints that a killed
  program left in the directory, at the latest before its first save. Several
  processes write together: all of them must make the same calls, in the same
  order, and see the same directory. If one of them cannot write, the others
  raise an error after TIMEOUT seconds.

  Args:
    directory: the directory of the checkpoints, which is made if it is missing.

  Raises:
    CheckpointError: the directory cannot be made or read, or `check_path`
      refuses it: for a wildcard, a backslash (as on Windows) or a pipe in it.
  """

  def __init__(self, directory: str | os.PathLike[str]):
    self._policy = _Policy()
    self._directory = Path(directory).absolute()
    # The step of a checkpoint that may not be on the disk yet.
    self._unsynced: int | None = None
    self._closed = False
    options = ocp.CheckpointManagerOptions(
      async_options=ocp.AsyncOptions(
        timeout_secs=TIMEOUT, post_finalization_callback=self._sync_new
      ),
      preservation_policy=self._policy,
      cleanup_tmp_directories=True,
      create=False,
    )
    with checkpoint_errors(f"no checkpoint can be written to {directory}"):
      check_path(self._directory)
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

    Once `save` returns, the caller may donate the arrays and change the
    description. An error that comes later, in the background, is raised by the
    next call of a method.

    Args:
      step: training steps made.
      params: the weights, which `read_params` will return; they may be split
        over devices, as the arrays of `state` may.
      description: a dictionary; `read_checkpoint(...).description` returns it
        as JSON holds it (keys are strings). Of several processes, the first
        writes its own.
      state: what `read_state` will return; None to save none.
      best: the step of the best checkpoint, to keep it beside the last two;
        None to keep the last two alone.

    Raises:
      ValueError: step or best is not an integer ≥ 0; description is no
        dictionary, or two of its keys are the same string in JSON; params or
        state is an empty tree; two arrays have the same name; or an array has
        no elements, or elements that are not numbers.
      TypeError: description is not what JSON can hold.
      CheckpointError: the directory holds a checkpoint of this or a later step;
        this checkpoint or the one before it cannot be written; or the writer is
        closed.
    """
    self._check_open()
    check_count("step", step, 0)
    if best is not None:
      check_count("best", best, 0)
    if not isinstance(description, dict):
      kind = type(description).__name__
      raise ValueError(f"description must be a dictionary, got {kind}")
    # A copy, because orbax reads it later, when the caller may have changed it.
    text = json.dumps(description)
    description = json.loads(text, object_pairs_hook=_with_distinct_keys)
    trees = {PARAMS: params} | ({} if state is None else {STATE: state})
    for name, tree in trees.items():
      # A tree such as (optax.EmptyState(),) has no array, but orbax saves it.
      if not jax.tree.leaves(tree) and not tree:
        raise ValueError(f"{name} must not be an empty tree, got {tree!r}")
    # Copies, because training steps donate the arrays.
    trees = jax.tree_util.tree_map_with_path(_copied, trees)
    arrays = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
    checksums = array_checksums(trees)
    checksums[DESCRIPTION] = json_checksum(description)
    items = ocp.args.Composite(
      **arrays,
      description=ocp.args.JsonSave(description),
      checksums=ocp.args.JsonSave(checksums),
    )
    self.wait()  # so that no earlier error is reported as this checkpoint's
    self._policy.best = best
    with self._errors(f"checkpoint of step {step}", "written"):
      self._manager.reload()  # what another program wrote is not overwritten
      if not self._manager.save(step, args=items):
        newest = self._manager.latest_step()
        raise CheckpointError(
          f"step must be above {newest}, that of the newest checkpoint in "
          f"{self._directory}, got {step}"
        )
      self._unsynced = step

  def delete_after(self, step: int) -> None:
    """Delete the checkpoints of later steps.

    Raises:
      ValueError: step is not an integer ≥ 0.
      CheckpointError: a checkpoint cannot be deleted, the last one could not be
        written, or the writer is closed.
    """
    self._check_open()
    check_count("step", step, 0)
    self.wait()
    for later in self._manager.all_steps():
      if later > step:
        with self._errors(f"checkpoint of step {later}", "deleted"):
          self._manager.delete(later)
          if jax.process_index() == 0:
            sync(self._directory)

  def wait(self) -> None:
    """Wait until the last checkpoint is on the disk.

    Raises:
      CheckpointError: it could not be written.
    """
    with self._errors("last checkpoint", "written"):
      try:
        self._manager.wait_until_finished()
        if self._unsynced is not None and jax.process_index() == 0:
          # Not in `_sync_new` alone: orbax writes the commit time after it.
          sync_tree(self._directory / str(self._unsynced))
          sync(self._directory)
      except Exception:
        self._unsynced = None  # the next call must not report it again
        raise
      self._unsynced = None

  def close(self) -> None:
    """Wait as `wait` does, and release the directory even after an error.

    After `close`, nothing can be saved or deleted.

    Raises:
      CheckpointError: the last checkpoint could not be written.
    """
    try:
      self.wait()
    finally:
      self._closed = True
      with self._errors("last checkpoint", "written"):
        self._manager.close()

  def _errors(self, which: str, done: str) -> AbstractContextManager[None]:
    name = f"the {which} in {self._directory}"
    return checkpoint_errors(f"{name} cannot be {done}")

  def _check_open(self) -> None:
    if self._closed:
      raise CheckpointError(f"the writer of {self._directory} is closed")

  def _sync_new(self) -> None:
    """Wait until the files that orbax is about to rename are on the disk.

    Orbax calls this in its own thread, so that the training does not wait. Its
    `post_finalization_callback` runs before the rename, in spite of the name.
    """
    for path in self._directory.glob(f"*{ocp.utils.TMP_DIR_SUFFIX}*"):
      sync_tree(path)


class _Policy:
  """Tells orbax which checkpoints to keep."""

  best: int | None = None

  def should_preserve(self, checkpoints: Sequence[Any], *, context: Any):
    del context
    last_steps = {info.step for info in checkpoints[-LAST:]}
    return [info.step in last_steps | {self.best} for info in checkpoints]


def _copied(path: tuple[Any, ...], leaf: Any) -> Any:
  """Return a copy on the host; a split array is returned as it is.

  Orbax copies the shards of a split array to the host before `save` returns. On
  a CPU it takes views of the shards instead, but a donated buffer that has a
  view is not overwritten.

  Raises:
    ValueError: the leaf is empty, or not a number or array that JAX can hold.
  """
  name = jax.tree_util.keystr(path, simple=True, separator=".")
  if not np.size(leaf):
    raise ValueError(
      f"{name} must have at least one element, got shape {np.shape(leaf)}"
    )
  if not is_whole(leaf):
    return leaf
  try:
    copy = np.array(leaf)
    jnp.result_type(copy)
  except TypeError:
    is_array = isinstance(leaf, jax.Array | np.ndarray | np.generic)
    kind = leaf.dtype if is_array else type(leaf).__name__
    raise ValueError(
      f"{name} must hold numbers of a dtype that JAX has, got {kind}"
    ) from None
  return copy


def _with_distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """Return an object of JSON; raise ValueError if two keys are the same."""
  if len(dict(pairs)) < len(pairs):
    keys = ", ".join(key for key, _ in pairs)
    raise ValueError(f"the keys of a description must differ, got {keys}")
  return dict(pairs)


@contextmanager
def checkpoint_errors(message: str) -> Iterator[None]:
  """Turn any exception in this context into a CheckpointError.

  Args:
    message: what the error says before the reason.
  """
  try:
    yield
  except CheckpointError:
    raise
  except Exception as error:  # orbax and TensorStore often raise bare ones
    cause: BaseException = error
    # Behind a time-out is the error for which this process kept others waiting.
    while "DEADLINE_EXCEEDED" in str(cause) and cause.__context__:
      cause = cause.__context__
    line = str(cause).strip().split("\n")[0]
    # TensorStore's message ends with the system's and [name='value'] notes.
    system = re.search(r"([^:]+?) \[(?:\w+='.*\[)?os_error_code=", line)
    # The message alone may be empty, or only the name of a missing key.
    reason = f"{type(cause).__name__}: {line[:200]}".removesuffix(": ")
    raise CheckpointError(
      f"{message}: {system[1].strip() if system else reason}"
    ) from None
