"""The error that ends a training."""


class Diverged(Exception):
  """A loss or a gradient is NaN or infinite, more often than may be skipped.

  A sweep and the search for a learning rate raise it if all of their members
  have diverged; a comparison of cells and a training of policies, if a seed
  has. The message names what is not finite, and the step.
  """
