"""The error that ends a training."""


class Diverged(Exception):
  """A loss or a gradient is NaN or infinite, more often than may be skipped.

  A sweep and the search for a learning rate raise it if all of their members
  have diverged; the training of a cell, in a comparison, or of policies, if a
  seed has; and a comparison, if all of its trainings have. The message says
  what has diverged: of a single run, what is not finite, and at which step.
  """
