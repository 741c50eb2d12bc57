"""Experiments with recurrent networks: programs, and packages for them.

The programs run from a clone, `python -m experiments.NAME`, and need the extra
`experiments`, which `uv run` installs by itself. They need a POSIX system, such
as Linux.
"""

import importlib.util
import os
import signal
import sys

_EXTRA = "absl", "matplotlib", "rich"
_missing = [name for name in _EXTRA if importlib.util.find_spec(name) is None]
# While `python -m` looks for its module, sys.argv[0] is "-m".
_starts_program = sys.argv[0] == "-m"
_message = ""
if importlib.util.find_spec("fcntl") is None:  # as on Windows
  _message = "the experiments need a POSIX system such as Linux (Windows: WSL)"
elif _missing:
  _message = (
    f"the experiments need {', '.join(_missing)}: "
    "pip install -e '.[experiments]'"
  )
if _message:
  if _starts_program:
    print(f"error: {_message}", file=sys.stderr)
    sys.exit(2)
  raise ImportError(_message)


def interrupt_imports(signum: int, frame: object) -> None:
  """Handle Ctrl-C during a program's imports, which take a second or two."""
  del frame
  print("error: interrupted", file=sys.stderr)
  os._exit(128 + signum)


# From `cli.launch` on, Ctrl-C raises KeyboardInterrupt again.
_raises = signal.getsignal(signal.SIGINT) is signal.default_int_handler
if _starts_program and _raises:
  signal.signal(signal.SIGINT, interrupt_imports)
