"""The training of a compared cell: its rate, losses, samples and progress."""

import math
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.comparison import training
from experiments.comparison.cells import make_models, read_corpus
from experiments.comparison.training import (
  MOST_FURTHER,
  describe_cells,
  evaluation_steps,
  make_trial,
  sample_keys,
  sample_steps,
  seconds_per_step,
  train_cell,
  try_learning_rates,
  widen,
)
from experiments.trainer.loop import Diverged
from experiments.trainer.records import replace
from lstm_jax.language import stateful_loss
from lstm_jax.language.params import init_params
from lstm_jax.training import Metrics
from tests.experiments.comparing import NAMES

TOO_LARGE = 3e38  # a learning rate whose first update diverges


def test_evaluations_and_samples_include_the_first_and_the_last_step():
  assert evaluation_steps(120) == [0, 10, 20, 50, 100, 120]
  assert evaluation_steps(5) == [0, 5]
  assert sample_steps(1200) == [0, 100, 1000, 1200]
  assert sample_steps(100) == [0, 100]


@pytest.mark.exhaustive
def test_a_cell_is_trained_and_its_losses_are_those_of_its_weights(
  comparison, key
):
  corpus = read_corpus(comparison)
  cell = make_models(["rnn"], comparison.model, corpus.tokenizer.size)["rnn"]
  keys, progress = jax.random.split(key, 2), []

  def on_step(*values):
    progress.append(values)

  trained = train_cell(cell, corpus, comparison, 0.03, 30, keys, on_step)
  assert [step for step, _, _ in progress] == [*range(1, 31)]
  assert all(loss > 0 and rate > 0 for _, loss, rate in progress)
  rows = trained.evaluations
  assert [row["step"] for row in rows] == [0, 10, 20, 30]
  weights = trained.initial_params, trained.final_params
  for row, seeds in zip((rows[0], rows[-1]), weights, strict=True):
    expected = [
      stateful_loss(cell.model, params, corpus.val) for params in seeds
    ]
    assert np.abs(np.array(row["val_loss"]) - expected).max() < 1e-6
  assert max(rows[-1]["val_loss"]) < min(rows[0]["val_loss"]) - 0.3
  assert rows[-1]["val_loss"][0] != rows[-1]["val_loss"][1]
  first, last = trained.samples
  assert (first["step"], last["step"]) == (0, 30)
  assert len(last["words_in_train"]) == 2 and len(last["text"]) == 200
  assert set(last["text"]) <= set(corpus.tokenizer.symbols)


def test_samples_are_judged_by_the_words_of_both_splits(
  comparison, key, monkeypatch
):
  corpus = read_corpus(comparison)
  corpus = corpus._replace(known_words=({"thou"}, {"thou", "art"}))

  drawn, keys = [], jax.random.split(key)

  def draw(model, params, key, prompt, length, **options):
    assert (length, options) == (500, {"num_samples": 8, "temperature": 1.0})
    drawn.append((model, jax.random.key_data(key).tolist()))
    return [corpus.tokenizer.encode(text) for text in params]

  monkeypatch.setattr(training, "sample", draw)
  # In place of each seed's params: the texts that `draw` returns for it.
  seeds = ["Thou art more\n", "more "], ["art lovely more\n"]
  found = training._sample("model", seeds, corpus, keys)
  assert drawn == [("model", k) for k in jax.random.key_data(keys).tolist()]
  assert found["words_in_train"] == [1 / 4, 0]
  assert found["words_in_val"] == [2 / 4, 1 / 3]
  assert found["line_length"] == [13, 15]
  assert found["text"] == seeds[0][0]


def test_the_keys_of_samples_draw_no_weights(key, comparison, monkeypatch):
  keys = jax.random.split(key, 2)
  found = jax.random.key_data(sample_keys(keys)).tolist()
  split, drawn = jax.random.split, []

  def spy(key, num=2):
    children = split(key, num)
    drawn.append(jax.random.key_data(children).tolist())
    return children

  monkeypatch.setattr(jax.random, "split", spy)
  for each, seed in zip(found, keys, strict=True):
    drawn.clear()
    init_params(comparison.model, 7, seed)
    assert drawn and all(each not in children for children in drawn)
  assert found[0] != found[1]


def test_progress_is_the_mean_loss_and_the_speed_of_all_seeds(monkeypatch):
  """Tokens per second are of all seeds, without the time of an evaluation."""
  clock, progress, cell = [0.0], [], SimpleNamespace(name="rnn", model=None)
  monkeypatch.setattr(
    training, "time", SimpleNamespace(monotonic=lambda: clock[0])
  )
  corpus = SimpleNamespace(val=None)
  metrics = Metrics(
    loss=[1, 3], grad_norm=0, num_tokens=[24, 24], grad_norms={}
  )
  monkeypatch.setattr(training, "_sample", lambda *args: {})
  recorder = training._Recorder(
    cell, corpus, None, 5, lambda *values: progress.append(values)
  )

  def evaluate(model, params, tokens):
    clock[0] += 100
    return float(params)

  monkeypatch.setattr(training, "stateful_loss", evaluate)
  state = SimpleNamespace(params=jnp.array([1.5, 2.5]))
  recorder.evaluate(0, state)
  for step, seconds in ((1, 2), (2, 4)):
    clock[0] += seconds
    recorder.after_step(step, metrics)
  # (step, mean loss, tokens per second): 48 tokens in 2 s, then in 4 s
  assert progress == [(1, 2.0, 24.0), (2, 2.0, 12.0)]
  assert recorder.evaluations == [{"step": 0, "val_loss": [1.5, 2.5]}]
  # One seed that diverges is enough.
  with pytest.raises(Diverged, match=r"rnn: the training loss .* at step 3$"):
    recorder.after_step(3, metrics._replace(loss=[1, np.nan]))
  state = SimpleNamespace(params=jnp.array([np.inf, 2.5]))
  with pytest.raises(Diverged, match=r"rnn: the validation loss .* step 5$"):
    recorder.evaluate(5, state)


def test_an_ensemble_has_the_schedule_of_its_steps_and_a_rate_for_each_member(
  comparison, key, monkeypatch
):
  given = []

  def make_optimizer(config, num_steps):
    given.append((config, num_steps))
    return "optimizer"

  def init_ensemble(model, optimizer, params, batch_size):
    return model, optimizer, params.tolist(), batch_size

  def make_step(model, optimizer, *, mesh):
    return lambda *values: (model, optimizer, *values)

  monkeypatch.setattr(training, "make_optimizer", make_optimizer)
  monkeypatch.setattr(training, "init_ensemble", init_ensemble)
  monkeypatch.setattr(training, "make_ensemble_train_step", make_step)
  model = SimpleNamespace(init=jax.random.uniform)
  keys = jax.random.split(key)
  state, step = training.make_ensemble(model, comparison, 30, keys, [0.5, 0.25])
  assert given == [(comparison.optimizer, 30)] and comparison.num_steps != 30
  params = [float(jax.random.uniform(each)) for each in keys]
  size = comparison.batching.batch_size
  assert state == (model, "optimizer", params, size)
  *rest, rates = step("state", "tokens", "targets")
  assert rest == [model, "optimizer", "state", "tokens", "targets", None]
  assert rates.tolist() == [0.5, 0.25]


def test_the_schedule_is_as_long_as_the_training(comparison, key, monkeypatch):
  """Not `comparison.num_steps`, which are the LSTM's.

  With `equal_time`, another cell makes as many steps as fit into its time.
  """
  made, corpus = [], SimpleNamespace(val=None, batches="batches")

  def make_ensemble(model, config, num_steps, keys, rates):
    made.append((num_steps, rates))
    return SimpleNamespace(params=jnp.zeros(2)), None

  def fit(train_step, state, epochs, num_steps, recorder, *, evaluate_at):
    made.append((num_steps, next(iter(epochs))))
    return SimpleNamespace(params=jnp.ones(2)), None

  for replacement in (make_ensemble, fit):
    monkeypatch.setattr(training, replacement.__name__, replacement)
  monkeypatch.setattr(training, "stateful_loss", lambda *args: 2.0)
  monkeypatch.setattr(training, "_sample", lambda *args: {})
  cell = SimpleNamespace(name="rnn", model=None)
  keys = jax.random.split(key, 2)
  trained = train_cell(cell, corpus, comparison, 0.03, 30, keys)
  assert comparison.num_steps != 30
  assert made == [(30, [0.03, 0.03]), (30, "batches")]
  assert trained.evaluations == [{"step": 0, "val_loss": [2.0, 2.0]}]
  assert trained.samples == [{"step": 0}]
  assert (trained.initial_params, trained.final_params) == ([0, 0], [1, 1])


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


def test_the_median_step_is_the_time_of_a_cell(comparison, key, monkeypatch):
  times = {"a": [3.0, 1.0, 8.0], "b": [5.0, 5.0, 6.0]}

  def measure(runs, rounds):
    assert [*runs] == [*times] and rounds == 7
    return times

  monkeypatch.setattr(training, "measure", measure)
  monkeypatch.setattr(training, "make_ensemble", lambda *args: (None, None))
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
    monkeypatch.setattr(training, replacement.__name__, replacement)
  monkeypatch.setattr(training, "stateful_loss", loss)
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


def test_each_cell_has_its_best_learning_rate_and_its_steps_of_equal_time(
  comparison, console, monkeypatch
):
  seconds = {"rnn": 0.4, "gru": 1e9, "lstm": 1.0}
  losses = {0.01: 3.0, 0.02: 1.0, 0.04: 2.0}
  models = {
    name: SimpleNamespace(name=name, hidden_size=2, num_parameters=3)
    for name in NAMES
  }
  corpus = SimpleNamespace(batches="batches", train="train", val="val")

  def try_rates(cell, trial, config, key, rates):
    assert (trial, key) == ("trial of train", "trial key")
    return {rate: losses[rate] for rate in rates}

  def make_trial(tokens, config):
    return f"trial of {tokens}"

  monkeypatch.setattr(training, "make_trial", make_trial)
  monkeypatch.setattr(training, "seconds_per_step", lambda *args: seconds)
  monkeypatch.setattr(training, "try_learning_rates", try_rates)
  config = replace(comparison, learning_rate=tuple(losses))
  args = models, corpus, config, [0, 1], "trial key", console
  found = dict(training.describe_cells(*args))
  # In the time of the 12 steps of the LSTM; at least one.
  assert [row["steps_in_equal_time"] for row in found.values()] == [30, 1, 12]
  for name, row in found.items():
    assert row["learning_rate"] == 0.02
    assert row["seconds_per_step"] == seconds[name]
    trials = {
      t["learning_rate"]: t["loss"] for t in row["learning_rate_trials"]
    }
    assert trials == losses
  printed = console.file.getvalue()
  assert "400 ms per training step of 2 seeds, learning rate 0.02 (" in printed
