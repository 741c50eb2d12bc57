import importlib.util
from functools import partial

from experiments.benchmarks import timing
from experiments.benchmarks.peers.proof import Peer, Unsupported
from experiments.trainer.environment import REPOSITORY, checkout


def test_peers_that_cannot_be_made_are_skipped_with_the_reason():
  def make(problem):
    return Peer(lambda: problem)

  def unsupported(problem):
    raise Unsupported(f"it has no {problem}")

  rows, skipped = timing.compare(
    {
      "ours": (make, "numpy"),
      "absent": (make, "no_such_package"),
      "other": (unsupported, "numpy"),
    },
    1,  # round
    "gru",  # the problem: the argument of each maker
  )
  assert [row["peer"] for row in rows] == ["ours"]
  assert skipped == {
    "absent": "no_such_package is not installed",
    "other": "it has no gru",
  }


def test_every_round_runs_every_program():
  counts = {"a": 0, "b": 0}

  def run(name):
    counts[name] += 1

  runs = {name: partial(run, name) for name in counts}
  seconds = timing.measure(runs, rounds=3)
  assert {name: len(times) for name, times in seconds.items()} == {
    "a": 3,
    "b": 3,
  }
  assert counts == {"a": 4, "b": 4}  # the first run of each is a warm-up


def test_the_environment_has_the_commit_of_the_checkout(monkeypatch):
  expected = checkout(REPOSITORY)
  found = timing.environment()
  assert {n: found[n] for n in found if n.startswith("git_")} == expected
  commit = {"git_commit": "1a2b", "git_dirty": True}
  monkeypatch.setattr(timing, "checkout", {REPOSITORY: commit}.get)
  assert commit.items() <= timing.environment().items()


def test_the_environment_names_the_installed_versions():
  versions = timing.environment()["versions"]
  assert versions["jax"]
  installed = importlib.util.find_spec("torch") is not None
  assert bool(versions["torch"]) == installed
