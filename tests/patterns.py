"""Patterns of the messages that tests expect."""

import re


def exact(path):
  """Return the pattern of a path, which may hold + or ( as in $TMPDIR."""
  return re.escape(str(path))
