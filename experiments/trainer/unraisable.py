"""Exceptions that Python cannot raise, such as those of `__del__`."""

import os
import signal
import sys
import threading
from typing import Any


def report_unraisable(unraisable: Any) -> None:
  """Report an exception that cannot be raised; for `sys.unraisablehook`.

  A Ctrl-C within a callback, such as that of JAX as garbage is collected, would
  be lost: the signal is sent again, to come after the callback.

  Those of TensorStore are not reported: once orbax has given up a read or a
  write, each thread complains of a closed event loop. Orbax raises the reason.
  """
  if isinstance(unraisable.exc_value, KeyboardInterrupt):
    again = os.kill, (os.getpid(), signal.SIGINT)
    threading.Timer(0.01, *again).start()  # in seconds
  elif "Event loop is closed" not in str(unraisable.exc_value):
    sys.__unraisablehook__(unraisable)
