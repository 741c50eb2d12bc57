"""Whether a run stays as large as it began: memory, and what is compiled."""

import os
from functools import cache
from pathlib import Path
from typing import Any

import jax

STATM = Path("/proc/self/statm")  # Linux: pages; the second is resident
COMPILED = "/jax/core/compile/backend_compile_duration"


class _Compilations:
  """Counts the programs that XLA compiles, from when it is made."""

  def __init__(self) -> None:
    self.count = 0
    jax.monitoring.register_event_duration_secs_listener(self._take)

  def _take(self, event: str, duration_secs: float, **kwargs: Any) -> None:
    del duration_secs, kwargs
    self.count += event == COMPILED


@cache
def _compilations() -> _Compilations:
  return _Compilations()


def health() -> dict[str, float]:
  """Return how large the process is now, as a row of metrics has it.

  Returns:
    resident_mb: memory of the process, in 1e6 bytes; absent but on Linux.
    live_mb: arrays that JAX holds, in 1e6 bytes.
    compilations: programs compiled since the first call.
  """
  found = {"live_mb": sum(x.nbytes for x in jax.live_arrays()) / 1e6}
  if STATM.exists():
    pages = int(STATM.read_text().split()[1])
    found["resident_mb"] = pages * os.sysconf("SC_PAGE_SIZE") / 1e6
  return {name: round(x, 3) for name, x in found.items()} | {
    "compilations": _compilations().count
  }
