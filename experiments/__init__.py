"""Experiments with recurrent networks: programs, and packages for them.

The programs run from a clone, `python -m experiments.NAME`, and need the extra
`experiments`, which `uv run` installs by itself. They need a POSIX system, such
as Linux.
"""

import importlib.util
import sys

_EXTRA = "absl", "matplotlib", "rich"
_missing = [name for name in _EXTRA if importlib.util.find_spec(name) is None]
_message = ""
if importlib.util.find_spec("fcntl") is None:  # as on Windows
  _message = "the experiments need a POSIX system such as Linux (Windows: WSL)"
elif _missing:
  _message = (
    f"the experiments need {', '.join(_missing)}: "
    "pip install -e '.[experiments]'"
  )
if _message:
  # While `python -m` looks for its module, sys.argv[0] is "-m".
  if sys.argv[0] == "-m":
    print(f"error: {_message}", file=sys.stderr)
    sys.exit(2)
  raise ImportError(_message)
