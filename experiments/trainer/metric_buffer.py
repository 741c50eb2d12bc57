"""Metrics of the training steps that no row of metrics.jsonl holds yet.

Metrics stay on the device until a row needs them, so that a training step need
not wait until the metrics of the step before it have been read.
"""

import math
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.trainer.checkpoint import Progress
from experiments.trainer.errors import Diverged
from lstm_jax.training import Metrics


class Row(NamedTuple):
  """Means over the training steps since the last row."""

  train_loss: float  # of the finite steps, nats per token; NaN if none
  grad_norm: float  # likewise
  tokens_per_second: float


class MetricBuffer:
  """Collects metrics, and the seconds from `start_clock` to `stop_clock`.

  Args:
    max_skipped: how many consecutive steps may have a loss or a gradient that
      is not finite.

  Attributes:
    seconds: training time of all rows so far.
    skipped: training steps with a non-finite loss or gradient.
  """

  def __init__(self, max_skipped: int):
    self._max_skipped = max_skipped
    self._consecutive = 0  # skipped steps at the end of the rows so far
    self._pending: list[Any] = []  # (loss, grad_norm, num_tokens) of each step
    self._pending_seconds = 0.0
    self._started: float | None = None  # when the clock was started
    self.seconds = 0.0
    self.skipped = 0

  def __len__(self) -> int:
    """Return how many steps wait for a row."""
    return len(self._pending)

  def restore(self, progress: Progress) -> None:
    """Take over what a checkpoint holds."""
    self._pending = [*progress.pending]
    self._pending_seconds = progress.pending_seconds
    self.seconds = progress.seconds
    self.skipped, self._consecutive = progress.skipped

  def to_progress(self) -> dict[str, Any]:
    """Return the fields of a `Progress` that it holds; stop the clock."""
    pending = self._pending_values()
    self.stop_clock()
    return {
      "pending": pending,
      "pending_seconds": self._pending_seconds,
      "seconds": self.seconds,
      "skipped": (self.skipped, self._consecutive),
    }

  def start_clock(self) -> None:
    """Count the seconds from now on as those of training steps."""
    self._started = time.monotonic()

  def stop_clock(self) -> None:
    """Stop counting seconds."""
    if self._started is not None:
      self._pending_seconds += time.monotonic() - self._started
    self._started = None

  def add(self, metrics: Metrics) -> None:
    """Add the metrics of one step, which may still be running."""
    self._pending.append(metrics[:3])

  def take(self, step: int) -> Row | None:
    """Return the row of all pending steps; None if there are none.

    The clock stops; without pending steps, its time is not counted.

    Args:
      step: the last pending step.

    Raises:
      Diverged: too many consecutive losses or gradients are not finite.
    """
    if not self._pending:
      self._started = None
      return None
    values = self._pending_values()  # waits for the steps
    self.stop_clock()
    losses, norms, num_tokens = np.array(values).T
    finite = np.isfinite(losses) & np.isfinite(norms)
    self._count_skipped(step, losses, finite)
    row = Row(
      float(losses[finite].mean()) if finite.any() else math.nan,
      float(norms[finite].mean()) if finite.any() else math.nan,
      float(num_tokens.sum() / self._pending_seconds),
    )
    self.seconds += self._pending_seconds
    self._pending, self._pending_seconds = [], 0.0
    return row

  def _count_skipped(
    self, step: int, losses: np.ndarray, finite: np.ndarray
  ) -> None:
    """Count the steps that are not finite; raise Diverged for too many."""
    first = step - len(losses) + 1
    for at, (loss, fine) in enumerate(zip(losses, finite, strict=True), first):
      self._consecutive = 0 if fine else self._consecutive + 1
      if self._consecutive > self._max_skipped:
        problem = f"loss is {loss}"
        if math.isfinite(loss):
          problem = "gradient is not finite"
        limit = f", and at most {self._max_skipped} in a row may be skipped"
        raise Diverged(
          f"the {problem} at step {at}{limit if self._max_skipped else ''}"
        )
    self.skipped += int((~finite).sum())

  def _pending_values(self) -> list[list[float]]:
    return [[float(x) for x in jax.device_get(m)] for m in self._pending]
