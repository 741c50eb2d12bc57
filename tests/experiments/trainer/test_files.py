"""Files that are written whole, and what they record of the environment."""

import errno
import json
import math
import os
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from experiments.trainer import files
from experiments.trainer.environment import (
  REPOSITORY,
  checkout,
  environment,
  environment_of,
)
from experiments.trainer.files import (
  are_numbers,
  write_bytes,
  write_json,
)


def test_a_link_stays_a_link(tmp_path):
  target, link = tmp_path / "target.json", tmp_path / "link.json"
  target.write_text("old")
  link.symlink_to(target)
  write_json(link, {"new": 1})
  assert link.is_symlink() and target.read_text() == '{\n  "new": 1\n}\n'
  assert sorted(p.name for p in tmp_path.iterdir()) == [
    "link.json",
    "target.json",
  ]


def test_a_link_to_a_pipe_is_written_to(tmp_path):
  """As /dev/stdout, where the output of a program goes to another one."""
  reading, writing = os.pipe()
  link = tmp_path / "stdout"
  link.symlink_to(f"/dev/fd/{writing}")
  write_bytes(link, b"through")
  os.close(writing)
  with os.fdopen(reading, "rb") as pipe:
    assert pipe.read() == b"through"


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
  kept = {"device": "gpu, X", "git_commit": "1a"}  # of an earlier version
  assert environment_of({"seed": 0} | kept) == kept
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


def test_what_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
  def full(part):
    raise OSError(errno.ENOSPC, "No space left on device")

  with pytest.raises(ValueError, match="JSON"):
    write_json(tmp_path / "result.json", {"loss": math.nan})
  monkeypatch.setattr(files, "sync", full)
  with pytest.raises(OSError, match=r"No space left on device: .*result"):
    write_bytes(tmp_path / "result.json", b"text")
  assert not [*tmp_path.iterdir()]


def test_only_finite_numbers_are_numbers():
  assert are_numbers([0, -1, 2.5, 10**300])
  for other in (True, None, "1", [1], math.nan, -math.inf):
    assert not are_numbers([0, other])
