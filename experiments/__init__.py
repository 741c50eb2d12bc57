"""Experiments with recurrent networks: programs, and packages for them.

The programs run from a clone, `python -m experiments.NAME`, and need the extra
`experiments`, which `uv run` installs by itself.
"""

import importlib.util
import sys

_EXTRA = "absl", "matplotlib", "rich"
_missing = [name for name in _EXTRA if importlib.util.find_spec(name) is None]
if _missing:
  _message = (
    f"the experiments need {', '.join(_missing)}: "
    "pip install -e '.[experiments]'"
  )
  if sys.argv[0] == "-m":  # a program is about to start
    print(f"error: {_message}", file=sys.stderr)
    sys.exit(2)
  raise ImportError(_message)
