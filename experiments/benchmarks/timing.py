"""Peers: proven to compute the same, then timed in turns, on a known machine.

A peer is one library's program for a problem, ours included. Its maker takes
the problem, compiles the program, and proves that its results are ours.
"""

import importlib.util
import platform
import re
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.trainer.distributed import num_cores
from experiments.trainer.environment import REPOSITORY, checkout

PACKAGES = (
  *("jax", "jaxlib", "numpy", "optax", "flax", "dm-haiku", "equinox", "keras"),
  *("torch", "onnxruntime"),
)
MOST_CALLS = 64  # of a measurement
_PROVING = threading.Lock()  # two proofs at once may need too much memory


class Unsupported(Exception):
  """A peer cannot be compared here; the message says why."""


class Peer(NamedTuple):
  """A program to time; where results must equal ours, its maker checks them.

  Those of `original` are checked by a test, those of `policies.peer` by `race`.
  """

  run: Callable[[], Any]  # starts a computation and returns its result
  compile_s: float | None = None  # seconds to compile; None if not measured
  bytes: int | None = None  # arguments, results, temporaries; None likewise
  wait: Callable[[Any], Any] = jax.block_until_ready  # until a result is ready


# Each peer's maker and the package that it needs, by name; ours first.
Makers = Mapping[str, tuple[Callable[..., Peer], str]]


def make_peers(
  makers: Makers, *problem: Any, threads: int = 0
) -> tuple[dict[str, Peer], dict[str, str]]:
  """Return the peers of a problem, and why the others are skipped.

  Args:
    makers: of the peers.
    *problem: the arguments of each maker.
    threads: how many make peers at the same time; 0 for none but the caller's.
      XLA compiles in parallel; proofs run one after the other.

  Raises:
    ValueError: a peer computes a different result from ours.
  """

  def attempt(name: str) -> Peer | str:
    make, package = makers[name]
    if not is_installed(package):
      return f"{package} is not installed"
    try:
      return make(*problem)
    # An old library may import what JAX no longer has; an OSError means that a
    # shared library is missing.
    except (Unsupported, ImportError, OSError) as reason:
      return str(reason)
    except AttributeError as error:
      # As "module 'jax.lib' has no …", and "jax.core.get_aval was … removed".
      if not re.match(r"(module ')?jax\b", str(error)):
        raise
      return str(error)

  if threads:
    with ThreadPoolExecutor(threads) as pool:
      made = dict(zip(makers, pool.map(attempt, makers), strict=True))
  else:
    made = {name: attempt(name) for name in makers}
  peers = {name: m for name, m in made.items() if not isinstance(m, str)}
  skipped = {name: m for name, m in made.items() if isinstance(m, str)}
  return peers, skipped


def is_installed(package: str) -> bool:
  """Return whether a package is found, though its import may still fail."""
  return importlib.util.find_spec(package) is not None


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


def tolerance() -> float:
  """Return the relative error that is allowed in float32.

  On a CPU, libraries sum in different orders; elsewhere float32 products may be
  computed in TensorFloat-32, with 10 bits of mantissa. A function and not a
  constant, since `jax.default_backend()` initializes JAX.
  """
  return 1e-4 if jax.default_backend() == "cpu" else 1e-2


def prove(
  name: str, run: Callable[[], Any], expected: Any, tolerance: float
) -> None:
  """Run a peer once, and check its results as `check_same` does."""
  with _PROVING:
    check_same(name, run(), expected, tolerance)


def check_same(name: str, actual: Any, expected: Any, tolerance: float) -> None:
  """Check that each array of `actual` is close to that of `expected`.

  Args:
    name: the peer's name, for the error message.
    actual: a tree of arrays.
    expected: a tree with as many arrays, of the same shapes.
    tolerance: largest allowed error, as `worst_error` measures it.

  Raises:
    ValueError: the trees differ in their number of arrays or in a shape, or an
      array has a larger error.
  """
  error, array = worst_error(actual, expected)
  if not error <= tolerance:
    raise ValueError(
      f"{name} computes a different result: array {array} has a relative error "
      f"of {error:.1e}, and {tolerance:.0e} is allowed"
    )


def worst_error(actual: Any, expected: Any) -> tuple[float, str]:
  """Return the largest relative error of any array, and the array's name.

  It is the norm of the difference of two arrays, divided by the norm of the
  expected one, and infinite where a number is not finite. The device of the
  arrays computes it, in float32.

  Raises:
    ValueError: the trees differ in their number of arrays or in a shape.
  """
  worst = 0.0, "none"
  leaves = jax.tree_util.tree_leaves_with_path(expected)
  for (path, b), a in zip(leaves, jax.tree.leaves(actual), strict=True):
    name = jax.tree_util.keystr(path).lstrip(".")
    if np.shape(a) != np.shape(b):
      raise ValueError(
        f"array {name} has shape {np.shape(a)}, not {np.shape(b)}"
      )
    error = float(_relative_error(a, b))
    worst = max(worst, (error if np.isfinite(error) else np.inf, name))
  return worst


@jax.jit
def _relative_error(a: Any, b: Any) -> jax.Array:
  a, b = (jnp.asarray(x, jnp.float32).ravel() for x in (a, b))
  return jnp.linalg.norm(a - b) / jnp.maximum(jnp.linalg.norm(b), 1e-30)


def compare(
  makers: Makers,
  rounds: int,
  *problem: Any,
  seconds: float = 0.0,
  threads: int = 0,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
  """Make each peer, and time all in turns.

  A maker proves that its peer computes the same (of `original`, a test does; of
  the networks of `policies.peer.race`, `race`; `products alone` computes less).

  Args:
    makers: of the peers; the first is ours.
    rounds: how often each peer is timed.
    *problem: the arguments of each maker.
    seconds: aim of a measurement, which is of several calls and one wait; 0 for
      one call. A GPU's kernels may take less time than the wait for them.
    threads: as `make_peers` takes it.

  Returns:
    (rows, skipped): a row of times and memory for each peer, and why the other
    peers have none, by name.

  Raises:
    ValueError: a peer computes a different result from ours.
  """
  peers, skipped = make_peers(makers, *problem, threads=threads)
  calls = {name: _count_calls(peer, seconds) for name, peer in peers.items()}
  runs = {
    name: partial(_run, peer, calls[name]) for name, peer in peers.items()
  }
  rows: list[dict[str, Any]] = []
  for name, values in measure(runs, rounds).items():
    low, median, high = 1e3 * np.percentile(values, [25, 50, 75]) / calls[name]
    rows.append(
      {
        "peer": name,
        "median_ms": float(median),
        "quartiles_ms": [float(low), float(high)],
        "ratio_to_ours": median / (rows[0]["median_ms"] if rows else median),
        "compile_s": peers[name].compile_s,
        "bytes": peers[name].bytes,
      }
    )
  return rows, skipped


def _count_calls(peer: Peer, seconds: float) -> int:
  """Return how many calls of a peer take so long, at most MOST_CALLS."""
  if not seconds:
    return 1
  _run(peer, 1)  # the first call loads the program
  start = time.perf_counter()
  _run(peer, 1)
  taken = max(time.perf_counter() - start, 1e-6)
  return min(MOST_CALLS, max(1, round(seconds / taken)))


def _run(peer: Peer, calls: int) -> None:
  """Call a peer so often, and wait for the last result."""
  for _ in range(calls):
    result = peer.run()  # frees the previous result
  peer.wait(result)


def measure(
  runs: Mapping[str, Callable[[], Any]], rounds: int
) -> dict[str, list[float]]:
  """Return the seconds that each program takes in each round.

  A program must wait for its results (`jax.block_until_ready`). Each first runs
  once as a warm-up. Every round then runs all programs in a new random order:
  the caches and spinning threads that one program leaves behind must not always
  affect the same other program.
  """
  for run in runs.values():
    run()
  seconds: dict[str, list[float]] = {name: [] for name in runs}
  rng = np.random.default_rng(0)
  for _ in range(rounds):
    for name in rng.permutation(list(runs)):
      start = time.perf_counter()
      runs[name]()
      seconds[name].append(time.perf_counter() - start)
  return seconds


def environment() -> dict[str, Any]:
  """Return the date, processor, devices, versions and commit of a measurement.

  `git_commit` and `git_dirty` are left out where this is not a checkout of git.
  """
  versions: dict[str, str | None] = {}
  for name in PACKAGES:
    try:
      versions[name] = version(name)
    except PackageNotFoundError:
      versions[name] = None
  return {
    "date": datetime.now().date().isoformat(),
    "python": platform.python_version(),
    "processor": _processor(),
    "device": jax.devices()[0].device_kind,
    # Even the time of a program on one device depends on how many there are.
    "num_devices": jax.device_count(),
    "versions": versions,
  } | checkout(REPOSITORY)


def _processor() -> str:
  """Return how many cores this process may use, and their model.

  Where /proc/cpuinfo does not name the model, return what Python knows.
  """
  path = Path("/proc/cpuinfo")
  lines = path.read_text().splitlines() if path.exists() else []
  names = [line.split(":")[1].strip() for line in lines if "model name" in line]
  return f"{num_cores()} × {names[0]}" if names else platform.processor()
