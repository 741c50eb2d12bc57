"""Count the programs that XLA compiles."""

from contextlib import contextmanager

import jax

COMPILED = "/jax/core/compile/backend_compile_duration"


@contextmanager
def count_programs():
  """Yield a list that grows by one for each program that XLA compiles."""
  programs = []

  def listener(event, duration, **_):
    if event == COMPILED:
      programs.append(duration)

  jax.monitoring.register_event_duration_secs_listener(listener)
  try:
    yield programs
  finally:
    jax.monitoring.unregister_event_duration_listener(listener)
