"""The means and the speed of a row of metrics.jsonl."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.trainer import metric_buffer
from experiments.trainer.errors import Diverged
from experiments.trainer.metric_buffer import MetricBuffer, Row
from lstm_jax.training import Metrics


@pytest.fixture
def clock(monkeypatch):
  """A clock that stands still until it is set."""
  now = [10.0]
  monkeypatch.setattr(metric_buffer.time, "monotonic", lambda: now[0])
  return now


def add(buffer, *steps):
  """Add training steps: (loss, gradient norm, number of tokens) of each."""
  for loss, grad_norm, num_tokens in steps:
    values = np.float32(loss), np.float32(grad_norm), num_tokens
    buffer.add(Metrics(*values, grad_norms={}))


def test_a_row_has_the_means_of_the_finite_steps_and_the_speed_of_all(clock):
  buffer = MetricBuffer(max_skipped=1)
  buffer.start_clock()
  add(buffer, (1, 3, 10), (2, 5, 10), (math.nan, 7, 10))
  clock[0] += 2
  assert buffer.take(3) == Row(1.5, 4.0, tokens_per_second=15.0)  # 30 in 2 s
  assert (buffer.skipped, buffer.seconds, len(buffer)) == (1, 2.0, 0)
  clock[0] += 5  # an evaluation: `take` has stopped the buffer's clock
  buffer.start_clock()
  add(buffer, (8, 1, 6), (4, math.inf, 6))
  clock[0] += 3
  assert buffer.take(5) == Row(8.0, 1.0, 4.0)
  assert (buffer.skipped, buffer.seconds) == (2, 5.0)
  buffer.start_clock()
  clock[0] += 9
  assert buffer.take(5) is None and buffer.seconds == 5.0
  assert buffer.to_progress()["pending_seconds"] == 0.0


def test_the_time_includes_the_steps_that_were_still_running(clock):
  class Running:
    """A loss that is known 3 s after it is asked for."""

    def __array__(self, dtype=None, copy=None):
      clock[0] += 3
      return np.asarray(1.0, dtype)

  buffer = MetricBuffer(max_skipped=0)
  buffer.start_clock()
  buffer.add(Metrics(Running(), np.float32(2), 30, grad_norms={}))
  clock[0] += 2
  assert buffer.take(1) == Row(1.0, 2.0, 6.0)  # 30 tokens in 5 s
  buffer.start_clock()
  buffer.add(Metrics(Running(), np.float32(2), 30, grad_norms={}))
  assert buffer.to_progress()["pending_seconds"] == 3.0


def test_more_steps_in_a_row_than_may_be_skipped_end_the_run(clock):
  buffer = MetricBuffer(max_skipped=1)
  buffer.start_clock()
  # Steps 6 to 9, of which 6 and the last two are not finite.
  add(buffer, (math.nan, 1, 1), (1, 1, 1), (math.inf, 1, 1), (1, math.nan, 1))
  clock[0] += 1
  message = (
    "^the gradient is not finite at step 9, and at most 1 in a row may be "
    r"skipped$"
  )
  with pytest.raises(Diverged, match=message):
    buffer.take(9)


def test_what_a_checkpoint_holds_is_continued(clock):
  buffer = MetricBuffer(max_skipped=1)
  buffer.start_clock()
  add(buffer, (math.nan, 1, 10), (1, 1, 10), (math.nan, 1, 10))
  clock[0] += 4
  buffer.take(3)
  buffer.start_clock()
  add(buffer, (1, 2, 10))
  clock[0] += 2
  saved = buffer.to_progress()
  assert saved["pending_seconds"] == 2.0 and saved["seconds"] == 4.0
  # Two steps were skipped in all, and one right before the pending step.
  assert saved["pending"] == [[1, 2, 10]] and saved["skipped"] == (2, 1)
  resumed = MetricBuffer(max_skipped=1)
  resumed.restore(SimpleNamespace(**saved))
  resumed.start_clock()
  add(resumed, (3, 4, 20))
  clock[0] += 1
  assert resumed.take(5) == Row(2.0, 3.0, 10.0)
  assert (resumed.skipped, resumed.seconds) == (2, 7.0)
  resumed.restore(SimpleNamespace(**saved | {"pending": []}))
  resumed.start_clock()
  add(resumed, (math.nan, 1, 10))
  clock[0] += 1
  with pytest.raises(
    Diverged, match="the loss is nan at step 4, and at most 1"
  ):
    resumed.take(4)
