"""Runs the benchmark's cases (see `case.py`) in worker processes.

A worker that ends or hangs is replaced. The case that it ran has then failed,
and the kinds of its kernels are left out from then on: a case that needs one of
them is skipped, and one that also times other programs runs without it.
"""

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from experiments.benchmarks.gpu.case import ENDED, Case, Result
from experiments.benchmarks.gpu.worker import Message, serve

START_SECONDS = 90.0  # for a process to start
COMPILE_SECONDS = 90.0  # for the cases of a batch to be compiled
END_SECONDS = 5.0  # for a process to end: a driver, or a core dump, takes long
NO_TIME = "no time is left"
PROCESS_ENDED = "the process ended"


class Worker(Protocol):
  """The interface of a worker, which runs cases for a `Supervisor`."""

  def send(self, cases: Sequence[Case], left_out: frozenset[str]) -> None:
    """Start to run cases."""

  def receive(self, seconds: float) -> Message | None:
    """Return the next message, or None if none comes in time.

    Raises:
      EOFError: the worker has ended.
    """

  def stop(self) -> str:
    """End the worker; return how it ended, and its last line on stderr."""


class WorkerProcess:
  """A worker in a process of its own."""

  def __init__(self, jax_on_cpu: bool = False):
    context = multiprocessing.get_context("spawn")
    self._directory = tempfile.TemporaryDirectory()
    self._errors = Path(self._directory.name) / "errors"
    self._connection, other = context.Pipe()
    self._process = context.Process(
      target=serve, args=(other, str(self._errors), jax_on_cpu), daemon=True
    )
    self._process.start()
    other.close()

  def send(self, cases, left_out):
    """Send cases to the process."""
    self._connection.send((cases, left_out))

  def receive(self, seconds):
    """Return its next message."""
    if not self._connection.poll(max(seconds, 0)):
      return None
    try:
      return self._connection.recv()
    except OSError as error:  # it ended, perhaps in the middle of a message
      raise EOFError from error

  def stop(self):
    """Kill the process if it still runs; return how it ended.

    The exit status is None if it had to be killed. A process that is ending has
    closed its connection, which is then readable.
    """
    self._process.join(END_SECONDS if self._connection.poll() else 0.2)
    ended = self._process.exitcode
    self._process.kill()
    self._process.join(10.0)  # a driver may take long to end a kernel
    self._connection.close()
    lines = [""]
    if self._errors.exists():
      text = self._errors.read_text(errors="replace")
      lines = [line for line in text.splitlines() if line.strip()] or lines
    self._directory.cleanup()
    return f"exit status {ended}: {lines[-1][:200]}"


class Section(NamedTuple):
  """Cases that share a time budget.

  Attributes:
    name: what the cases measure.
    cases: in the order in which they run.
    until: seconds since the supervisor's start at which the section should end.
      A batch is assumed to take as long as the one before, and does not begin
      if it would end later; a batch that runs is not stopped for this.
    together: cases in a batch, whose programs are compiled at the same time.
    limit: seconds after which a case without an answer counts as hung.
      Compiling a batch may take COMPILE_SECONDS.
    jax_on_cpu: whether JAX leaves the GPU to another library.
  """

  name: str
  cases: Sequence[Case]
  until: float
  together: int = 1
  limit: float = 60.0
  jax_on_cpu: bool = False


class Stop(NamedTuple):
  """Why a worker sends no more results of a batch, and who is to blame.

  Attributes:
    why: "" if the batch is done, NO_TIME, or what happened to the worker.
    running: the index of the case that ran then; None if none did, or for
      NO_TIME.
  """

  why: str
  running: int | None = None


class Supervisor:
  """Runs the sections, one after the other."""

  def __init__(
    self,
    make_worker: Callable[[bool], Worker],
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Start the clock.

    Args:
      make_worker: starts a worker; takes whether JAX must leave the GPU alone.
      seconds: since the start, after which even a running case is stopped.
      clock: returns seconds.
    """
    self._make_worker, self._seconds, self._clock = make_worker, seconds, clock
    self._begin = clock()
    # When the batch began, after the start of a worker; seconds since ours.
    self._batch_begin = 0.0
    self._worker: Worker | None = None
    self._jax_on_cpu = False
    self.left_out: frozenset[str] = frozenset()  # kinds of kernels

  def elapsed(self) -> float:
    """Return the seconds since the start."""
    return self._clock() - self._begin

  def environment(self) -> dict[str, Any]:
    """Start the first worker, and return its environment.

    If the worker does not start, return {"why": the reason} instead.
    """
    found = self._open(False)
    return found if isinstance(found, dict) else {"why": found}

  def run(self, section: Section) -> Iterator[tuple[Case, Result]]:
    """Yield each case with its result, as it is found.

    A case that runs again, without a kernel, is yielded twice.
    """
    pending, together = list(section.cases), section.together
    last = 0.0  # seconds that the last batch took: the guess for the next one
    while pending:
      if self.elapsed() + last > min(section.until, self._seconds):
        for case in pending:
          skipped = {case.name: NO_TIME}
          yield case, Result(rows=[], skipped=skipped, failures=[])
        return
      dead = [c for c in pending if c.needs_kernels and self._is_out(c)]
      for case in dead:
        yield case, Result([], {case.name: ENDED}, [])
      pending = [case for case in pending if case not in dead]
      batch, pending = pending[:together], pending[together:]
      if not batch:
        return
      known, again = yield from self._run_together(batch, section)
      # A batch that ended its worker does not tell how long the next one takes.
      if self._worker:
        last = self.elapsed() - self._batch_begin
      if not known:  # find the case that ends a worker, one case at a time
        together = 1
      pending = again + pending

  def close(self) -> None:
    """Stop the worker."""
    self._stop()

  def _is_out(self, case: Case) -> bool:
    return bool(case.kernels & self.left_out)

  def _open(self, jax_on_cpu: bool) -> dict[str, Any] | str:
    """Start a worker; return its environment, or why it does not start."""
    self.close()
    self._worker = self._make_worker(jax_on_cpu)
    self._jax_on_cpu = jax_on_cpu
    left = self._seconds - self.elapsed()
    try:
      message = self._worker.receive(min(START_SECONDS, left))
    except EOFError:
      return f"a worker ended when it started, {self._stop()}"
    if message is None:
      self.close()
      late = f"no worker starts in {START_SECONDS:.0f} s"
      return NO_TIME if left < START_SECONDS else late
    return message[2]  # of "ready": the environment

  def _stop(self) -> str:
    """Stop the worker; return how it ended."""
    worker, self._worker = self._worker, None
    return worker.stop() if worker else ""

  def _run_together(
    self, batch: list[Case], section: Section
  ) -> Generator[tuple[Case, Result], None, tuple[bool, list[Case]]]:
    """Yield the results of a batch.

    Returns:
      (known, again): whether the case that ended the worker, if one did, is
      known; and the cases that must run again.
    """
    if self._worker is None or self._jax_on_cpu != section.jax_on_cpu:
      opened = self._open(section.jax_on_cpu)
      if isinstance(opened, str):  # no case is to blame
        for case in batch:
          if opened == NO_TIME:
            yield case, Result([], {case.name: opened}, [])
          else:
            yield case, Result([], {}, [f"{case.name}: {opened}"])
        return True, []
    self._batch_begin = self.elapsed()
    waiting = dict(enumerate(batch))
    stop = yield from self._receive(waiting, section.limit)
    if not stop.why:
      return True, []
    if stop.why == NO_TIME:
      self.close()
      for case in waiting.values():
        yield case, Result([], {case.name: NO_TIME}, [])
      return True, []
    ended, running, again = self._stop(), stop.running, list[Case]()
    if running is None and len(batch) == len(waiting) == 1:
      (running,) = waiting  # it ended while its programs were compiled
    known = running is not None or not waiting
    if running is not None:
      case = waiting.pop(running)
      how = f", {ended}" if stop.why == PROCESS_ENDED else ""
      yield case, Result([], {}, [f"{case.name}: {stop.why}{how}"])
      if not case.needs_kernels and case.kernels - self.left_out:
        again.append(case)
      self.left_out |= case.kernels
    return known, [*again, *waiting.values()]

  def _receive(
    self, waiting: dict[int, Case], limit: float
  ) -> Generator[tuple[Case, Result], None, Stop]:
    """Have the worker run cases, and yield their results.

    Args:
      waiting: the cases by index, from which those with a result are removed.
      limit: seconds after which a case that runs counts as hung. Until the
        first one runs, the limit is COMPILE_SECONDS.

    Returns:
      Why there are no more results.
    """
    worker, seconds = self._worker, COMPILE_SECONDS
    running: int | None = None
    assert worker is not None
    try:
      worker.send([*waiting.values()], self.left_out)
      while True:
        left = self._seconds - self.elapsed()
        match worker.receive(min(seconds, left)):
          case None if left < seconds:
            return Stop(NO_TIME)
          case None:
            return Stop(f"no answer in {seconds:.0f} s; does it hang?", running)
          case "running", int(running), _:
            seconds = limit
          case "result", int(index), result:
            running = None
            yield waiting.pop(index), result
          case "lost", index, text:
            return Stop(f"the device is lost: {text}", index)
          case "done", *_:
            return Stop("")
    except (EOFError, ConnectionError):
      return Stop(PROCESS_ENDED, running)
