"""The error of a training that diverges, and the end of its run."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console

from lstm_jax.training import CheckpointError


class Diverged(Exception):
  """A loss or a gradient is NaN or infinite, more often than may be skipped.

  A sweep and the search for a learning rate raise it if all of their members
  have diverged. The training of a cell in a comparison, and that of policies,
  raise it if one seed has diverged. A comparison raises it if all of its
  trainings have diverged. The message says what has diverged; for a single run,
  it says what is not finite, and at which step.
  """

  signalled: signal.Signals | None = None  # what came while it diverged


@contextmanager
def closing_run(closable: Any, console: Console) -> Iterator[None]:
  """Close what writes a run at the block's end, like `contextlib.closing`.

  If the block raises Diverged, an OSError or CheckpointError of closing, as on
  a full disk, is printed, and the block's error is raised: the message and the
  exit status are those of a run that has diverged. Any other error of closing,
  such as that of `check_held`, is raised in place of the block's.
  """
  try:
    yield
  finally:
    diverged = isinstance(sys.exception(), Diverged)
    try:
      closable.close()
    except (OSError, CheckpointError) as error:
      if not diverged:
        raise
      with suppress(OSError):  # the output may lie on the same full disk
        console.print(f"{error}", soft_wrap=True, markup=False)
