"""How programs start, print and exit; expected errors are one line.

The exit status is

  0    done
  1    a check fails; or a bug, with its traceback
  2    bad input, such as a flag that is refused, a full disk, or a device that
       fails or has too little memory
  3    training diverges: a loss or a gradient is NaN or infinite, more often
       than may be skipped; also if its checkpoint cannot be written
  130  the program is stopped by Ctrl-C (SIGINT)
  141  the reader of the output has closed its pipe (SIGPIPE): the program ends
       without a message, and a run resumes as after a kill
  143  the program is stopped by SIGTERM

As in shells, the last three are 128 plus the number of the signal.
"""

import io
import logging as standard_logging
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import jax
from absl import app, flags, logging
from rich.console import Console

from experiments.trainer.config import TrainConfig
from experiments.trainer.format import escape_controls
from experiments.trainer.loop import Diverged
from experiments.trainer.records import HelpFlag

BAD_INPUT, DIVERGED, SIGNALLED = 2, 3, 128
INTERRUPTED = SIGNALLED + signal.SIGINT
PIPE_CLOSED = SIGNALLED + signal.SIGPIPE
STOPPING = signal.SIGINT, signal.SIGTERM


def launch(
  main: Callable[..., int | None],
  *,
  takes_arguments: bool = False,
  required: Sequence[str] = (),
) -> None:
  """Parse the flags, call main, and exit with what it returns.

  Args:
    main: the program.
    takes_arguments: whether main takes the list of positional arguments, which
      may stand before flags; if not, there must be none.
    required: flags that must be given.
  """

  def guarded(argv: Sequence[str]) -> int | None:
    if not flags.FLAGS["verbosity"].present:
      logging.set_verbosity(logging.FATAL)  # orbax logs each of its steps
    try:
      arguments = argv[1:]
      missing = [name for name in required if not flags.FLAGS[name].value]
      stray = [] if takes_arguments else arguments
      if stray or missing:
        raise ValueError(_complaint(stray, missing))
      status = main(arguments) if takes_arguments else main()
      sys.stdout.flush()
      return status
    except BrokenPipeError:
      raise
    except (ValueError, OSError, OverflowError) as error:
      return _fail(error, BAD_INPUT)
    except MemoryError as error:
      return _fail(str(error) or "out of memory", BAD_INPUT)
    except jax.errors.JaxRuntimeError as error:
      return _fail(f"device error: {error}", BAD_INPUT)
    except (AssertionError, RuntimeError):
      reason = _without_device()
      if reason is None:
        raise
      platforms = os.environ["JAX_PLATFORMS"]
      return _fail(
        f"JAX_PLATFORMS={platforms} has no device here: {reason}", BAD_INPUT
      )
    except Diverged as error:
      return _fail(error, DIVERGED)
    except KeyboardInterrupt as error:
      _fail(error if error.args else "interrupted", INTERRUPTED)
      # A thread of JAX may still compile, and would crash as JAX is shut down.
      os._exit(INTERRUPTED)

  # What a read of orbax that fails leaves behind would complain, at any time
  # that garbage is collected, until the interpreter has exited.
  sys.unraisablehook = lambda _: None
  app.define_help_flags()
  flags.DEFINE_flag(HelpFlag())
  flags.FLAGS.set_gnu_getopt(takes_arguments)
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors="replace")  # ASCII terminals get ? for ×
  try:
    app.run(guarded, flags_parser=flags.FLAGS)
  except flags.Error as error:
    message = "; ".join(f"{error}".removeprefix("ERROR:: ").splitlines())
    sys.exit(_fail(message, BAD_INPUT))
  except UnicodeDecodeError as error:  # of a flagfile
    sys.exit(_fail(f"a flagfile is not UTF-8: {error}", BAD_INPUT))
  except BrokenPipeError:
    _discard_output(sys.stdout)
    sys.exit(PIPE_CLOSED)
  except (ValueError, OSError) as error:  # of --noflag=value; printing --help
    sys.exit(_fail(error, BAD_INPUT))


def _without_device() -> str | None:
  """Return why JAX_PLATFORMS has no device; None if it is not at fault."""
  if "JAX_PLATFORMS" not in os.environ or jax.distributed.is_initialized():
    return None
  try:
    jax.devices()
  except (AssertionError, RuntimeError) as error:
    # An AssertionError means that JAX has no plug-in for the platform.
    return f"{error}" or "JAX has no plug-in for it"
  return None


def _complaint(stray: Sequence[str], missing: Sequence[str]) -> str:
  """Return what is wrong with stray arguments and missing flags."""
  if not stray:
    return f"--{missing[0]} must be given"
  if stray[0].startswith("\ufeff"):
    return "a flagfile begins with a byte order mark: save it without one"
  unknown = f"unknown argument {stray[0]!r}: "
  if not missing:
    return unknown + "flags begin with --"
  return unknown + f"did you mean --{missing[0]}={shlex.quote(stray[0])}?"


@contextmanager
def collect_stop_requests() -> Iterator[list[signal.Signals]]:
  """Collect the signals that ask to stop; the second of a kind stops at once.

  A signal that is ignored stays so, as SIGINT in a script's background job.
  """
  requests: list[signal.Signals] = []

  def request(signum, frame):
    del frame
    requests.append(signal.Signals(signum))
    signal.signal(signum, previous[signum])

  handlers = {signum: signal.getsignal(signum) for signum in STOPPING}
  previous = {n: h for n, h in handlers.items() if h is not signal.SIG_IGN}
  for signum in previous:
    signal.signal(signum, request)
  try:
    yield requests
  finally:
    for signum, handler in previous.items():
      signal.signal(signum, handler)


def exit_status(
  program: str,
  config: TrainConfig,
  directory: Path,
  stopped_by: signal.Signals | None,
  console: Console,
) -> int:
  """Return a run's exit status; if it was stopped, print how to resume it."""
  if stopped_by is None:
    return 0
  # More flags will follow, which would not be read after "--".
  arguments = [a for a in sys.argv[1:] if a != "--"]
  job = config.job
  if not job.run:
    arguments.append(f"--run={directory}")
  if job.overwrite:
    arguments.append("--nooverwrite")
  if not job.resume:
    arguments.append("--resume")
  command = command_line(program, arguments)
  console.print(f"to resume the training:\n  {command}", soft_wrap=True)
  return SIGNALLED + stopped_by


def command_line(program: str, arguments: list[str]) -> str:
  """Return the command line of a program, quoted for a POSIX shell.

  It starts the same Python: by `uv run` if that started this program, else as
  `python` if the shell finds it by that name, else by its path.
  """
  python = [sys.executable]
  if "UV_RUN_RECURSION_DEPTH" in os.environ:
    python = ["uv", "run", "python"]
  elif shutil.which("python") == f"{sys.exec_prefix}/bin/python":
    python = ["python"]
  return shlex.join([*python, "-m", f"experiments.{program}", *arguments])


def make_console() -> Console:
  """Return a console without [markup] and :emoji:; it escapes controls.

  It moves the cursor only in a terminal, and not where CI is set: a build log
  would keep every frame. FORCE_COLOR does not turn a pipe into a terminal.
  """
  terminal = sys.stdout.isatty() and not os.environ.get("CI")
  interactive = None if terminal else False  # rich excludes dumb terminals
  return _Console(
    markup=False, emoji=False, highlight=False, force_interactive=interactive
  )


class _Console(Console):
  """A console that escapes controls, and leaves a closed pipe to `launch`."""

  def render_str(self, text: str, **options: Any) -> Any:
    return super().render_str(escape_controls(text), **options)

  def on_broken_pipe(self) -> None:
    raise BrokenPipeError  # rich would exit with 1


def _fail(error: object, status: int) -> int:
  """Print an error as one line, and return the exit status."""
  standard_logging.getLogger("asyncio").setLevel(standard_logging.CRITICAL)
  message = escape_controls(" ".join(_text(error).split()))[:500]
  try:
    print(f"error: {message}", file=sys.stderr)
  except OSError:  # such as a log on a full disk: only the status is left
    _discard_output(sys.stderr)
  try:
    sys.stdout.flush()
  except OSError:  # such as a full disk, of which the message says enough
    _discard_output(sys.stdout)
  return status


def _text(error: object) -> str:
  """Return the message of an error, without the number of an OSError."""
  if isinstance(error, OSError) and error.strerror:
    name = f"{error.filename}: " if error.filename else ""
    return name + error.strerror.lower()
  return str(error)


def _discard_output(stream: TextIO) -> None:
  """Drop output that cannot be written: the interpreter would try at exit."""
  os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
