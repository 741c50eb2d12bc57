"""The device, the package versions and the commit of a run, and the time."""

import subprocess
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

REPOSITORY = Path(__file__).absolute().parents[2]


def environment() -> dict[str, Any]:
  """Return versions, device and commit, to record with results.

  `git_commit` and `git_dirty` are left out where `checkout` returns {}. So is
  the version of a package that is not installed, as when lstm-jax is only on
  Python's path.
  """
  versions: dict[str, str] = {}
  for name in ("jax", "jaxlib", "optax", "flax", "lstm-jax"):
    with suppress(PackageNotFoundError):
      versions[name] = version(name)
  device = {"device": device_name()}
  return {"versions": versions} | device | checkout(REPOSITORY)


def environment_of(record: Mapping[str, Any]) -> dict[str, Any]:
  """Return the `environment` of an earlier run, from its config.json."""
  entries = "versions", "device", "git_commit", "git_dirty"
  return {name: record[name] for name in entries if name in record}


def time_now() -> str:
  """Return the time and its zone in ISO 8601, to the second."""
  return datetime.now().astimezone().isoformat(timespec="seconds")


def device_name() -> str:
  """Return the platform and kind of the device."""
  device = jax.devices()[0]
  return f"{device.platform}, {device.device_kind}"


@cache  # the running code was imported at the start, whatever changes later
def checkout(directory: Path) -> dict[str, Any]:
  """Return the commit of a checkout, and whether its files differ from it.

  Files that git does not track do not count: runs and notes are among them.

  Returns:
    {"git_commit": hash, "git_dirty": bool}; {} where the directory is not the
    top of a checkout, as in an unpacked archive, where there is no commit or no
    git, or where git refuses the checkout, as it does if another user owns it.
  """
  if not (directory / ".git").exists():
    return {}
  git = ["git", "--no-optional-locks", "-C", str(directory)]
  status = [*git, "status", "--porcelain", "--untracked-files=no"]
  options: dict[str, Any] = {"capture_output": True, "text": True}
  try:
    commit, changes = (
      subprocess.run(command, check=True, timeout=20, **options).stdout
      for command in ([*git, "rev-parse", "HEAD"], status)
    )
  except (OSError, subprocess.SubprocessError):
    return {}
  return {"git_commit": commit.strip(), "git_dirty": bool(changes)}
