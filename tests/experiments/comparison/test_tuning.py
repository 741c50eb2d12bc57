"""The learning rate of a compared cell, and the time of its training step."""

import math
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.comparison import tuning
from experiments.comparison.corpus import read_corpus
from experiments.comparison.measurements import describe_cells
from experiments.comparison.models import make_models
from experiments.comparison.tuning import (
  MOST_FURTHER,
  make_trial,
  seconds_per_step,
  try_learning_rates,
  widen,
)
from experiments.trainer.loop import Diverged
from experiments.trainer.records import replace

TOO_LARGE = 3e38  # a learning rate at which training diverges at once


@pytest.mark.exhaustive
def test_the_loss_of_a_learning_rate_that_diverges_is_infinite(comparison, key):
  corpus = read_corpus(comparison)
  cell = make_models(["rnn"], comparison.model, corpus.tokenizer.size)["rnn"]
  trial = make_trial(corpus.train, comparison)

  def losses(*rates):
    return try_learning_rates(cell, trial, comparison, key, rates)

  found = losses(TOO_LARGE, 1e-9, 0.03)
  assert list(found) == [TOO_LARGE, 1e-9, 0.03]
  assert found[TOO_LARGE] == float("inf")
  assert found[0.03] < found[1e-9] - 0.2
  with pytest.raises(Diverged, match="rnn diverges at each learning rate of"):
    losses(TOO_LARGE)


def test_rates_are_added_until_the_best_is_at_no_end():
  """The loss is (log₂ rate − best)², and infinite from 2⁶ on."""
  for best, expected in ((0, [-1, 0, 1]), (3, [-1, 0, 1, 2, 3, 4])):
    losses = widen([0.5, 1, 2], partial(parabola, best))
    assert [math.log2(rate) for rate in losses] == expected
    assert min(losses, key=losses.get) == 2**best
  assert min(widen([0.5, 1, 2], partial(parabola, -4))) == 2**-5
  losses = widen([0.5, 1, 2], partial(parabola, 9))
  assert max(losses) == 2**5  # beyond it, training diverges
  losses = widen([0.5, 1, 2], partial(parabola, -99))
  assert min(losses) == 2.0 ** (-1 - MOST_FURTHER)


def parabola(best, rates):
  losses = {
    rate: math.inf if rate >= 2**6 else (math.log2(rate) - best) ** 2
    for rate in rates
  }
  if min(losses.values()) == math.inf:  # as in `try_learning_rates`
    raise Diverged("at each learning rate")
  return losses


@pytest.mark.exhaustive
def test_a_training_step_is_timed(comparison, key):
  corpus = read_corpus(comparison)
  cell = make_models(["rnn"], comparison.model, corpus.tokenizer.size)["rnn"]
  keys = jax.random.split(key, 2)
  seconds = seconds_per_step({"rnn": cell}, corpus.batches, comparison, keys)
  assert list(seconds) == ["rnn"] and 0 < seconds["rnn"] < 10


def test_the_median_step_is_the_time_of_a_cell(comparison, key, monkeypatch):
  times = {"a": [3.0, 1.0, 8.0], "b": [5.0, 5.0, 6.0]}

  def measure(runs, rounds):
    assert [*runs] == [*times] and rounds == 7
    return times

  monkeypatch.setattr(tuning, "measure", measure)
  monkeypatch.setattr(tuning, "make_ensemble", lambda *args: (None, None))
  models = dict.fromkeys(times, SimpleNamespace(model=None))
  batches = SimpleNamespace(batch=lambda k: ())
  keys = jax.random.split(key)
  config = replace(comparison, timing_rounds=7)
  found = seconds_per_step(models, batches, config, keys)
  assert found == {"a": 3, "b": 5}


def test_rates_are_tried_alike_and_judged_by_text_they_did_not_learn(
  comparison, key, monkeypatch
):
  tokens, rates, made = np.arange(1000, dtype=np.int32), (0.1, 0.2), []

  def make_ensemble(model, config, num_steps, keys, rates):
    made.append((num_steps, jax.random.key_data(keys).tolist()))
    return SimpleNamespace(params=jnp.asarray(rates)), None

  def fit(train_step, state, epochs, num_steps, observer, *, evaluate_at):
    batches = next(iter(epochs))
    _, last = batches.batch(batches.num_batches - 1)
    made.append((num_steps, np.max(last)))
    return state, None

  def loss(model, params, tokens):
    assert tokens.tolist() == [*range(900, 1000)]
    return 10 * float(params)

  for replacement in (make_ensemble, fit):
    monkeypatch.setattr(tuning, replacement.__name__, replacement)
  monkeypatch.setattr(tuning, "stateful_loss", loss)
  cell = SimpleNamespace(name="rnn", model=None)
  trial = make_trial(tokens, comparison)
  assert try_learning_rates(cell, trial, comparison, key, rates) == {
    rate: pytest.approx(10 * rate) for rate in rates
  }
  same = jax.random.key_data(key).tolist()  # so both have one initialization
  assert made[0] == (comparison.trial_steps, [same, same])
  # Token k of the text is k: training ends before the last tenth, from 900 on.
  assert made[1][0] == comparison.trial_steps and 800 < made[1][1] < 900


def test_a_text_too_short_for_trials_is_refused_before_the_timing(
  comparison, key
):
  """The text holds one batch, but less without the end that tests the rates."""
  corpus = SimpleNamespace(train=np.zeros(3 * 8 + 1, np.int32))
  config = replace(comparison, learning_rate=(0.1, 0.2))
  # 22 = ⌊0.9 · 25⌋ tokens are left without the end.
  message = r"^--batch_size=3, --seq_len=8 and .*, got 22 to try learning rates"
  with pytest.raises(ValueError, match=message):
    next(describe_cells({"rnn": None}, corpus, config, [key], key, None))
