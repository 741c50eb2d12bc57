"""The commit of the checkout is recorded with results, where there is one."""

import json
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from experiments.trainer.environment import (
  REPOSITORY,
  checkout,
  environment,
  environment_of,
)

find = checkout.__wrapped__  # without its cache
needs_git = pytest.mark.skipif(not shutil.which("git"), reason="needs git")


def git(directory, *arguments):
  identity = "-c", "user.name=Will", "-c", "user.email=will@example.org"
  command = "git", "-C", str(directory), *identity, *arguments
  done = subprocess.run(command, check=True, capture_output=True, text=True)
  return done.stdout.strip()


@pytest.fixture
def made(tmp_path):
  """A checkout with one commit and one file."""
  git(tmp_path, "init")
  (tmp_path / "file").write_text("one")
  git(tmp_path, "add", "file")
  git(tmp_path, "-c", "commit.gpgsign=false", "commit", "-m", "First")
  return tmp_path


@needs_git
def test_a_checkout_has_a_commit_and_says_whether_its_files_differ(made):
  commit = git(made, "rev-parse", "HEAD")
  (made / "notes").write_text("not tracked")
  assert find(made) == {"git_commit": commit, "git_dirty": False}
  (made / "file").write_text("two")
  assert find(made) == {"git_commit": commit, "git_dirty": True}


@needs_git
def test_what_is_no_checkout_has_no_commit(made, tmp_path_factory, monkeypatch):
  inner = made / "unpacked"
  inner.mkdir()
  assert find(inner) == {}  # the commit of `made`, around it, is not its own
  empty = tmp_path_factory.mktemp("empty")
  git(empty, "init")
  assert find(empty) == {}  # no commit yet
  monkeypatch.setenv("PATH", str(empty))
  assert find(made) == {}  # no git


def test_a_run_records_the_commit_and_the_installed_versions(
  finished_config, monkeypatch
):
  path = Path(finished_config.job.run) / "config.json"
  record = json.loads(path.read_text())
  assert environment() == environment_of(record)
  assert checkout(REPOSITORY).items() <= record.items()

  def version(name):
    if name == "lstm-jax":
      raise PackageNotFoundError(name)
    return record["versions"][name]

  monkeypatch.setattr("experiments.trainer.environment.version", version)
  whole = record["versions"].items()
  assert environment()["versions"] == {
    n: v for n, v in whole if "lstm" not in n
  }


def test_the_environment_of_an_earlier_run_is_all_that_it_recorded():
  kept = {"versions": {"jax": "1"}, "device": "gpu, X", "git_commit": "1a"}
  for found in (kept, kept | {"git_dirty": True}, {"device": "cpu, cpu"}):
    assert environment_of({"seed": 0} | found) == found
