import importlib.util
import sys
from functools import partial
from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import models, samplers, sequences, timing
from experiments.benchmarks.timing import (
  Peer,
  Unsupported,
  check_same,
  compile_program,
  tolerance,
)
from experiments.trainer.environment import REPOSITORY


def test_peers_that_cannot_be_made_are_skipped_with_the_reason():
  def make(problem):
    return Peer(lambda: problem)

  def unsupported(problem):
    raise Unsupported(f"it has no {problem}")

  def without_onnx(problem):
    raise ModuleNotFoundError("needs the package onnx")

  def outdated(problem):
    raise ImportError("cannot import name 'xla' from 'jax'")

  def older(problem):
    raise AttributeError("module 'jax.lib' has no attribute 'xla_extension'")

  def oldest(problem):
    raise AttributeError("jax.core.get_aval was deprecated and removed")

  def incomplete(problem):
    raise OSError("libcudart.so.13: no such file")

  rows, skipped = timing.compare(
    {
      "ours": (make, "numpy"),
      "absent": (make, "no_such_package"),
      "other": (unsupported, "numpy"),
      "broken": (without_onnx, "numpy"),
      "old": (outdated, "numpy"),
      "older": (older, "numpy"),
      "oldest": (oldest, "numpy"),
      "incomplete": (incomplete, "numpy"),
    },
    1,  # round
    "gru",  # the problem: the argument of each maker
  )
  assert [row["peer"] for row in rows] == ["ours"]
  assert skipped == {
    "absent": "no_such_package is not installed",
    "other": "it has no gru",
    "broken": "needs the package onnx",
    "old": "cannot import name 'xla' from 'jax'",
    "older": "module 'jax.lib' has no attribute 'xla_extension'",
    "oldest": "jax.core.get_aval was deprecated and removed",
    "incomplete": "libcudart.so.13: no such file",
  }


def test_a_mistake_in_a_peer_is_not_skipped():
  def mistaken(problem):
    return problem.shape

  with pytest.raises(AttributeError, match="'str' object has no attribute"):
    timing.compare({"ours": (mistaken, "numpy")}, 1, "gru")


def test_every_round_runs_every_program_in_a_random_order():
  calls = []
  runs = {name: partial(calls.append, name) for name in "abc"}
  seconds = timing.measure(runs, rounds=20)
  assert {name: len(times) for name, times in seconds.items()} == dict.fromkeys(
    "abc", 20
  )
  warm_up, *rounds = ("".join(calls[k : k + 3]) for k in range(0, 63, 3))
  assert warm_up == "abc"
  assert {"".join(sorted(names)) for names in rounds} == {"abc"}
  assert len({*rounds}) > 3  # of 6 orders


def test_a_row_has_the_median_the_quartiles_and_the_ratio(monkeypatch):
  seconds = {"ours": [4.0, 1.0, 2.0, 3.0, 5.0], "other": [6.0] * 5}
  monkeypatch.setattr(timing, "measure", lambda runs, rounds: seconds)
  makers = {
    name: (lambda k=k: Peer(lambda: None, 0.5 + k, 8 + k), "numpy")
    for k, name in enumerate(seconds)
  }
  ours, other = timing.compare(makers, 5)[0]
  assert (ours["median_ms"], ours["ratio_to_ours"]) == (3000, 1)
  assert ours["quartiles_ms"] == [2000, 4000]
  assert (other["median_ms"], other["ratio_to_ours"]) == (6000, 2)
  assert [(r["compile_s"], r["bytes"]) for r in (ours, other)] == [
    (0.5, 8),
    (1.5, 9),
  ]


def test_the_environment_has_the_commit_of_the_checkout(monkeypatch):
  commit = {"git_commit": "1a2b", "git_dirty": True}
  monkeypatch.setattr(timing, "checkout", {REPOSITORY: commit}.get)
  assert commit.items() <= timing.environment().items()


def test_the_environment_has_the_number_of_devices_and_of_cores(
  tmp_path, monkeypatch
):
  cores = tmp_path / "cpuinfo"
  cores.write_text("processor\t: 0\nmodel name\t: EPYC\n\n" * 9)
  monkeypatch.setattr(timing, "Path", lambda name: cores)
  monkeypatch.setattr(timing, "num_cores", lambda: 3)
  monkeypatch.setattr(jax, "device_count", lambda: 77)
  environment = timing.environment()
  assert environment["num_devices"] == 77
  assert environment["processor"] == "3 × EPYC"


def test_the_version_of_every_peer_is_recorded():
  makers = models.models() | sequences.sequences() | samplers.samplers()
  makers |= sequences.linear() | sequences.reset_peers()
  # Of Haiku and PyTorch, too, whether they are installed or not.
  distributions = {"haiku": "dm-haiku"}
  needed = {package for _, package in makers.values()}
  assert {"torch", "haiku", "onnxruntime"} <= needed
  missing = {distributions.get(n, n) for n in needed} - {*timing.PACKAGES}
  assert missing == set()


def test_the_environment_names_the_installed_versions(monkeypatch):
  packages = *timing.PACKAGES, "no-such-package"
  monkeypatch.setattr(timing, "PACKAGES", packages)
  environment = timing.environment()
  assert environment["python"] == sys.version.split()[0]
  versions = environment["versions"]
  assert versions["jax"] == version("jax")
  assert versions["numpy"] and versions["optax"]
  assert versions["no-such-package"] is None
  for package, found in versions.items():
    name = {"dm-haiku": "haiku"}.get(package, package)
    installed = importlib.util.find_spec(name) is not None
    assert found == (version(package) if installed else None), package


def test_results_are_compared_by_the_norm_of_each_array():
  a = np.full(4, 100.0)
  check_same("peer", [a + 0.5, 0 * a], [a, 0 * a], 0.01)
  for wrong, message in (
    (a + 2.0, r"peer computes a different result: array \[1\] .* 2.0e-02, and"),
    (a * np.nan, r"array \[1\] has a relative error of inf"),
    (a[:1], r"array \[1\] has shape \(1,\), not \(4,\)"),
  ):
    with pytest.raises(ValueError, match=message):
      check_same("peer", [a, wrong], [a, a], 0.01)
  assert tolerance() == 1e-4  # on a CPU


def test_the_memory_of_a_donated_argument_is_counted_once():
  x = jnp.ones(10_000, jnp.float32)  # 40,000 bytes, and as many for the result
  for donate, size in (((), 80_000), ((0,), 40_000)):
    program, seconds, found = compile_program(jnp.sin, x, donate=donate)
    assert size <= found < size + 10_000 and seconds > 0
  assert program(x).shape == x.shape and x.is_deleted()


def test_a_measurement_is_of_several_calls_and_one_wait(monkeypatch):
  calls, waits = [], []

  def run():
    calls.append(1)
    return len(calls)

  clock = iter([0.0, 0.001])  # around the second call: 1 ms
  monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))

  def measure(runs, rounds):
    runs["a"]()
    return {"a": [0.010] * rounds}

  monkeypatch.setattr(timing, "measure", measure)
  makers = {"a": (lambda: Peer(run, wait=waits.append), "numpy")}
  (row,), _ = timing.compare(makers, 3, seconds=0.005)
  assert waits == [1, 2, 7]  # two single calls, then one of five
  assert row["median_ms"] == 2 and row["quartiles_ms"] == [2, 2]


def test_no_peer_leaves_no_row():
  makers = {"a": (Peer, "no_such_package")}
  assert timing.compare(makers, 3, threads=2) == (
    [],
    {"a": "no_such_package is not installed"},
  )
