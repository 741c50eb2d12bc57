"""Run modules in forked processes, none of which has to import JAX again.

A server, a process of its own that starts no device, imports once what the
programs import. It is forked for each program, which takes two seconds less
than to start Python and import JAX. The forks lower programs as the tests do
(`tests.lowering`).
"""

import atexit
import gc
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace

SERVER = multiprocessing.get_context("forkserver")
# What the programs import, but no program: `runpy` warns of a module that is
# imported already. JAX imports mhlo when it lowers its first program, and SciPy
# when it draws orthogonal weights.
SERVER.set_forkserver_preload(
  [
    "experiments.cli",
    "experiments.trainer.logger",
    "experiments.trainer.loop",
    "jaxlib.mlir.dialects.mhlo",
    "matplotlib.backends.backend_agg",
    "scipy.linalg",
    "tests.lowering",
  ]
)
# Stands for the module `multiprocessing`: whatever start method is asked for,
# processes are forked from the server.
FORKING = SimpleNamespace(get_context=lambda method: SERVER)


class Fork:
  """A process of `python -m module`, with some methods of `subprocess.Popen`.

  Args:
    module: its name.
    arguments: those of the command line.
    variables: the whole environment. Those that Python reads when it starts,
      such as PYTHONUNBUFFERED, or JAX when it is imported, have no effect here:
      the server has done both before.
  """

  def __init__(
    self, module: str, arguments: Iterable, variables: Mapping[str, str]
  ):
    self._directory = tempfile.TemporaryDirectory()
    self._files = [Path(self._directory.name, name) for name in ("out", "err")]
    arguments = list(map(str, arguments))
    collect_at = gc.get_threshold()  # garbage is collected as seldom as here
    self._process = SERVER.Process(
      target=_run,
      args=(module, arguments, dict(variables), collect_at, *self._files),
    )
    self._process.start()

  def communicate(self, timeout: float) -> tuple[str, ...]:
    """Wait for the end; return what was printed on stdout and on stderr."""
    self._process.join(timeout)
    if self._process.is_alive():
      raise subprocess.TimeoutExpired(self._process.name, timeout)
    return tuple(path.read_text(errors="replace") for path in self._files)

  def poll(self) -> int | None:
    return self._process.exitcode

  @property
  def returncode(self) -> int | None:
    return self._process.exitcode

  def send_signal(self, signal: int) -> None:
    os.kill(self._process.pid, signal)

  def kill(self) -> None:
    """End the process, if it has not ended, and delete what it has printed."""
    self._process.kill()
    self._process.join()
    self._directory.cleanup()


def _run(module, arguments, variables, collect_at, out, err):
  """Run a module as `python -m` does, and end this process with its status."""
  for number, path in ((1, out), (2, err)):
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
  os.chdir(Path(__file__).parents[1])
  os.environ.clear()
  os.environ |= variables
  sys.argv = [module, *arguments]
  gc.freeze()  # modules are skipped where garbage is collected
  gc.set_threshold(*collect_at)
  # As in a terminal: if the tests are a background job, they ignore SIGINT, and
  # so would this process.
  signal.signal(signal.SIGINT, signal.default_int_handler)
  status = status_of(lambda: runpy.run_module(module, None, "__main__", True))
  # What the interpreter does at its end; os._exit alone would leave it out.
  threading._shutdown()
  atexit._run_exitfuncs()
  sys.stdout.flush()
  os._exit(status)


def status_of(program: Callable[[], object]) -> int:
  """Call a program; return the exit status that the interpreter gives it.

  After a KeyboardInterrupt it is 1, as after any error, and not 130.
  """
  try:
    program()
  except SystemExit as end:
    if end.code is None:
      return 0
    if isinstance(end.code, int):
      return end.code
    print(end.code, file=sys.stderr)
    return 1
  except BaseException:
    sys.excepthook(*sys.exc_info())
    return 1
  return 0
