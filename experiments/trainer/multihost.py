"""Several processes that train as one: what they agree on.

Every process runs the same program on its own devices. Every process evaluates
by itself, and the first one's result counts; the first alone samples, prints
and writes, except that each writes its shards into the checkpoints. What only
one of them knows (the run directory, a request to stop) is exchanged at points
of the program that every process reaches.
"""

import json
import os
import signal
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments.trainer.joining import ended_by_ctrl_c
from experiments.trainer.run_dir import (
  OpenedRun,
  changed_flags,
  described,
  open_run_dir,
)

PATH_BYTES = 4096  # of the message with the path of the run directory
NEW, OLD = b"n", b"o"  # sent before that path: a new run, or one to resume


def is_first() -> bool:
  """Return whether this is the process that prints and writes."""
  return jax.process_index() == 0


def from_first_process(number: float) -> float:
  """Return the first process's number, so that all decide alike."""
  if jax.process_count() == 1:
    return number
  # As bytes, since JAX would broadcast a float32.
  return float(np.frombuffer(_broadcast(np.float64(number).tobytes()))[0])


def _broadcast(data: bytes) -> bytes:
  """Return the first process's bytes; all must pass equally many bytes."""
  numbers = np.frombuffer(data, np.uint8)
  return np.asarray(multihost_utils.broadcast_one_to_all(numbers)).tobytes()


def agreed_request(
  requests: Sequence[signal.Signals], agree_now: bool
) -> signal.Signals | None:
  """Return the signal that asks to stop, if any.

  Args:
    requests: signals that this process has received.
    agree_now: ignored by a single process. Several processes exchange their
      requests if it is True, so that all of them return the same signal and
      stop at the same step: all must make this call, with the same value. If it
      is False, they exchange nothing, and the result is None.
  """
  request = int(requests[0]) if requests else 0
  if jax.process_count() > 1:
    if not agree_now:
      return None
    requests_of_all = multihost_utils.process_allgather(np.int32(request))
    request = int(requests_of_all.max())
  return signal.Signals(request) if request else None


def check_equal_devices() -> None:
  """Raise ValueError in all processes if one has fewer devices than another.

  JAX's exchanges between processes need equal numbers.
  """
  if not jax.distributed.is_initialized():
    return
  with ended_by_ctrl_c():  # JAX waits for the devices of the others
    counts = Counter(device.process_index for device in jax.devices())
  if len(set(counts.values())) > 1:
    found = ", ".join(f"{n} in process {i}" for i, n in sorted(counts.items()))
    raise ValueError(
      f"every process must have as many devices as the others, got {found}"
    )


def check_same_dry_run(dry_run: bool) -> None:
  """Raise ValueError in all processes if --dry_run differs between them."""
  with failing_together():
    first = bool(from_first_process(dry_run))
    if dry_run != first:
      reason = described({"dry_run": first}, {"dry_run": dry_run})
      raise ValueError(
        f"every process must have the flags of the first: {reason}"
      )


def check_same_checkpoint(directory: Path, step: int) -> None:
  """Raise ValueError in all processes if they resume from different steps.

  Args:
    directory: the run directory.
    step: of the checkpoint from which this process resumes; 0 for none.
  """
  if jax.process_count() == 1:
    return
  first, *others = np.ravel(multihost_utils.process_allgather(np.int32(step)))
  for number, other in enumerate(others, 1):
    if other != first:
      raise ValueError(
        f"every process must see the same {directory}: the first process "
        f"sees {_named(first)}, and process {number} {_named(other)}"
      )


def _named(step: int) -> str:
  """Return how the message of `check_same_checkpoint` names a checkpoint."""
  return f"the checkpoint of step {step}" if step else "no checkpoint"


@contextmanager
def failing_together() -> Iterator[None]:
  """Raise ValueError in all other processes if the body fails in one.

  They would wait for it, in vain, where they communicate next. A process that
  has joined no others only runs the body: to ask JAX for the number of
  processes would start its devices before their number is set.
  """
  if not jax.distributed.is_initialized():
    yield
    return
  failed, interrupted = True, False
  try:
    yield
    failed = False
  except KeyboardInterrupt:
    interrupted = True
    raise
  finally:
    with ended_by_ctrl_c():
      failures = multihost_utils.process_allgather(np.int32(failed))
    if interrupted:
      # `launch` ends this process at once: if it did not leave the others, they
      # would wait for it when they exit.
      jax.distributed.shutdown()
  if others := np.flatnonzero(failures).tolist():
    raise ValueError(f"{_processes(others)} stopped: see the error there")


def _processes(numbers: Sequence[int]) -> str:
  return ", ".join(f"process {number}" for number in numbers)


@contextmanager
def open_shared_run_dir(
  flags: Mapping[str, Any], facts: Mapping[str, Any]
) -> Iterator[OpenedRun]:
  """Open and lock the run directory in the first process, for all of them.

  Yields:
    As `open_run_dir` with may_extend=True. If a run is extended, only the first
    process, which prints that, gets `extended_from`.

  Raises:
    ValueError: as `open_run_dir` in the first process; in the others, if the
      first has raised an error; in all, if any has another configuration or
      corpus than the first, or cannot write to the run directory.
  """
  if jax.process_count() == 1:
    with open_run_dir(flags, facts, may_extend=True) as opened:
      yield opened
    return
  check_same_run_in_all(flags, facts)
  with ExitStack() as held:
    message = b""
    with failing_together():
      if is_first():
        run_dir = open_run_dir(flags, facts, may_extend=True)
        opened = held.enter_context(run_dir)
        message = OLD if opened.resuming else NEW
        message += os.fsencode(opened.directory)
    message = _broadcast(message.ljust(PATH_BYTES, b"\0")).rstrip(b"\0")
    if not is_first():
      directory = Path(os.fsdecode(message[1:]))
      opened = OpenedRun(directory, resuming=message[:1] == OLD)
    check_seen_by_all(opened.directory)
    yield opened


def check_same_run_in_all(
  flags: Mapping[str, Any], facts: Mapping[str, Any]
) -> None:
  """Raise ValueError in all processes if one would train another run.

  They would wait for each other forever, or train on unlike weights or batches.

  Args:
    flags: of this process.
    facts: as in `open_run_dir`.
  """
  own = {**flags, **facts}
  text = json.dumps(own).encode()
  size = int(from_first_process(len(text)))
  first = json.loads(_broadcast(text[:size].ljust(size)))
  changes = changed_flags(first, flags, facts)
  # --mesh may change when a run resumes, but not between processes.
  changes |= {
    name: own[name] for name in ("mesh", *facts) if first.get(name) != own[name]
  }
  differs = multihost_utils.process_allgather(np.int32(bool(changes)))
  if others := np.flatnonzero(differs).tolist():
    others_differ = f"those of {_processes(others)} differ"
    reason = described(first, changes) or others_differ
    raise ValueError(
      f"every process must have the flags and the corpus of the first: {reason}"
    )


def check_seen_by_all(directory: Path) -> None:
  """Raise ValueError in all processes if one cannot write to the directory.

  The processes write checkpoints together, each the shards of its own devices.
  To test this, each creates a file here, and the first process looks for all
  of these files.
  """
  tag = _broadcast(os.urandom(8)).hex()
  files = [
    directory / f".process{number}-{tag}"
    for number in range(jax.process_count())
  ]
  own = files[jax.process_index()]
  with suppress(OSError):
    own.touch()
  multihost_utils.sync_global_devices("written")
  missing = _broadcast(bytes(not file.exists() for file in files))
  with suppress(OSError):
    own.unlink()
  if failed := [number for number, byte in enumerate(missing) if byte]:
    raise ValueError(
      f"every process must write to the run directory of the first, "
      f"{directory}: {_processes(failed)} cannot"
    )
