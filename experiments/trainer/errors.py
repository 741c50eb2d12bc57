"""The error of a training that diverges."""

import signal


class Diverged(Exception):
  """A loss or a gradient is NaN or infinite, more often than may be skipped.

  A sweep and the search for a learning rate raise it if all of their members
  have diverged. The training of a cell in a comparison, and that of policies,
  raise it if one seed has diverged. A comparison raises it if all of its
  trainings have diverged. The message says what has diverged; for a single run,
  it says what is not finite, and at which step.
  """

  signalled: signal.Signals | None = None  # what came while it diverged
