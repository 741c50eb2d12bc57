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


def run_observer(monkeypatch, losses, trained):
  """Have `fit` only call its observer: a step takes 2 s and has these losses.

  An evaluation takes 100 s; the loss of a seed is its params, a number. Its
  samples are the texts of SAMPLED. What is trained is added to `trained`.
  """
  clock = [0.0]
  monkeypatch.setattr(
    training, "time", SimpleNamespace(monotonic=lambda: clock[0])
  )

  def make_ensemble(model, config, num_steps, keys, rates):
    trained.append((num_steps, rates))
    return SimpleNamespace(params=jnp.array([1.5, 2.5])), None

  def fit(train_step, state, epochs, num_steps, observer, *, evaluate_at):
    trained.append((num_steps, next(iter(epochs))))
    for step in range(1, num_steps + 1):
      clock[0] += 2
      metrics = Metrics(losses, 0, num_tokens=[24, 24], grad_norms={})
      observer.after_step(step, metrics)
      if evaluate_at(step):
        state = observer.evaluate(step, state)
    return SimpleNamespace(params=jnp.array([3.5, 4.5])), None

  def evaluate(model, params, tokens):
    clock[0] += 100
    return float(params)

  for stand_in in (make_ensemble, fit):
    monkeypatch.setattr(training, stand_in.__name__, stand_in)
  monkeypatch.setattr(training, "stateful_loss", evaluate)


SAMPLED = {1.5: ["Thou art more\n", "more "], 2.5: ["art lovely more\n"]}
RNN = SimpleNamespace(name="rnn", model="model")


def test_a_training_records_its_losses_samples_and_speed(
  comparison, key, monkeypatch
):
  """Its schedule is as long as it is, not `comparison.num_steps`.

  With `equal_time`, a cell makes as many steps as fit into the LSTM's time.
  """
  corpus, trained, drawn, progress = read_corpus(comparison), [], [], []
  corpus = corpus._replace(known_words=({"thou"}, {"thou", "art"}))
  run_observer(monkeypatch, [1, 3], trained)

  def draw(model, params, key, prompt, length, **options):
    assert (length, options) == (500, {"num_samples": 8, "temperature": 1.0})
    drawn.append(jax.random.key_data(key).tolist())
    return [corpus.tokenizer.encode(text) for text in SAMPLED[float(params)]]

  monkeypatch.setattr(training, "sample", draw)
  keys = jax.random.split(key, 2)
  found = train_cell(
    RNN, corpus, comparison, 0.03, 20, keys, lambda *row: progress.append(row)
  )
  assert comparison.num_steps != 20
  assert trained == [(20, [0.03, 0.03]), (20, corpus.batches)]
  losses = [(row["step"], row["val_loss"]) for row in found.evaluations]
  assert losses == [(step, [1.5, 2.5]) for step in (0, 10, 20)]
  assert (found.initial_params, found.final_params) == ([1.5, 2.5], [3.5, 4.5])
  # (step, mean loss, tokens per second): 48 tokens of all seeds in 2 s, without
  # the time of an evaluation.
  assert progress == [(step, 2.0, 24.0) for step in range(1, 21)]
  # Each seed has one key for all its samples.
  assert drawn == jax.random.key_data(sample_keys(keys)).tolist() * 2
  assert [row["step"] for row in found.samples] == [0, 20]
  for row in found.samples:
    assert row["words_in_train"] == [1 / 4, 0]
    assert row["words_in_val"] == [2 / 4, 1 / 3]
    assert row["line_length"] == [13, 15]
    assert row["text"] == SAMPLED[1.5][0]


@pytest.mark.parametrize(
  ("losses", "val_loss", "message"),
  [
    ([1, np.nan], 2.0, r"rnn: the training loss .* at step 1$"),
    ([1, 3], np.inf, r"rnn: the validation loss .* at step 0$"),
  ],
)
def test_one_seed_that_diverges_is_enough(
  losses, val_loss, message, comparison, key, monkeypatch
):
  run_observer(monkeypatch, losses, [])
  values = {1.5: 1.5, 2.5: val_loss}
  monkeypatch.setattr(
    training, "stateful_loss", lambda m, params, t: values[float(params)]
  )
  corpus, keys = read_corpus(comparison), jax.random.split(key, 2)
  texts = [corpus.tokenizer.encode("art")]
  monkeypatch.setattr(training, "sample", lambda *given, **options: texts)
  with pytest.raises(Diverged, match=message):
    train_cell(RNN, corpus, comparison, 0.03, 5, keys)


def test_each_cell_has_its_best_learning_rate_and_its_steps_of_equal_time(
  comparison, key, console, monkeypatch
):
  """All rates are tried alike, and judged by text that they did not learn."""
  seconds = {"rnn": [0.4, 0.1, 0.9], "gru": [1e9] * 3, "lstm": [1.0] * 3}
  losses = {0.01: 3.0, 0.02: 1.0, 0.04: 2.0}
  models = {
    name: SimpleNamespace(
      name=name, hidden_size=2, num_parameters=3, model=name
    )
    for name in NAMES
  }
  tokens, tried = np.arange(1000, dtype=np.int32), []
  batches = SimpleNamespace(batch=lambda k: ())
  corpus = SimpleNamespace(batches=batches, train=tokens)

  def make_ensemble(model, config, num_steps, keys, rates):
    tried.append((num_steps, jax.random.key_data(keys).tolist()))
    return SimpleNamespace(params=np.array(rates)), None

  def fit(train_step, state, epochs, num_steps, observer, *, evaluate_at):
    batches = next(iter(epochs))
    _, last = batches.batch(batches.num_batches - 1)
    # Token k of the text is k: training ends before the last tenth.
    assert num_steps == comparison.trial_steps and 800 < np.max(last) < 900
    return state, None

  def loss(model, params, tokens):
    assert tokens.tolist() == [*range(900, 1000)]
    return losses[float(params)]

  def measure(runs, rounds):
    assert [*runs] == NAMES and rounds == 7
    return seconds

  for stand_in in (make_ensemble, fit, measure):
    monkeypatch.setattr(training, stand_in.__name__, stand_in)
  monkeypatch.setattr(training, "stateful_loss", loss)
  config = replace(comparison, learning_rate=tuple(losses), timing_rounds=7)
  keys = jax.random.split(key)
  args = models, corpus, config, keys, key, console
  found = dict(describe_cells(*args))
  same = jax.random.key_data(key).tolist()  # so all have one initialization
  trials = [each for each in tried if each[0] == config.trial_steps]
  assert trials == [(config.trial_steps, [same] * 3)] * 3
  # In the time of the 12 steps of the LSTM; at least one.
  assert [row["steps_in_equal_time"] for row in found.values()] == [30, 1, 12]
  for name, row in found.items():
    assert row["learning_rate"] == 0.02
    assert row["seconds_per_step"] == np.median(seconds[name])
    trials = {
      t["learning_rate"]: t["loss"] for t in row["learning_rate_trials"]
    }
    assert trials == losses
  printed = console.file.getvalue()
  assert "400 ms per training step of 2 seeds, learning rate 0.02 (" in printed
