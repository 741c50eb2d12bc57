"""Microseconds per time step, of programs that are timed in turns.

A call returns long before the device has computed its result, and waiting for a
result takes as long as some kernels do. So a measurement makes several calls in
a row and waits once, at their end, as a training loop does.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.tables import Row
from experiments.benchmarks.timing import measure

SECONDS = 0.005  # aim of a measurement; less if MOST_CALLS calls take less
MOST_CALLS = 64


def count_calls(call: Callable[[], Any], wait: Callable[[Any], Any]) -> int:
  """Return how many calls a measurement should have."""
  wait(call())  # the first call loads the program
  start = time.perf_counter()
  wait(call())
  seconds = max(time.perf_counter() - start, 1e-6)
  return min(MOST_CALLS, max(1, round(SECONDS / seconds)))


def several(
  call: Callable[[], Any], wait: Callable[[Any], Any], calls: int
) -> Callable[[], None]:
  """Return a function that makes so many calls, and waits for the last."""

  def run():
    result = None
    for _ in range(calls):
      result = call()  # frees the previous result
    wait(result)

  return run


def time_calls(
  calls: Mapping[str, Callable[[], Any]],
  wait: Callable[[Any], Any],
  rounds: int,
  seq_len: int,
) -> dict[str, Row]:
  """Return the median and quartiles of each call's µs per time step, by name.

  Args:
    calls: functions that start a computation and return its result.
    wait: waits for a result.
    rounds: measurements of each.
    seq_len: T.
  """
  counts = {name: count_calls(call, wait) for name, call in calls.items()}
  runs = {
    name: several(call, wait, counts[name]) for name, call in calls.items()
  }
  rows = {}
  for name, seconds in measure(runs, rounds).items():
    steps = counts[name] * seq_len
    low, median, high = 1e6 * np.percentile(seconds, [25, 50, 75]) / steps
    rows[name] = {
      "us_per_step": float(median),
      "quartiles_us": [float(low), float(high)],
    }
  return rows


def memory_of(program: Any) -> Row:
  """Return the bytes of a program's temporaries, and of its peak if known."""
  memory = program.memory_analysis()
  return {
    "temporary_bytes": getattr(memory, "temp_size_in_bytes", None),
    "peak_bytes": getattr(memory, "peak_memory_in_bytes", None) or None,
  }


@jax.jit
def _errors(actual: list, expected: list) -> jax.Array:
  """Return the error of each array, relative to the norm of the expected."""
  norm = jnp.linalg.norm
  return jnp.stack(
    [
      norm((a.astype(jnp.float32) - b).ravel())
      / jnp.maximum(norm(b.ravel()), jnp.float32(1e-30))
      for a, b in zip(actual, expected, strict=True)
    ]
  )


def check_equal(actual: Any, expected: Any, tolerance: float) -> None:
  """Check that a result is the expected one; the device computes the errors.

  Args:
    actual: a tree of arrays.
    expected: a tree with as many arrays, of the same shapes, in float32.
    tolerance: largest allowed norm of the difference of two arrays, divided by
      the norm of the expected one.

  Raises:
    ValueError: the trees differ in their number of arrays or in a shape, or an
      array has a larger error.
  """
  found, wanted = jax.tree.leaves(actual), jax.tree.leaves(expected)
  for k, (a, b) in enumerate(zip(found, wanted, strict=True)):
    if a.shape != b.shape:  # which would be broadcast
      raise ValueError(f"array {k} has shape {a.shape}, not {b.shape}")
  error = _errors(found, wanted)
  largest = float(error.max())
  if not largest <= tolerance:
    raise ValueError(
      f"computes a different result: an array has a relative error of "
      f"{largest:.1e}, and {tolerance:.0e} is allowed"
    )
