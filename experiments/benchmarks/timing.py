"""Timing of several programs in turns, and the machine they run on."""

import platform
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.benchmarks.proof import Makers, make_peers
from experiments.trainer.distributed import num_cores
from experiments.trainer.environment import REPOSITORY, checkout

PACKAGES = (
  *("jax", "jaxlib", "numpy", "optax", "flax", "dm-haiku", "equinox", "keras"),
  *("torch", "onnxruntime"),
)


def compare(
  makers: Makers, rounds: int, *problem: Any
) -> tuple[list[dict[str, Any]], dict[str, str]]:
  """Make each peer, and time all in turns.

  A maker proves that its peer computes the same (of `original`, a test does; of
  the networks of `policies.peer.race`, `race`; `products alone` computes less).

  Args:
    makers: of the peers; the first is ours.
    rounds: how often each peer is timed.
    *problem: the arguments of each maker.

  Returns:
    (rows, skipped): a row of times and memory for each peer, and why the other
    peers have none, by name.

  Raises:
    ValueError: a peer computes a different result from ours.
  """
  peers, skipped = make_peers(makers, *problem)
  seconds = measure({name: peer.run for name, peer in peers.items()}, rounds)
  ours = float(np.median(next(iter(seconds.values()))))
  rows = []
  for name, values in seconds.items():
    low, median, high = np.percentile(values, [25, 50, 75])
    rows.append(
      {
        "peer": name,
        "median_ms": 1e3 * median,
        "quartiles_ms": [1e3 * low, 1e3 * high],
        "ratio_to_ours": median / ours,
        "compile_s": peers[name].compile_s,
        "bytes": peers[name].bytes,
      }
    )
  return rows, skipped


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
