"""The training loop of `train`, `sweep` and `compare_cells`."""

import signal
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from experiments.trainer import distributed
from lstm_jax.training import (
  Epoch,
  Metrics,
  TrainState,
  TrainStep,
  remaining_batches,
  take_step,
)

AGREE_EVERY = 50  # training steps after which processes may stop together
WARM_UP = 3  # training steps before a trace starts: they compile


class Diverged(Exception):
  """A loss or a gradient is NaN or infinite, more often than may be skipped.

  A sweep and the search for a learning rate raise it if all of their members
  have diverged. The training of a cell in a comparison, and that of policies,
  raise it if one seed has diverged. A comparison raises it if all of its
  trainings have diverged. The message says what has diverged; for a single run,
  it says what is not finite, and at which step.
  """

  signalled: signal.Signals | None = None  # what came while it diverged


class Tracer:
  """Traces training steps with JAX's profiler, after the first WARM_UP.

  The trace is in the XPlane format, which TensorBoard's profile page and XProf
  read. It includes the evaluations between the steps. Of several processes,
  only the first writes one.

  Args:
    directory: of the trace.
    num_steps: how many steps to trace; fewer, or none, if the run ends before.
    console: prints a line if the run ends before a step is traced.
  """

  def __init__(self, directory: Path, num_steps: int, console: Console):
    self._directory, self._console = directory, console
    self._num_steps = 0 if jax.process_index() else num_steps
    self._steps, self._running = 0, False

  def __enter__(self) -> "Tracer":
    return self

  def __exit__(self, *error) -> None:
    if self._running:
      try:
        self._stop()
      except OSError as failure:
        if error[0] is None:
          raise
        with suppress(OSError):  # printing must not hide the other error
          self._console.print(f"{failure}", soft_wrap=True)
    elif error[0] is None and self._num_steps and self._steps <= WARM_UP:
      self._console.print(
        f"nothing is profiled: this process must make more than {WARM_UP} "
        f"training steps, got {self._steps}"
      )

  def before_step(self, state: Any) -> None:
    """Start or stop the trace, where it is time, once `state` is computed."""
    if self._num_steps and self._steps == WARM_UP:
      jax.block_until_ready(state)
      jax.profiler.start_trace(self._directory)
      self._running = True
    if self._running and self._steps == WARM_UP + self._num_steps:
      jax.block_until_ready(state)
      self._stop()
    self._steps += 1

  def _stop(self) -> None:
    self._running = False
    try:
      jax.profiler.stop_trace()
    except jax.errors.JaxRuntimeError as error:
      # For a full disk, its status is that of too little memory.
      raise OSError(f"the profile cannot be written: {error}") from None


class Observer:
  """Callbacks of `fit`; those of this base class do nothing."""

  def after_step(self, step: int, metrics: Metrics) -> None:
    """Called after each training step; reading the metrics waits for them."""

  def evaluate(self, step: int, state: TrainState) -> TrainState:
    """Called when an evaluation is due; returns the state to continue with."""
    del step
    return state

  def stops_early(self) -> bool:
    """Called before the first step, and after evaluations before the last step.

    Returns whether to make no more training steps.
    """
    return False

  def save(self, step: int, state: TrainState) -> None:
    """Called after each evaluation, and when the training is stopped."""


def fit(
  train_step: TrainStep,
  state: TrainState,
  epochs: Iterable[Epoch],
  num_steps: int,
  observer: Observer,
  *,
  evaluate_at: Callable[[int], bool],
  key: jax.Array | None = None,
  stop_requests: Sequence[signal.Signals] = (),
  tracer: Tracer | None = None,
) -> tuple[TrainState, signal.Signals | None]:
  """Run the remaining training steps, with evaluations and checkpoints.

  Args:
    train_step: from `make_train_step` or one of its variants.
    state: the initial or restored state.
    epochs: the batches of each epoch; in all, at least num_steps batches.
    num_steps: training steps of the whole training.
    observer: its methods are called during the training.
    evaluate_at: step -> whether to evaluate after it. After the last step, an
      evaluation is always due.
    key: draws the noise of the regularizers; None if there is none.
    stop_requests: a signal handler appends to it. It is read after each step;
      with several processes, every AGREE_EVERY steps and before evaluations.
    tracer: traces some of the steps; None to trace none.

  Returns:
    (state, the signal that stopped the training, or None).
  """
  if observer.stops_early():  # a resumed run may have no patience left
    return state, None
  first = int(state.step)
  batches = islice(remaining_batches(epochs, first), max(num_steps - first, 0))
  for step, batch in enumerate(batches, first + 1):
    if tracer:
      tracer.before_step(state)
    state, metrics = take_step(train_step, state, batch, key)
    observer.after_step(step, metrics)
    done = step == num_steps
    evaluating = done or evaluate_at(step)
    # Several processes compare their requests only now and then, because that
    # waits until all of them have made their steps.
    agree_now = evaluating or step % AGREE_EVERY == 0
    requested = distributed.agreed_request(stop_requests, agree_now)
    if evaluating:
      state = observer.evaluate(step, state)
      done = done or observer.stops_early()
    stopped_by = None if done else requested
    if evaluating or stopped_by:
      observer.save(step, state)
    if done or stopped_by:
      return state, stopped_by
  return state, None
