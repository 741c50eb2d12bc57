"""The training loop, with a step that counts instead of training."""

import signal
from typing import NamedTuple

import jax
import numpy as np
import pytest
from rich.console import Console

from experiments.trainer import loop
from experiments.trainer.loop import WARM_UP, Tracer, fit
from lstm_jax.language import make_batches
from lstm_jax.training import TrainState


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
  for step in (7, 10):
    state, _ = run(epochs, idle := Recorder(), step=step, num_steps=step)
    assert (int(state.step), idle.calls) == (step, [])


def test_it_makes_no_more_steps_than_asked_for(epochs):
  recorder = Recorder()
  run(epochs, recorder, num_steps=7)
  assert recorder.steps("step")[-1] == 7
  assert recorder.steps("evaluate") == [7]


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


def test_a_request_during_the_last_step_stops_nothing(epochs):
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


def test_the_carried_state_is_zero_at_the_start_of_an_epoch(epochs):
  def check(state, tokens, targets, key):
    zero = not np.any(state.carry)
    assert zero == (int(state.step) % 5 == 0)
    state, metrics = count(state, tokens, targets, key)
    return state._replace(carry=np.ones((2, 4))), metrics

  state = start()._replace(carry=np.ones((2, 4)))
  state, _ = fit(
    check, state, epochs, 10, Recorder(), evaluate_at=lambda step: False
  )
  assert int(state.step) == 10


def test_every_step_is_given_the_key(epochs):
  keys = []

  def step(state, tokens, targets, key):
    keys.append(key)
    return count(state, tokens, targets, key)

  options = {"evaluate_at": lambda step: False}
  fit(step, start(), epochs, 10, Recorder(), key=jax.random.key(3), **options)
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
  with Tracer(tmp_path, 2, Console()) as tracer:
    run(epochs, recorder, tracer=tracer)
  assert traced == [("start_trace", WARM_UP), ("stop_trace", WARM_UP + 2)]
  traced.clear()
  with Tracer(tmp_path, 99, Console()) as tracer:  # the run ends before
    run(epochs, recorder, tracer=tracer)
  assert [name for name, _ in traced] == ["start_trace", "stop_trace"]
  traced.clear()
  with Tracer(tmp_path, 0, Console()) as tracer:
    run(epochs, recorder, tracer=tracer)
  assert traced == []
