"""A peer is timed once it has been shown to compute the same."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

# Relative. On the CPU, float32 in another order of sums; elsewhere products of
# float32 may be computed in TensorFloat-32, with 10 bits.
TOLERANCE = 1e-4 if jax.default_backend() == "cpu" else 1e-2


class Missing(Exception):
  """A library has no such thing; the message says what it has instead."""


class Peer(NamedTuple):
  """Something to time, already proven and compiled."""

  run: Callable[[], Any]  # returns when the result is there
  compile_s: float | None = None  # tracing and compiling; None: not compiled
  bytes: int | None = None  # arguments, results and temporaries together


def agree(name: str, found: Any, expected: Any, tolerance: float) -> None:
  """Raise ValueError unless each array of found is that of expected.

  Args:
    name: of the peer, for the message.
    found: a tree of arrays.
    expected: a tree with as many arrays, of the same sizes.
    tolerance: of the norm of the difference, relative to the expected norm.
  """
  pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
  for k, (a, b) in enumerate(pairs):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
      raise ValueError(f"{name}: array {k} is {a.shape}, not {b.shape}")
    size = max(float(np.linalg.norm(b)), 1e-30)
    error = float(np.linalg.norm(a - b)) / size
    if not error <= tolerance:
      raise ValueError(
        f"{name} computes something else: array {k} of its results is "
        f"{error:.1e} from ours (relative), and {tolerance:.0e} is allowed"
      )


def compiled(f: Callable, *args: Any, donate: tuple[int, ...] = ()) -> tuple:
  """Return (f compiled for args, seconds it took, bytes it needs)."""
  start = time.perf_counter()
  program = jax.jit(f, donate_argnums=donate).lower(*args).compile()
  seconds = time.perf_counter() - start
  memory: Any = program.memory_analysis()
  size = (
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
    + memory.temp_size_in_bytes
  )
  return program, seconds, size
