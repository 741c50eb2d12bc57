"""The error that ends a training."""


class Diverged(Exception):
  """A loss or a gradient is NaN or infinite.

  Of several members or learning rates: at each of them.
  """
