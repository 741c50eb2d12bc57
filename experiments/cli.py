"""How the programs start and end: what is no flag, errors in one line.

Exit status: 0 done; 1 a flag that absl refuses, or a check that fails; 2 bad
input; 3 a loss that is no longer finite; 130 stopped by Ctrl-C (SIGINT) and 143
by SIGTERM, as shells count them.
"""

import io
import logging as standard_logging
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
from absl import app, flags, logging
from rich.console import Console

BAD_INPUT, DIVERGED, SIGNALLED = 2, 3, 128
INTERRUPTED = SIGNALLED + signal.SIGINT
STOPPING = signal.SIGINT, signal.SIGTERM
LARGEST = 2**31 - 1  # of an integer flag


class Diverged(Exception):
  """The loss is NaN or infinite."""


def launch(
  main: Callable[..., int | None], *, takes_arguments: bool = False
) -> None:
  """Parse the flags, call main, and exit with what it returns.

  Args:
    main: the program.
    takes_arguments: whether it is called with the list of those that are no
      flags, which may stand before flags; else there must be none.
  """

  def guarded(argv: Sequence[str]) -> int | None:
    if not flags.FLAGS["verbosity"].present:
      logging.set_verbosity(logging.FATAL)  # orbax tells each of its steps
    try:
      if takes_arguments:
        return main(argv[1:])
      if len(argv) > 1:
        raise ValueError(f"unknown argument {argv[1]!r}: flags begin with --")
      return main()
    except (ValueError, OSError, OverflowError) as error:
      return _fail(error, BAD_INPUT)
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
      return _fail(f"the device refuses: {error or 'out of memory'}", BAD_INPUT)
    except Diverged as error:
      return _fail(error, DIVERGED)
    except KeyboardInterrupt as error:
      return _fail(error if error.args else "interrupted", INTERRUPTED)

  flags.FLAGS.set_gnu_getopt(takes_arguments)
  sys.unraisablehook = _unraisable
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors="replace")  # ASCII terminals get ? for ×
  try:
    app.run(guarded)
  except UnicodeDecodeError as error:  # of a flagfile
    sys.exit(_fail(f"a flagfile is not UTF-8: {error}", BAD_INPUT))


@contextmanager
def stoppable() -> Iterator[list[signal.Signals]]:
  """Collect the signals that ask to stop; a second one of a kind does so."""
  requests: list[signal.Signals] = []

  def request(signum, frame):
    del frame
    requests.append(signal.Signals(signum))
    signal.signal(signum, previous[signum])

  previous = {signum: signal.signal(signum, request) for signum in STOPPING}
  try:
    yield requests
  finally:
    for signum, handler in previous.items():
      signal.signal(signum, handler)


def plain_console() -> Console:
  """Return a console that prints text as it is: no [markup], no :emoji:.

  It moves the cursor only in a terminal that somebody looks at: FORCE_COLOR
  makes none of a pipe, and where CI is set, nobody does.
  """
  watched = sys.stdout.isatty() and not os.environ.get("CI")
  interactive = None if watched else False  # None: unless it is a dumb one
  return Console(
    markup=False, emoji=False, highlight=False, force_interactive=interactive
  )


def finite(flag: flags.FlagHolder) -> flags.FlagHolder:
  """Have the flag refuse NaN and infinity, which its bounds let through."""
  flags.register_validator(
    flag.name,
    lambda value: value is None or math.isfinite(value),
    "must be a finite number",
  )
  return flag


def _unraisable(what: Any) -> None:
  """Tell of an exception that nobody catches, but for TensorStore's.

  Its threads complain of an event loop that is closed, once each, where orbax
  has given up a read or a write, and raises an error that says why.
  """
  if "Event loop is closed" not in str(what.exc_value):
    sys.__unraisablehook__(what)


def _fail(error: object, status: int) -> int:
  # What orbax leaves behind would complain as the interpreter ends.
  sys.unraisablehook = lambda _: None
  standard_logging.getLogger("asyncio").setLevel(standard_logging.CRITICAL)
  message = " ".join(str(error).split())[:500]
  print(f"error: {message}", file=sys.stderr)
  return status
