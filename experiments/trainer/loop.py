"""The training loop of `train`, `sweep` and `compare_cells`."""

import signal
from collections.abc import Callable, Iterable, Sequence
from itertools import islice

import jax

from experiments.trainer import multihost
from experiments.trainer.resources import Tracer
from lstm_jax.training import (
  Epoch,
  Metrics,
  TrainState,
  TrainStep,
  remaining_batches,
  take_step,
)

AGREE_EVERY = 50  # training steps after which processes may stop together


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
    requested = multihost.agreed_request(stop_requests, agree_now)
    if evaluating:
      state = observer.evaluate(step, state)
      done = done or observer.stops_early()
    stopped_by = None if done else requested
    if evaluating or stopped_by:
      observer.save(step, state)
    if done or stopped_by:
      return state, stopped_by
  return state, None
