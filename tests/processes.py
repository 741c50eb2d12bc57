"""Start Python modules in processes of their own, and wait for them."""

import os
import socket
from pathlib import Path

from tests.forking import Fork

ROOT = Path(__file__).parents[1]


def environment():
  """Return the environment of a process that a test starts."""
  return os.environ | {"PYTHONUNBUFFERED": "1"}


def start(module, *arguments, devices=1):
  """Start `python -m module` on `devices` CPU devices; None lets it choose."""
  flags = os.environ.get("XLA_FLAGS", "")
  if devices:
    flags += f" --xla_force_host_platform_device_count={devices}"
  return Fork(module, arguments, environment() | {"XLA_FLAGS": flags})


def finish(*processes, timeout=150):
  """Wait for processes; return (status, output, errors) of each.

  They are awaited in turn, each for `timeout` seconds at most: if one does not
  end, subprocess.TimeoutExpired is raised. None is left behind.
  """
  try:
    outputs = [process.communicate(timeout=timeout) for process in processes]
  finally:
    for process in processes:
      process.kill()
  statuses = [process.returncode for process in processes]
  return [(s, *o) for s, o in zip(statuses, outputs, strict=True)]


def run_program(module, *flags):
  """Run `python -m module` on the devices that it starts; return its output.

  Its exit status must be 0, and it must print no errors.
  """
  ((status, output, errors),) = finish(start(module, *flags, devices=None))
  assert (status, errors) == (0, "")
  return output


def as_flags(record, default):
  """Return --name=value for each value of a record that is not its default.

  Both arguments are {name: value}. A list has one flag for each element.
  """
  flags = []
  for name, value in record.items():
    if value != default[name]:
      values = value if isinstance(value, list) else [value]
      flags += [f"--{name}={one}" for one in values]
  return flags


def free_port():
  """Return a port of 127.0.0.1 at which nobody listens."""
  with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    return listener.getsockname()[1]
