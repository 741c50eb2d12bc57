"""Time several programs round after round, and say on what machine."""

import platform
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.benchmarks.peers.layers import is_installed
from experiments.benchmarks.peers.proof import Missing, Peer

PACKAGES = "jax", "jaxlib", "flax", "dm-haiku", "equinox", "keras", "torch"


def compare(
  makers: Mapping[str, tuple[Callable[..., Peer], str]],
  rounds: int,
  *problem: Any,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
  """Make every peer of a problem, prove it, and time all of them together.

  Args:
    makers: each peer's maker and the package it needs; ours first.
    rounds: how often each runs.
    problem: what the makers are given.

  Returns:
    (rows, missing): a row for each peer, and why others are left out.

  Raises:
    ValueError: a peer computes something else than ours.
  """
  peers: dict[str, Peer] = {}
  missing = {}
  for name, (make, package) in makers.items():
    if not is_installed(package):
      missing[name] = f"{package} is not installed"
      continue
    try:
      peers[name] = make(*problem)
    except Missing as reason:
      missing[name] = str(reason)
  seconds = measure({name: peer.run for name, peer in peers.items()}, rounds)
  first = float(np.median(next(iter(seconds.values()))))
  rows = []
  for name, values in seconds.items():
    low, median, high = np.percentile(values, [25, 50, 75])
    rows.append(
      {
        "peer": name,
        "median_ms": 1e3 * median,
        "quartiles_ms": [1e3 * low, 1e3 * high],
        "ratio_to_ours": median / first,
        "compile_s": peers[name].compile_s,
        "bytes": peers[name].bytes,
      }
    )
  return rows, missing


def measure(
  runs: Mapping[str, Callable[[], Any]], rounds: int
) -> dict[str, list[float]]:
  """Return the seconds of each program, one a round, all in every round.

  Each round has an order of its own: caches and spinning threads that one
  leaves behind must not always meet the same next one.
  """
  for run in runs.values():
    run()
  seconds: dict[str, list[float]] = {name: [] for name in runs}
  draw = np.random.default_rng(0)
  for _ in range(rounds):
    for name in draw.permutation(list(runs)):
      start = time.perf_counter()
      runs[name]()
      seconds[name].append(time.perf_counter() - start)
  return seconds


def environment() -> dict[str, Any]:
  """Return what a timing depends on: processor, device and versions."""
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
    "versions": versions,
  }


def _processor() -> str:
  path = Path("/proc/cpuinfo")
  lines = path.read_text().splitlines() if path.exists() else []
  names = [line.split(":")[1].strip() for line in lines if "model name" in line]
  return f"{len(names)} × {names[0]}" if names else platform.processor()
