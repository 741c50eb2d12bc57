"""Errors that end a training run."""


class Diverged(Exception):
  """The training or validation loss is NaN or infinite."""
