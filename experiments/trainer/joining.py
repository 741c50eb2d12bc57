"""How a process joins the others that train with it."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import jax

from experiments.trainer.config import LARGEST
from experiments.trainer.format import counted
from lstm_jax.language.options import option

TIMED_OUT = 2  # exit status: that of bad input


@dataclass(frozen=True)
class ProcessConfig:
  """How a process joins the others; each field is a flag of `train`."""

  distributed: bool = option(
    False,
    "Train with other processes: those of --coordinator, --num_processes and "
    "--process_id; without these flags, those of the job under SLURM, Open "
    "MPI, Kubernetes or on a TPU slice.",
  )
  coordinator: str | None = option(None, "HOST:PORT of process 0.")
  num_processes: int | None = option(
    None, "How many processes there are.", bounds="[1, inf)"
  )
  process_id: int | None = option(
    None, "The number of this process, from 0.", bounds="[0, inf)"
  )
  join_timeout: int = option(
    300, "Seconds to wait for the other processes.", bounds="[1, inf)"
  )


def join(
  distributed: bool,
  coordinator: str | None,
  num_processes: int | None,
  process_id: int | None,
  join_timeout: int,
) -> None:
  """Join the other processes if `distributed`; each argument is a flag.

  Call this before JAX is asked for a device. If the processes do not all join
  in time, this one prints one line and exits with the status of bad input.

  Raises:
    ValueError: the flags are incomplete or do not go together; or they name no
      coordinator, and JAX finds no job of a cluster; or process 0 cannot listen
      at the port, as where another run does.
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
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
      raise ValueError(f"--coordinator must be HOST:PORT, got {coordinator!r}")
    if process_id == 0:
      _check_free(str(coordinator), int(port))
  # JAX's own timeout aborts the process and prints a stack.
  where = f" at {coordinator}" if coordinator else ""
  watchdog = threading.Timer(join_timeout, _give_up, (where, join_timeout))
  watchdog.daemon = True
  watchdog.start()
  try:
    with ended_by_ctrl_c():
      # The longest timeout of JAX, which holds milliseconds in 32 bits.
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
  # JAX has replaced the handler of SIGTERM, unseen by Python, by one that does
  # not end the process: set the one that Python knows again.
  signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


def _check_free(coordinator: str, port: int) -> None:
  """Raise ValueError if another program listens at the port.

  If that is another run, JAX would listen there, too. The processes of one run
  may then reach the coordinator of the other, which ends that run.
  """
  kind = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
  with socket.socket(kind) as probe:
    # Connections of a run that has ended are no hindrance.
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
      probe.bind(("", port))
    except OSError as error:
      raise ValueError(
        f"process 0 cannot listen at --coordinator={coordinator}: "
        f"{error.strerror}; pass another port to all processes"
      ) from None


def _give_up(where: str, seconds: int) -> None:
  limit = counted(seconds, "second")
  message = f"not all processes have joined{where} within {limit}"
  print(f"error: {message}", file=sys.stderr, flush=True)
  os._exit(TIMED_OUT)  # the main thread waits in JAX


@contextmanager
def ended_by_ctrl_c() -> Iterator[None]:
  """Let Ctrl-C end the process while it waits for others in the block.

  JAX waits outside of Python, where no KeyboardInterrupt can be raised. Other
  handlers than that of KeyboardInterrupt stay as they are.
  """
  if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
    yield
    return
  signal.signal(signal.SIGINT, signal.SIG_DFL)
  try:
    yield
  finally:
    signal.signal(signal.SIGINT, signal.default_int_handler)
