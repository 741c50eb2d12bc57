"""The updates that no row of metrics.jsonl tells yet, their time and failures.

Metrics stay on the device until a row needs them, so that an update need not
wait for the one before it to be looked at.
"""

import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.cli import Diverged
from experiments.trainer.checkpoint import Progress


class Row(NamedTuple):
  """What some updates came to."""

  loss: float  # mean of the finite updates, nats per token; NaN without any
  grad_norm: float  # the same
  rate: float  # predictions a second


class MetricBuffer:
  """Counts updates, and the seconds between `start_clock` and `stop_clock`.

  Args:
    skips: how many updates in a row may not be finite.

  Attributes:
    seconds: of the updates that rows have told.
    skipped: updates that were not finite.
  """

  def __init__(self, skips: int = 0):
    self._skips = skips
    self._in_a_row = 0  # updates that were not finite, up to now
    self._pending: list[Sequence[Any]] = []  # (loss, norm, predictions)
    self._pending_seconds = 0.0
    self._mark: float | None = None  # when the clock was started
    self.seconds = 0.0
    self.skipped = 0

  def __len__(self) -> int:
    """Return how many updates wait for a row."""
    return len(self._pending)

  def go_on(self, progress: Progress) -> None:
    """Take up what a checkpoint holds."""
    self._pending = [*progress.pending]
    self._pending_seconds = progress.pending_seconds
    self.seconds = progress.seconds
    self.skipped, self._in_a_row = progress.skipped

  def kept(self) -> dict[str, Any]:
    """Return those fields of a `Progress`; stop the clock."""
    pending = self._pending_values()
    self.stop_clock()
    return {
      "pending": pending,
      "pending_seconds": self._pending_seconds,
      "seconds": self.seconds,
      "skipped": (self.skipped, self._in_a_row),
    }

  def start_clock(self) -> None:
    """Count the seconds from now on as those of updates."""
    self._mark = time.monotonic()

  def stop_clock(self) -> None:
    """Count no more of them."""
    if self._mark is not None:
      self._pending_seconds += time.monotonic() - self._mark
    self._mark = None

  def add(self, loss: Any, norm: Any, num_tokens: Any) -> None:
    """Take the metrics of one update, which may still be under way."""
    self._pending.append((loss, norm, num_tokens))

  def take(self, step: int) -> Row | None:
    """Return what waits for a row, up to this update; stop the clock.

    Raises:
      Diverged: a loss or a gradient is NaN or infinite, and is not to be
        skipped, or not so many in a row.
    """
    if not self._pending:
      self._mark = None
      return None
    values = self._pending_values()  # which waits for the updates
    self.stop_clock()
    losses, norms, num_tokens = np.array(values).T
    finite = np.isfinite(losses) & np.isfinite(norms)
    self._refuse(step, losses, finite)
    row = Row(
      float(losses[finite].mean()) if finite.any() else math.nan,
      float(norms[finite].mean()) if finite.any() else math.nan,
      float(num_tokens.sum() / self._pending_seconds),
    )
    self.seconds += self._pending_seconds
    self._pending, self._pending_seconds = [], 0.0
    return row

  def _refuse(self, step: int, losses: np.ndarray, finite: np.ndarray) -> None:
    """Raise Diverged for what is not finite, or count it."""
    for at, (loss, fine) in enumerate(
      zip(losses, finite, strict=True), start=step - len(losses) + 1
    ):
      self._in_a_row = 0 if fine else self._in_a_row + 1
      if self._in_a_row > self._skips:
        what = f"loss is {loss}"
        if math.isfinite(loss):
          what = "gradient is not finite"
        often = f", as in {self._skips} before it" if self._skips else ""
        raise Diverged(f"the {what} at update {at}{often}")
    self.skipped += int((~finite).sum())

  def _pending_values(self) -> list[list[float]]:
    return [[float(x) for x in jax.device_get(m)] for m in self._pending]
