"""Patterns of the messages that tests expect."""

import re


def exact(path):
  """Return a pattern that matches a path literally: it may hold + or (."""
  return re.escape(str(path))
