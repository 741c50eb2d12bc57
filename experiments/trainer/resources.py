"""What a process has and uses: memory, compilations, a profile."""

import math
import os
import resource
from collections import Counter
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

WARM_UP = 3  # training steps before a trace starts: they compile
STATM = Path("/proc/self/statm")  # Linux; its second number: resident pages
# JAX's event for a program that is compiled, or loaded from its cache.
COMPILED = "/jax/core/compile/backend_compile_duration"


def available_memory() -> int:
  """Return the bytes that the device may hold.

  That is a GPU's limit; on a CPU, `host_memory`.
  """
  stats = jax.local_devices()[0].memory_stats() or {}
  return stats.get("bytes_limit", host_memory())


def host_memory() -> int:
  """Return the smaller of the machine's memory and the limit of `ulimit -v`.

  Both are in bytes. The limit of a container or a batch job (cgroup) is not
  read.
  """
  memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  granted, _ = resource.getrlimit(resource.RLIMIT_AS)
  if granted != resource.RLIM_INFINITY:
    memory = min(memory, granted)
  return memory


def num_bytes(tree: Any) -> int:
  """Return how many bytes of a tree's arrays one device holds.

  Args:
    tree: of `jax.Array` or `jax.ShapeDtypeStruct`. The device holds all of an
      array without a sharding.
  """

  def size(leaf: Any) -> int:
    shape = leaf.shape
    if leaf.sharding is not None:
      shape = leaf.sharding.shard_shape(shape)
    return math.prod(shape) * leaf.dtype.itemsize

  return sum(map(size, jax.tree.leaves(tree)))


def process_size() -> dict[str, float]:
  """Return how large the process is now, for a row of metrics.jsonl.

  Returns:
    resident_mb: memory of the process, in 1e6 bytes; only on Linux.
    live_mb: arrays that JAX holds, in 1e6 bytes.
    compilations: programs compiled, or loaded from JAX's compilation cache,
      since the first call.
  """
  size = {"live_mb": sum(x.nbytes for x in jax.live_arrays()) / 1e6}
  if STATM.exists():
    pages = int(STATM.read_text().split()[1])
    size["resident_mb"] = pages * os.sysconf("SC_PAGE_SIZE") / 1e6
  return {name: round(x, 3) for name, x in size.items()} | {
    "compilations": _events()[COMPILED]
  }


@cache
def _events() -> Counter[str]:
  """Return how often JAX has reported each event since the first call."""
  counts: Counter[str] = Counter()
  jax.monitoring.register_event_duration_secs_listener(
    lambda event, duration_secs, **kwargs: counts.update([event])
  )
  return counts


class Tracer:
  """Traces training steps with JAX's profiler, after the first WARM_UP.

  The trace is in the XPlane format, which TensorBoard's profile page and XProf
  read. It includes the evaluations between the steps. Of several processes,
  only the first writes one.

  Args:
    directory: of the trace.
    num_steps: how many steps to trace; fewer, or none, if the run ends before.
    console: prints a line if the run ends before a step is traced, or if the
      trace cannot be written while another error is raised.
  """

  def __init__(self, directory: Path, num_steps: int, console: Console):
    if jax.process_index():
      num_steps = 0
    self._directory, self._stop_at = directory, WARM_UP + num_steps
    self._console = console
    self._steps = 0
    self._running = False

  def __enter__(self) -> "Tracer":
    return self

  def __exit__(self, *error) -> None:
    if self._running:
      try:
        self._stop()
      except OSError as failure:
        if not error[0]:
          raise
        with suppress(OSError):  # printing must not hide the other error
          self._console.print(f"{failure}", soft_wrap=True)
    elif error[0] is None and self._steps <= WARM_UP < self._stop_at:
      self._console.print(
        f"nothing is profiled: this process must make more than {WARM_UP} "
        f"training steps, got {self._steps}"
      )

  def before_step(self, state: Any) -> None:
    """Start or stop the trace, where it is time, once `state` is computed."""
    if self._steps == WARM_UP and self._stop_at > WARM_UP:
      jax.block_until_ready(state)
      jax.profiler.start_trace(self._directory)
      self._running = True
    if self._running and self._steps == self._stop_at:
      jax.block_until_ready(state)
      self._stop()
    self._steps += 1

  def _stop(self) -> None:
    """Stop the trace and write it.

    Raises:
      OSError: it cannot be written. For a full disk, JAX's own error has the
        status RESOURCE_EXHAUSTED, as for too little memory.
    """
    self._running = False
    try:
      jax.profiler.stop_trace()
    except jax.errors.JaxRuntimeError as error:  # it names the file
      raise OSError(f"the profile cannot be written: {error}") from None
