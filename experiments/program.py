"""How the programs start and end: no stray arguments, errors in one line.

Exit status: 0 done; 1 a flag that absl refuses, or a check that fails; 2 bad
input; 3 a loss that is no longer finite; 130 interrupted.
"""

import logging as standard_logging
import math
import sys
from collections.abc import Callable, Sequence

from absl import app, flags, logging
from rich.console import Console

BAD_INPUT, DIVERGED, INTERRUPTED = 2, 3, 130


class Diverged(Exception):
  """The loss is NaN or infinite."""


def launch(main: Callable[[], int | None]) -> None:
  """Parse the flags, call main, and exit with what it returns."""

  def guarded(argv: Sequence[str]) -> int | None:
    if not flags.FLAGS["verbosity"].present:
      logging.set_verbosity(logging.FATAL)  # orbax tells each of its steps
    try:
      if len(argv) > 1:
        raise ValueError(f"unknown argument {argv[1]!r}: flags begin with --")
      return main()
    except (ValueError, OSError) as error:
      return _fail(error, BAD_INPUT)
    except Diverged as error:
      return _fail(error, DIVERGED)
    except KeyboardInterrupt:
      return _fail("interrupted", INTERRUPTED)

  app.run(guarded)


def plain_console() -> Console:
  """Return a console that prints text as it is: no [markup], no :emoji:."""
  return Console(markup=False, emoji=False, highlight=False)


def finite(flag: flags.FlagHolder) -> flags.FlagHolder:
  """Have the flag refuse NaN and infinity, which its bounds let through."""
  flags.register_validator(
    flag.name,
    lambda value: value is None or math.isfinite(value),
    "must be a finite number",
  )
  return flag


def _fail(error: object, status: int) -> int:
  # A read of orbax that fails leaves tasks behind, which would complain of it
  # once more as the interpreter ends.
  sys.unraisablehook = lambda _: None
  standard_logging.getLogger("asyncio").setLevel(standard_logging.CRITICAL)
  message = " ".join(str(error).split())
  print(f"error: {message}", file=sys.stderr)
  return status
