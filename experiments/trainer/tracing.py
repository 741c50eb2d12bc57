"""A profiler's trace of some updates, once the first ones are compiled."""

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import jax

WARM = 3  # updates before it begins

Step = TypeVar("Step")


def traced(
  updates: Iterator[Step], directory: Path, num_steps: int
) -> Iterator[Step]:
  """Iterate over updates, and trace so many of them into a folder.

  The trace is XPlane, as TensorBoard's profile page and XProf read it. What is
  between the updates, such as a look at the held-out text, is in it too.

  Args:
    updates: each is made when it is asked for.
    directory: of the trace; it ends at the last update if there are fewer.
    num_steps: of the trace; 0 for none.
  """
  running = False
  try:
    for number, step in enumerate(updates):
      if running and number == WARM + num_steps:
        jax.block_until_ready(step)
        jax.profiler.stop_trace()
        running = False
      yield step
      if num_steps and number == WARM - 1:
        jax.block_until_ready(step)
        jax.profiler.start_trace(directory)
        running = True
  finally:
    if running:
      jax.profiler.stop_trace()
