"""Workers and cases for the tests of the benchmark's part gpu."""

import multiprocessing
import os
import time
from dataclasses import dataclass

from experiments.benchmarks.gpu.case import DeviceLost, Prepared, Result
from experiments.benchmarks.gpu.worker import describe, work


class Ended(BaseException):
  """Stands for the end of a process, or for the silence of one that hangs."""


def end_slowly(connection, errors, jax_on_cpu):
  """End as a process whose core is dumped: the connection ends before it."""
  connection.close()
  time.sleep(0.5)
  os._exit(3)


class InProcess:
  """A worker that runs cases as they are sent, in the tests' own process."""

  def __init__(self, jax_on_cpu=False):
    self.messages = [("ready", None, describe())]

  def send(self, cases, left_out):
    try:
      work(cases, left_out, self.messages.append)
    except Ended as end:
      self.messages.append(end)

  def receive(self, seconds):
    message = self.messages.pop(0)
    if isinstance(message, Ended):
      if str(message) == "abort":
        raise EOFError
      return None
    return message

  def stop(self):
    return "exit status -6: the driver complains"


@dataclass(frozen=True)
class Fake:
  """A case that does what its fields say."""

  name: str
  kernels: frozenset[str] = frozenset()
  needs_kernels: bool = True
  does: str = "well"  # or "abort", "hang", "lose", "raise"
  when: str = "run"  # or "prepare"

  def prepare(self, left_out):
    if self.when == "prepare":
      self._act()

    def finish(programs, errors):
      if self.when == "run" and not self.kernels & left_out:
        self._act()
      row = {"name": self.name, "left_out": sorted(self.kernels & left_out)}
      return Result([row], {}, [])

    return Prepared({}, finish)

  def _act(self):
    own_process = multiprocessing.parent_process() is not None
    match self.does:
      case "abort" | "hang" if not own_process:
        raise Ended(self.does)
      case "abort":
        os.write(2, b"the driver complains\n")
        os.abort()
      case "hang":
        time.sleep(1000)
      case "lose":
        raise DeviceLost("an illegal access")
      case "raise":
        raise ValueError("two\nlines")
