"""A process that compiles and runs cases.

Kernels that nobody ran before may hang, or end the process: an invalid TMA
descriptor ends it by `abort()`, and after an illegal memory access the device
no longer answers it. So the cases run in a process of their own, which says
what it is about to do, and `supervisor` starts a new one when it must.

The process first lowers the programs of all cases that it is given, one after
the other. Several threads then compile them, since XLA compiles without holding
Python's lock; compiling takes most of the benchmark's time.
"""

import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

import jax

from experiments.benchmarks.gpu.case import (
  Case,
  DeviceLost,
  Prepared,
  Result,
  reason,
)
from experiments.benchmarks.timing import environment

THREADS = min(12, os.cpu_count() or 1)

# (kind, index of the case or None, content)
#   "ready"      the environment
#   "compiling"
#   "running"    index
#   "result"     index, Result
#   "lost"       index, or None if no case runs yet; why. The process then ends.
#   "done"       ready for more cases
Message = tuple[str, int | None, Any]


def work(
  cases: Sequence[Case],
  left_out: frozenset[str],
  send: Callable[[Message], Any],
) -> bool:
  """Run cases, and send their results; return whether the device still works.

  Args:
    cases: in the order in which they run.
    left_out: kinds of kernels that must not run.
    send: takes each message.
  """
  send(("compiling", None, None))
  prepared: list[Prepared | str] = []
  index: int | None = None  # of the case that runs
  try:
    for case in cases:
      try:
        prepared.append(case.prepare(left_out))
      except DeviceLost:
        raise
      except Exception as error:  # a failure of this case, not of all
        prepared.append(reason(error))
    compiled = compile_all([p for p in prepared if isinstance(p, Prepared)])
    for index, case in enumerate(cases):
      found = prepared[index]
      prepared[index] = ""  # frees its arrays as soon as it has run
      send(("running", index, None))
      if isinstance(found, str):
        result = Result([], {}, [f"{case.name}: {found}"])
      else:
        result = _finish(case, found, *compiled.pop(0))
      send(("result", index, result))
  except DeviceLost as error:
    send(("lost", index, str(error)))
    return False
  send(("done", None, None))
  return True


def _finish(case: Case, prepared: Prepared, programs: Any, errors: Any):
  try:
    return prepared.finish(programs, errors)
  except DeviceLost:
    raise
  except Exception as error:
    _, skipped, failures = prepared.before
    return Result([], skipped, [*failures, f"{case.name}: {reason(error)}"])


def compile_all(
  prepared: Sequence[Prepared],
) -> list[tuple[dict[str, Any], dict[str, str]]]:
  """Compile the programs of all cases in parallel.

  Returns:
    For each case its (programs, errors): two dicts whose keys are the names of
    the programs.

  Raises:
    DeviceLost: the device no longer answers after an error.
  """

  def attempt(lowered):
    try:
      return lowered.compile()
    except Exception as error:  # the compiler's, of whatever class
      return error

  results: list[tuple[dict[str, Any], dict[str, str]]] = []
  with ThreadPoolExecutor(THREADS) as pool:
    running = [
      {name: pool.submit(attempt, low) for name, low in p.lowered.items()}
      for p in prepared
    ]
    for futures in running:
      programs, errors = {}, {}
      for name, future in futures.items():
        found = future.result()
        if isinstance(found, Exception):
          errors[name] = f"does not compile: {reason(found)}"
        else:
          programs[name] = found
      results.append((programs, errors))
  return results


def serve(connection: Connection, errors: str, jax_on_cpu: bool) -> None:
  """Run the cases that come through a connection, until the device is lost.

  Args:
    connection: receives (cases, left_out) and sends messages.
    errors: path of the file that takes what libraries print on stderr.
    jax_on_cpu: whether JAX must leave the GPU to another library.
  """
  descriptor = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
  os.dup2(descriptor, 2)
  os.close(descriptor)
  if jax_on_cpu:
    jax.config.update("jax_platforms", "cpu")
  connection.send(("ready", None, describe()))
  well = True
  while well:
    cases, left_out = connection.recv()
    well = work(cases, left_out, connection.send)
  sys.stderr.flush()


def describe() -> dict[str, Any]:
  """Return the environment, with what `part.check_device` needs added."""
  device = jax.devices()[0]
  return environment() | {
    "platform": device.platform,
    "compute_capability": getattr(device, "compute_capability", None),
    "jax_version": jax.__version_info__,
  }
