"""Several processes that train as one: how they join, and what they agree on.

Every process runs the same program on devices of its own. All of them evaluate,
each by itself, and the first one's result counts; it alone samples, prints and
writes. What only one of them knows (a folder's name, a request to stop) is
told to the others where all of them stand at the same place.
"""

import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils

from experiments.cli import BAD_INPUT, LARGEST


def define_flags() -> list[flags.FlagHolder]:
  """Define the flags that say how a process joins the others."""
  return [
    flags.DEFINE_boolean(
      "distributed",
      False,
      "Train with other processes: those of the job under SLURM, Open MPI, "
      "Kubernetes or on a TPU slice, else those of the next three flags.",
    ),
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0."),
    flags.DEFINE_integer(
      "num_processes", None, "How many processes there are.", 1, LARGEST
    ),
    flags.DEFINE_integer(
      "process_id", None, "Which of them this is, from 0.", 0, LARGEST
    ),
    flags.DEFINE_integer(
      "join_timeout", 300, "Seconds to wait for the others.", 1, LARGEST
    ),
  ]


def join(
  distributed: bool,
  coordinator: str | None,
  num_processes: int | None,
  process_id: int | None,
  join_timeout: int,
) -> None:
  """Join the other processes, before anything asks JAX for a device.

  Where they do not all come in time, this process ends with one line and the
  status of bad input.

  Raises:
    ValueError: the flags are incomplete or do not go together, or there is no
      cluster to ask.
  """
  given = coordinator, num_processes, process_id
  names = "--coordinator, --num_processes and --process_id"
  missing = [value is None for value in given]
  if not distributed:
    if not all(missing):
      raise ValueError(f"{names} go with --distributed")
    return
  if any(missing) and not all(missing):
    raise ValueError(f"{names} go together, got {given}")
  if num_processes is not None and process_id is not None:
    if process_id >= num_processes:
      raise ValueError(
        f"--process_id must be below --num_processes, got {process_id} "
        f"and {num_processes}"
      )
    host, _, port = str(coordinator).rpartition(":")
    if not host or not port.isdecimal():
      raise ValueError(f"--coordinator must be HOST:PORT, got {coordinator!r}")
  # JAX's own timeout aborts the process and prints a stack.
  where = f" at {coordinator}" if coordinator else ""
  watchdog = threading.Timer(join_timeout, _give_up, (where, join_timeout))
  watchdog.daemon = True
  watchdog.start()
  try:
    jax.distributed.initialize(*given, initialization_timeout=LARGEST // 1000)
  except ValueError as error:
    if coordinator:
      raise
    raise ValueError(
      "--distributed finds no job of SLURM, Open MPI, Kubernetes or a TPU "
      f"slice ({error}): pass {names}"
    ) from None
  finally:
    watchdog.cancel()


def _give_up(where: str, seconds: int) -> None:
  message = f"not all processes have met{where} within {seconds} seconds"
  print(f"error: {message}", file=sys.stderr, flush=True)
  os._exit(BAD_INPUT)  # the main thread waits in JAX


def is_first() -> bool:
  """Return whether this process is the one that prints and writes."""
  return jax.process_index() == 0


def of_first(number: float) -> float:
  """Return the first process's number: what decides must be one for all."""
  if jax.process_count() == 1:
    return number
  return float(np.frombuffer(told(np.float64(number).tobytes()))[0])


def told(data: bytes) -> bytes:
  """Return the first process's bytes; all must give as many."""
  numbers = np.frombuffer(data, np.uint8)
  return np.asarray(multihost_utils.broadcast_one_to_all(numbers)).tobytes()


def asked(
  requests: Sequence[signal.Signals], now: bool
) -> signal.Signals | None:
  """Return a signal by which this process, or `now` any, was asked to stop.

  Processes that are several stop together, and so only where all ask this.
  """
  own = requests[0] if requests else 0
  if jax.process_count() > 1:
    own = now and int(multihost_utils.process_allgather(np.int32(own)).max())
  return signal.Signals(own) if own else None


def check_same(directory: Path, step: int) -> None:
  """Raise ValueError where this process has found another checkpoint."""
  first = int(of_first(step))
  if step != first:
    raise ValueError(
      f"every process must see the same {directory}: its newest checkpoint is "
      f"of update {first} for the first process, and {step} for another"
    )
