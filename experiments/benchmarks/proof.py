"""Peers, and the check that a peer computes what ours does."""

import importlib.util
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np


class Unsupported(Exception):
  """A peer cannot be compared here; the message says why."""


class Peer(NamedTuple):
  """A program to time; where results must equal ours, its maker checks them.

  Those of `original` are checked by a test, those of `policies.peer` by `race`.
  """

  run: Callable[[], Any]  # returns when the result is ready
  compile_s: float | None = None  # seconds to compile; None if not measured
  bytes: int | None = None  # arguments, results, temporaries; None likewise


# Each peer's maker and the package that it needs, by name; ours first.
Makers = Mapping[str, tuple[Callable[..., Peer], str]]


def make_peers(
  makers: Makers, *problem: Any
) -> tuple[dict[str, Peer], dict[str, str]]:
  """Return the peers of a problem, and why the others are skipped.

  Args:
    makers: of the peers.
    *problem: the arguments of each maker.

  Raises:
    ValueError: a peer computes a different result from ours.
  """
  peers, skipped = {}, {}
  for name, (make, package) in makers.items():
    if not is_installed(package):
      skipped[name] = f"{package} is not installed"
      continue
    try:
      peers[name] = make(*problem)
    # An old library may import what JAX no longer has; an OSError means that a
    # shared library is missing.
    except (Unsupported, ImportError, OSError) as reason:
      skipped[name] = str(reason)
    except AttributeError as error:
      # As "module 'jax.lib' has no …", and "jax.core.get_aval was … removed".
      if not re.match(r"(module ')?jax\b", str(error)):
        raise
      skipped[name] = str(error)
  return peers, skipped


def tolerance() -> float:
  """Return the relative error that is allowed in float32.

  On a CPU, libraries sum in different orders; elsewhere float32 products may be
  computed in TensorFloat-32, with 10 bits of mantissa. A function and not a
  constant, since `jax.default_backend()` initializes JAX.
  """
  return 1e-4 if jax.default_backend() == "cpu" else 1e-2


def is_installed(package: str) -> bool:
  """Return whether a package is found, though its import may still fail."""
  return importlib.util.find_spec(package) is not None


def check_same(name: str, actual: Any, expected: Any, tolerance: float) -> None:
  """Check that each array of `actual` is close to that of `expected`.

  Args:
    name: the peer's name, for the error message.
    actual: a tree of arrays.
    expected: a tree with as many arrays, of the same shapes.
    tolerance: largest allowed norm of the difference of two arrays, divided by
      the norm of the expected one.

  Raises:
    ValueError: the trees differ in their number of arrays or in a shape, or an
      array has a larger error.
  """
  pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
  for k, (a, b) in enumerate(pairs):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
      raise ValueError(f"{name}: array {k} has shape {a.shape}, not {b.shape}")
    size = max(float(np.linalg.norm(b)), 1e-30)
    error = float(np.linalg.norm(a - b)) / size
    if not error <= tolerance:
      raise ValueError(
        f"{name} computes a different result: array {k} has a relative error "
        f"of {error:.1e}, and {tolerance:.0e} is allowed"
      )


def compile_program(
  f: Callable, *args: Any, donate: tuple[int, ...] = ()
) -> tuple[Callable, float, int]:
  """Return (f compiled for args, the seconds it took, the bytes it needs)."""
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
