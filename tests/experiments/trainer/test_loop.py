"""The training loop, and the samples, losses and time that it logs."""

import json
import math
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import jax
import numpy as np
import pytest
from rich.console import Console

from experiments.trainer import logger as run_logger
from experiments.trainer import loop
from experiments.trainer.checkpoint import Progress, Restored
from experiments.trainer.logger import RunLogger
from experiments.trainer.loop import WARM_UP, Diverged, Tracer, fit
from experiments.trainer.records import replace
from experiments.trainer.setup import make_setup
from lstm_jax.language import make_batches
from lstm_jax.training import (
  CheckpointError,
  CheckpointWriter,
  Metrics,
  TrainState,
  read_checkpoint,
)
from tests.experiments.trainer.resuming import read_rows


class Counted(NamedTuple):
  """The metrics of a step that counts."""

  tokens: np.ndarray
  key: object


def count(state, tokens, targets, key):
  """Return the state with one more step, and what the step was called with."""
  assert tokens.shape == targets.shape
  return state._replace(step=state.step + 1), Counted(tokens, key)


class Recorder:
  """Records the calls of the loop.

  Args:
    requests: signals that ask for a stop before the first training step.
    stop_after: the training step during which SIGTERM asks for a stop.
    early: the training step whose evaluation ends the training.
  """

  def __init__(self, requests=(), stop_after=None, early=None):
    self.calls = []
    self.tokens = []
    self.requests, self._stop_after = [*requests], stop_after
    self._early = early

  def after_step(self, step, metrics):
    self.calls.append(("step", step))
    self.tokens.append(metrics.tokens)
    if step == self._stop_after:
      self.requests.append(signal.SIGTERM)

  def evaluate(self, step, state):
    assert int(state.step) == step
    self.calls.append(("evaluate", step))
    return state._replace(params="evaluated")

  def stops_early(self):
    return self.steps("evaluate")[-1:] == [self._early]

  def save(self, step, state):
    assert int(state.step) == step
    self.calls.append(("save", step, state.params))

  def steps(self, name):
    return [call[1] for call in self.calls if call[0] == name]


@pytest.fixture
def epochs():
  """Two epochs of five batches of 2 × 3 tokens; no two batches are equal."""
  texts = np.arange(62).reshape(2, 2 * 15 + 1)
  both = [make_batches(text, batch_size=2, seq_len=3) for text in texts]
  assert [one.num_batches for one in both] == [5, 5]
  return both


def start(step=0):
  return TrainState(
    step=np.int32(step),
    params="trained",
    average=None,
    opt_state=None,
    carry=np.zeros((2, 4)),
  )


def run(epochs, recorder, *, step=0, num_steps=10, due=(), **options):
  return fit(
    count,
    start(step),
    epochs,
    num_steps,
    recorder,
    evaluate_at=lambda step: step in due,
    stop_requests=recorder.requests,
    **options,
  )


def test_it_evaluates_where_due_and_at_the_last_step(epochs):
  recorder = Recorder()
  state, stopped_by = run(epochs, recorder, due=(3, 7))
  assert (int(state.step), stopped_by) == (10, None)
  assert recorder.steps("step") == [*range(1, 11)]
  assert recorder.steps("evaluate") == recorder.steps("save") == [3, 7, 10]
  # In this order, and the evaluation's state is what is saved.
  assert recorder.calls[2:5] == [
    ("step", 3),
    ("evaluate", 3),
    ("save", 3, "evaluated"),
  ]


def test_it_makes_the_steps_that_are_left(epochs):
  whole, rest = Recorder(), Recorder()
  run(epochs, whole)
  state, _ = run(epochs, rest, step=6)
  assert int(state.step) == 10
  assert rest.steps("step") == [7, 8, 9, 10]
  assert np.array_equal(rest.tokens, whole.tokens[6:])
  run(epochs, fewer := Recorder(), step=6, num_steps=7)
  assert fewer.steps("step") == fewer.steps("evaluate") == [7]
  for step in (7, 10):
    state, _ = run(epochs, idle := Recorder(), step=step, num_steps=step)
    assert (int(state.step), idle.calls) == (step, [])


def test_it_stops_early_at_an_evaluation_that_asks_for_it(epochs):
  """A request in that step comes too late. Called again, it makes no step."""
  recorder = Recorder(stop_after=7, early=7)
  state, stopped_by = run(epochs, recorder, due=(3, 7))
  assert (int(state.step), stopped_by) == (7, None)
  assert recorder.steps("evaluate") == recorder.steps("save") == [3, 7]
  calls = [*recorder.calls]
  state, stopped_by = run(epochs, recorder, step=7, due=(3, 7))
  assert (int(state.step), stopped_by) == (7, None)
  assert recorder.calls == calls


@pytest.mark.parametrize(
  ("due", "evaluated", "params"),
  [((), [], "trained"), ((4,), [4], "evaluated")],
  ids=["between", "at an evaluation"],
)
def test_a_request_stops_it_after_the_step_and_saves(
  due, evaluated, params, epochs
):
  recorder = Recorder(stop_after=4)
  state, stopped_by = run(epochs, recorder, due=due)
  assert (int(state.step), stopped_by) == (4, signal.SIGTERM)
  assert recorder.steps("step") == [1, 2, 3, 4]
  assert recorder.steps("evaluate") == evaluated
  assert recorder.calls[-1] == ("save", 4, params)
  # During the last step it stops nothing.
  state, stopped_by = run(epochs, recorder := Recorder(stop_after=10))
  assert (int(state.step), stopped_by) == (10, None)
  assert recorder.steps("evaluate") == [10]


def test_processes_agree_at_evaluations_and_every_few_steps(
  epochs, monkeypatch
):
  agreed = []

  def agreed_request(requests, agree_now):
    agreed.append(agree_now)

  monkeypatch.setattr(loop, "AGREE_EVERY", 4)
  monkeypatch.setattr(loop.distributed, "agreed_request", agreed_request)
  run(epochs, Recorder(), due=(3,))
  steps = [step for step, agree_now in enumerate(agreed, 1) if agree_now]
  assert len(agreed) == 10 and steps == [3, 4, 8, 10]


def test_each_step_has_the_key_and_an_epoch_begins_with_a_carry_of_zeros(
  epochs,
):
  keys, ones = [], np.ones((2, 4))

  def check(state, tokens, targets, key):
    zero = not np.any(state.carry)
    assert zero == (int(state.step) % 5 == 0)
    keys.append(key)
    state, metrics = count(state, tokens, targets, key)
    return state._replace(carry=ones), metrics

  state, options = (
    start()._replace(carry=ones),
    {"evaluate_at": lambda _: False},
  )
  fit(check, state, epochs, 10, Recorder(), key=jax.random.key(3), **options)
  assert len(keys) == 10
  assert all(key == jax.random.key(3) for key in keys)


def test_it_traces_the_steps_after_the_first_ones(
  epochs, monkeypatch, tmp_path
):
  recorder = Recorder()
  traced = []
  for name in ("start_trace", "stop_trace"):
    monkeypatch.setattr(
      jax.profiler,
      name,
      lambda *arguments, name=name: traced.append(
        (name, len(recorder.steps("step")))
      ),
    )
  begin = "start_trace", WARM_UP
  for number, expected in (
    (2, [begin, ("stop_trace", WARM_UP + 2)]),
    (99, [begin, ("stop_trace", 10)]),  # the run ends before
    (0, []),
  ):
    recorder.calls.clear(), traced.clear()
    with Tracer(tmp_path, number, Console()) as tracer:
      run(epochs, recorder, tracer=tracer)
    assert traced == expected


@pytest.fixture
def make_logger(config, console):
  """(options) -> a logger, the weights at the start, and the log of samples."""
  directory = Path(config.job.run)
  directory.mkdir()

  def make(**options):
    setup = make_setup(replace(config, **options))
    logger = RunLogger(directory, setup, console)
    return logger, setup.make_state().params, directory / "samples.txt"

  return make


def test_samples_are_drawn_at_the_temperature_of_the_configuration(make_logger):
  logger, params, log = make_logger(temperature=0.0)
  for seed in (0, 1):  # greedy: no key matters
    logger.sample("greedy", params, jax.random.key(seed), 30)
  _, first, second = log.read_text().split("=== greedy ===\n")
  assert first == second


def test_samples_of_every_evaluation_have_a_key_of_their_own(make_logger):
  logger, params, log = make_logger(temperature=2.0)
  for logger.step in (0, 10, 20):
    logger.sample_during_training("new", params)
  logger.step = 10
  logger.sample_during_training("new", params)
  _, *texts, again = log.read_text().split("=== new ===\n")
  assert len(set(texts)) == 3 and again == texts[1]


def test_the_heading_of_a_sample_is_shown_whole(make_logger, console):
  logger, params, _ = make_logger(quiet=False)
  for length in (console.width - 2, console.width - 1, console.width + 5):
    with console.capture() as capture:
      logger.sample("x" * length, params, jax.random.key(0), 1)
    assert capture.get().count("x") >= length


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_validation_loss_that_is_not_finite_ends_the_run(loss, make_logger):
  logger, params, _ = make_logger()
  with pytest.raises(Diverged, match=f"loss is {loss} after step 0$"):
    logger.log_evaluation(loss, params)


def test_the_test_loss_is_logged_at_the_step_of_the_best_weights(
  make_logger, monkeypatch
):
  """The run is finished only after its last checkpoint is written."""
  logger, params, log = make_logger(test_fraction=0.1)
  result, found = log.with_name("result.json"), []
  monkeypatch.setattr(run_logger, "stateful_loss", lambda *given: 2.5)
  monkeypatch.setattr(
    CheckpointWriter, "wait", lambda writer: found.append(result.exists())
  )
  for logger.step, loss in ((10, 2.0), (20, 3.0)):
    logger.log_evaluation(loss, params)
  logger.conclude(None)
  assert found == [False]
  assert read_rows(log.parent)[-1] == {"step": 10, "test_loss": 2.5}
  record = json.loads(result.read_text())
  assert (record["step"], record["last_step"]) == (10, 20)
  assert (record["val_loss"], record["test_loss"]) == (2.0, 2.5)


def test_a_picture_that_cannot_be_drawn_hides_no_worse_error(
  make_logger, console, monkeypatch
):
  def fail(*given):
    raise OSError("no room " * 20)

  monkeypatch.setattr(run_logger, "draw_losses", fail)
  logger, _, log = make_logger()
  log.with_name("metrics.jsonl").write_text("")
  with pytest.raises(Diverged, match=r"^worse$"), logger:
    raise Diverged("worse")
  line = f"loss.png cannot be written: {'no room ' * 20}\n"
  assert console.file.getvalue() == line


@pytest.mark.parametrize(
  ("first", "second", "raised"),
  [
    (KeyError, CheckpointError, CheckpointError),
    (Diverged, CheckpointError, Diverged),
    (Diverged, OSError, Diverged),
    (Diverged, ValueError, ValueError),  # the directory is another run's now
  ],
)
def test_a_divergence_is_raised_in_place_of_the_error_of_a_full_disk(
  first, second, raised, make_logger, console, monkeypatch
):
  def close(writer):
    raise second("no room for [1]")

  logger, _, _ = make_logger()
  monkeypatch.setattr(CheckpointWriter, "close", close)
  with pytest.raises(raised) as caught, logger:
    raise first
  assert caught.type is raised
  printed = "no room for [1]\n" if raised is Diverged else ""
  assert console.file.getvalue() == printed


@pytest.fixture
def clock(monkeypatch):
  """A clock that stands still until it is set."""
  now = [10.0]
  time = SimpleNamespace(monotonic=lambda: now[0])
  monkeypatch.setattr(run_logger, "time", time)
  return now


def log_steps(logger, *steps):
  """Log training steps: (loss, gradient norm, number of tokens) of each."""
  for loss, grad_norm, num_tokens in steps:
    norms = {"layer1": np.float32(grad_norm)}
    metrics = Metrics(np.float32(loss), grad_norm, num_tokens, norms)
    logger.log_step(logger.step + 1, metrics)


def last_row(log, *names):
  row = read_rows(log.parent)[-1]
  return tuple(row[name] for name in names)


MEANS = "train_loss", "grad_norm", "tokens_per_second", "seconds", "skipped"


def test_a_row_has_the_means_of_the_finite_steps_and_the_speed_of_all(
  make_logger, clock
):
  logger, _, log = make_logger(nonfinite="skip")
  logger.start_clock()
  log_steps(logger, (1, 3, 10), (2, 5, 10), (math.nan, 7, 10))
  clock[0] += 2
  logger.flush()
  assert last_row(log, *MEANS) == (1.5, 4.0, 15, 2.0, 1)  # 30 tokens in 2 s
  clock[0] += 5  # an evaluation: `flush` has stopped the clock
  logger.start_clock()
  log_steps(logger, (8, 1, 6), (4, math.inf, 6))
  clock[0] += 3
  logger.flush()
  assert last_row(log, *MEANS) == (8.0, 1.0, 4, 5.0, 2)
  logger.start_clock()
  clock[0] += 9
  logger.flush()  # no step has taken this time
  assert len(read_rows(log.parent)) == 2 and logger.seconds == 5.0


def test_the_time_includes_the_steps_that_were_still_running(
  make_logger, clock
):
  class Running:
    """A loss that is known 3 s after it is asked for."""

    def __array__(self, dtype=None, copy=None):
      clock[0] += 3
      return np.asarray(1.0, dtype)

  logger, _, log = make_logger()
  logger.start_clock()
  logger.log_step(1, Metrics(Running(), np.float32(2), 30, grad_norms={}))
  clock[0] += 2
  logger.flush()
  assert last_row(log, *MEANS[:4]) == (1.0, 2.0, 6, 5.0)  # 30 tokens in 5 s


def test_more_steps_in_a_row_than_may_be_skipped_end_the_run(
  make_logger, clock, monkeypatch
):
  monkeypatch.setattr(run_logger, "MAX_SKIPPED", 1)
  logger, _, _ = make_logger(nonfinite="skip")
  logger.step = 5
  logger.start_clock()
  # Steps 6 to 9, of which 6 and the last two are not finite.
  fine, wrong = (1, 1, 1), (math.inf, 1, 1)
  log_steps(logger, (math.nan, 1, 1), fine, wrong, (1, math.nan, 1))
  clock[0] += 1
  message = (
    "^the gradient is not finite at step 9, and at most 1 in a row may be "
    r"skipped$"
  )
  with pytest.raises(Diverged, match=message):
    logger.flush()


def test_what_a_checkpoint_holds_is_continued(make_logger, clock, monkeypatch):
  monkeypatch.setattr(run_logger, "MAX_SKIPPED", 1)
  logger, _, log = make_logger(nonfinite="skip")
  state = logger._setup.make_state()
  logger.start_clock()
  log_steps(logger, (math.nan, 1, 10), (1, 1, 10), (math.nan, 1, 10))
  clock[0] += 4
  logger.flush()
  logger.start_clock()
  log_steps(logger, (1, 2, 10))
  clock[0] += 2
  logger.save(state)
  logger.__exit__(None, None, None)
  _, description = read_checkpoint(log.parent / "checkpoints")
  progress = Progress(**description["progress"])
  assert progress.pending_seconds == 2.0 and progress.seconds == 4.0
  # Two steps were skipped in all, and one right before the pending step.
  assert progress.pending == [[1, 2, 10]] and progress.skipped == [2, 1]
  restored = Restored(state._replace(step=4), progress, None)

  resumed, _, _ = make_logger(nonfinite="skip")
  resumed.resume(restored)
  resumed.start_clock()
  log_steps(resumed, (3, 4, 20))
  clock[0] += 1
  resumed.flush()
  assert last_row(log, *MEANS) == (2.0, 3.0, 10, 7.0, 2)
  resumed.resume(restored._replace(progress=progress._replace(pending=[])))
  resumed.start_clock()
  resumed.step = 3
  log_steps(resumed, (math.nan, 1, 10))
  clock[0] += 1
  with pytest.raises(Diverged, match="loss is nan at step 4, and at most 1"):
    resumed.flush()
