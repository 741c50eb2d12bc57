import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import compare_cells
from experiments.analysis import recall
from experiments.comparison import measurements
from experiments.comparison.config import CompareConfig
from experiments.trainer.config import CELLS
from experiments.trainer.records import replace, to_record
from tests.experiments.comparing import NAMES, RECALLS
from tests.processes import as_flags, run_program


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

  monkeypatch.setattr(measurements, "make_trial", make_trial)
  monkeypatch.setattr(measurements, "seconds_per_step", lambda *args: seconds)
  monkeypatch.setattr(measurements, "try_learning_rates", try_rates)
  config = replace(comparison, learning_rate=tuple(losses))
  args = models, corpus, config, [0, 1], "trial key", console
  found = dict(measurements.describe_cells(*args))
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


def test_every_seed_is_measured_on_the_validation_text(comparison, monkeypatch):
  """Stand-ins return the weights of the seeds, which are the numbers 1 to 4."""

  def norms(cell, params, tokens, steps):
    # 10: gradient_steps of the configuration
    assert (cell, tokens, steps) == (CELLS["rnn"], "val", 10)
    return {"h": [params] * 11}  # from 0 to 10 steps back

  def nats(model, params, tokens, window):
    assert (model, tokens, window) == ("model", "val", 16)  # context
    return [params] * 5  # a loss for each of the lengths below

  monkeypatch.setattr(measurements, "gradient_norms", norms)
  monkeypatch.setattr(measurements, "nats_by_context", nats)
  cell = SimpleNamespace(name="rnn", model="model")
  trained = SimpleNamespace(initial_params=[1, 3], final_params=[2, 4])
  corpus = SimpleNamespace(train="train", val="val")
  args = cell, trained, corpus, comparison
  assert measurements.gradient_flow(*args) == [
    {"cell": "rnn", "stage": "untrained", "norms": {"h": [2.0] * 11}},
    {"cell": "rnn", "stage": "trained", "norms": {"h": [3.0] * 11}},
  ]
  assert measurements.loss_by_context(*args) == {
    "lengths": [1, 2, 4, 8, 16],
    "val_loss": [[2] * 5, [4] * 5],
  }


def test_each_cell_learns_to_recall_at_each_delay_and_is_recorded(
  comparison, key, console, monkeypatch
):
  calls = []

  def make_models(cells, sizes, vocabulary_size):
    found = sizes.embedding_size, sizes.hidden_size, vocabulary_size
    # 4: recall_hidden_size of the configuration
    assert found == (recall.EMBEDDING, 4, recall.VOCABULARY)
    return {
      name: SimpleNamespace(hidden_size=5, num_parameters=6, model=name)
      for name in cells
    }

  def learn(model, keys, delay, num_steps, rates, *, chrono, mesh):
    calls.append((model, chrono, jax.random.key_data(keys).tolist()))
    # recall_steps, recall_learning_rate and num_seeds of the configuration
    assert (num_steps, rates) == (10, (0.01,)) and len(keys) == 2
    return recall.Recall(0.01, [0.5, 1.0], [delay, None])

  monkeypatch.setattr(measurements, "make_models", make_models)
  monkeypatch.setattr(recall, "learn", learn)
  config = replace(comparison, cells=("rnn", "lstm"))
  found = measurements.delayed_recall(config, key, console)
  rows = [row for each in found for row in each]
  kinds = ("rnn", "usual"), ("lstm", "usual"), ("lstm", "chrono")
  assert [(r["cell"], r["forget_bias"], r["delay"]) for r in rows] == [
    (*kind, delay) for kind in kinds for delay in (1, 3)
  ]
  assert [called[:2] for called in calls] == [
    *[("rnn", None)] * 2,
    *[("lstm", None)] * 2,
    *[("lstm", "lstm")] * 2,
  ]
  # Each delay has its own keys, which are the same for all cells.
  keys = [keys for *_, keys in calls]
  assert keys == keys[:2] * 3 and keys[0] != keys[1]
  assert rows[1] == {
    "cell": "rnn",
    "forget_bias": "usual",
    "hidden_size": 5,
    "num_parameters": 6,
    "delay": 3,
    "learning_rate": 0.01,
    "accuracy": [0.5, 1.0],
    "loss": [3, None],
  }


def test_the_seed_draws_the_keys(comparison, tmp_path, console, monkeypatch):
  drawn = []

  def describe(models, corpus, config, keys, trial_key, console):
    drawn.append(jax.random.key_data(jnp.stack([*keys, trial_key])))
    raise KeyboardInterrupt

  monkeypatch.setattr(compare_cells, "describe_cells", describe)
  monkeypatch.setattr(compare_cells, "make_models", lambda *args: {})
  for seed in (0, 1):
    config = replace(comparison, seed=seed)
    with pytest.raises(KeyboardInterrupt):
      compare_cells.run(config, tmp_path, console)
  first, second = drawn
  # Keys of two seeds, and that of the trials.
  assert len(first) == 3 and (first != second).any(axis=1).all()


@pytest.mark.exhaustive
@pytest.mark.programs
def test_two_devices_that_share_the_seeds_compute_what_one_does(
  comparison, tmp_path
):
  losses, recalled, default = {}, {}, to_record(CompareConfig())
  only_lstm = {"cells": ("lstm",), "equal_time": False}
  for count in ("1", "2"):
    config = replace(comparison, **only_lstm, devices=count)
    flags = [*as_flags(to_record(config), default), f"--out={tmp_path / count}"]
    run_program("experiments.compare_cells", *flags)
    record = compare_cells.load(tmp_path / count)
    assert record["config"]["devices"] == count
    (trained,) = record["runs"]
    losses[count] = [row["val_loss"] for row in trained["evaluations"]]
    recalled[count] = [row["loss"] for row in record["recall"]]
  assert np.allclose(recalled["1"], recalled["2"], rtol=0, atol=1e-5)
  assert np.ptp(recalled["1"], axis=1).min() > 1e-4  # the seeds differ
  assert np.allclose(losses["1"], losses["2"], rtol=0, atol=1e-5)
  assert abs(losses["1"][-1][0] - losses["1"][-1][1]) > 1e-3


@pytest.mark.exhaustive
def test_a_comparison_fills_its_directory(comparison, tmp_path, console):
  # The trials have as many steps as the training (12), and so the same program.
  config = replace(comparison, learning_rate=(1e-3, 0.02), trial_steps=12)
  directory = tmp_path / "out"
  directory.mkdir()
  record = compare_cells.run(config, directory, console)
  saved = compare_cells.load(directory)
  assert saved == json.loads(json.dumps(record))
  assert saved["config"] == to_record(config)
  assert saved["environment"]["versions"]["jax"] == jax.__version__
  assert [run["cell"] for run in saved["runs"]] == [*NAMES, "rnn", "gru"]
  for run in saved["runs"]:
    cell = saved["cells"][run["cell"]]
    timed = run["budget"] == "equal time"
    steps = cell["steps_in_equal_time"] if timed else config.num_steps
    assert run["num_steps"] == steps == run["evaluations"][-1]["step"]
    trials = {
      row["learning_rate"]: row["loss"] for row in cell["learning_rate_trials"]
    }
    assert cell["learning_rate"] == min(trials, key=trials.get)
    # 0.02, the largest given, is the best: twice as much is tried, too.
    assert {1e-3, 0.02, 0.04} <= set(trials)
  spent = {
    name: cell["seconds_per_step"] * cell["steps_in_equal_time"]
    for name, cell in saved["cells"].items()
  }
  # The number of steps is rounded: the time differs by at most half a step.
  for name, seconds in spent.items():
    half_step = 0.5 * saved["cells"][name]["seconds_per_step"]
    assert abs(seconds - spent["lstm"]) <= 1.001 * half_step
  assert [list(row["norms"]) for row in saved["gradient_flow"]] == [
    *[["h"]] * 4,
    *[["h", "c"]] * 2,
  ]
  assert {len(row["norms"]["h"]) for row in saved["gradient_flow"]} == {11}
  assert len(saved["recall"]) == len(RECALLS) * len(config.delay)
  assert {path.name for path in directory.iterdir()} == {
    "comparison.json",
    "comparison.png",
    "samples.txt",
  }


@pytest.mark.exhaustive
def test_cells_recalled_before_an_interruption_are_kept(
  comparison, tmp_path, console, monkeypatch
):
  learn, calls = recall.learn, []

  def interrupted(*arguments, **options):
    # At the second delay of the GRU with chrono biases. The first is lost, too:
    # a cell's results are saved once all its delays are learned.
    if len(calls) == 5:
      raise KeyboardInterrupt
    calls.append(options["chrono"])
    return learn(*arguments, **options)

  monkeypatch.setattr(recall, "learn", interrupted)
  config = replace(comparison, equal_time=False, num_steps=1)
  with pytest.raises(KeyboardInterrupt):
    compare_cells.run(config, tmp_path, console)
  assert calls == [None, None, None, None, "gru"]
  kept = compare_cells.load(tmp_path)
  assert [run["budget"] for run in kept["runs"]] == ["equal steps"] * 3
  assert [(row["cell"], row["delay"]) for row in kept["recall"]] == [
    *[("rnn", 1), ("rnn", 3)],
    *[("gru", 1), ("gru", 3)],
  ]
