"""A comparison of cells: what it measures, records, prints and draws."""

import json
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import compare_cells
from experiments.analysis import recall
from experiments.comparison import plots, training
from experiments.comparison.cells import CompareConfig
from experiments.comparison.results import diverged, finished, tables
from experiments.trainer.config import CELLS
from experiments.trainer.loop import Diverged
from experiments.trainer.records import replace, to_record
from experiments.trainer.run_dir import lock
from tests.experiments.comparing import NAMES, RECALLS, example
from tests.processes import ROOT, as_flags, run_program

RECORDS = sorted((ROOT / "experiments/results").glob("compare_cells*"))
TOO_LARGE = 3e38  # a learning rate at which training diverges at once


@pytest.fixture
def small(comparison):
  """A comparison of an RNN with the LSTM, without recall."""
  options = {"cells": ("rnn", "lstm"), "recall_steps": 0, "num_steps": 2}
  return replace(comparison, num_seeds=1, trial_steps=2, **options)


@pytest.mark.exhaustive
def test_a_cell_that_diverges_does_not_stop_the_others(
  small, tmp_path, console, monkeypatch
):
  """The RNN diverges at every rate that is tried, the GRU in training."""
  search, saved = training.try_learning_rates, []
  train_cell = compare_cells.train_cell

  def try_rates(cell, trial, config, key, rates):
    # What is on the disk when the search of a cell begins.
    path = tmp_path / "comparison.json"
    kept = json.loads(path.read_text())["cells"] if path.exists() else {}
    saved.append((cell.name, [*kept]))
    if cell.name == "rnn":
      raise Diverged("this message is not printed")
    return search(cell, trial, config, key, rates)

  def train(cell, corpus, config, rate, *others):
    rate = TOO_LARGE if cell.name == "gru" else rate
    return train_cell(cell, corpus, config, rate, *others)

  monkeypatch.setattr(training, "try_learning_rates", try_rates)
  monkeypatch.setattr(compare_cells, "train_cell", train)
  rates = {"learning_rate": (1e-3, 0.02)}
  config = replace(small, cells=("rnn", "gru", "lstm"), **rates)
  record = compare_cells.run(config, tmp_path, console)
  # Further calls may try rates beyond those that are given.
  first = next(kept for name, kept in saved if name == "lstm")
  assert saved[0] == ("rnn", []) and first == ["rnn", "gru"]
  assert compare_cells.load(tmp_path) == json.loads(json.dumps(record))
  rnn = record["cells"]["rnn"]
  assert rnn["learning_rate"] is None and rnn["learning_rate_trials"] == []
  assert rnn["seconds_per_step"] > 0
  assert [(run["cell"], run["budget"]) for run in finished(record)] == [
    ("lstm", "equal steps")
  ]
  for cell in ("rnn", "gru"):
    assert diverged(record, cell) == ", diverged: equal steps, equal time"
  assert diverged(record, "lstm") == ""
  assert [row["cell"] for row in record["context"]] == ["lstm"]
  table, *_ = tables(record).values()
  rows = [line.split(" | ") for line in table.splitlines()]
  assert rows[2][0] == "| rnn, equal steps" and "diverged" in rows[2]
  assert len({len(row) for row in rows}) == 1
  assert (tmp_path / "comparison.png").stat().st_size > 10_000
  printed = console.file.getvalue()
  assert "rnn diverges at each learning rate\n" in printed
  assert "gru: the training loss is not finite" in printed


@pytest.mark.exhaustive
def test_if_every_training_diverges_so_does_the_comparison(
  small, tmp_path, console
):
  config = replace(small, learning_rate=(TOO_LARGE,), equal_time=False)
  with pytest.raises(Diverged, match="every training of rnn, lstm diverged"):
    compare_cells.run(config, tmp_path, console)
  record = json.loads((tmp_path / "comparison.json").read_text())
  assert [run["samples"] for run in record["runs"]] == [None, None]
  assert math.isfinite(record["seconds"])


@pytest.fixture
def replot(tmp_path, monkeypatch):
  """Return `main` with --replot in a directory of a comparison."""
  compare_cells.save(example(), tmp_path)
  flags = {"OUT": str(tmp_path), "REPLOT": True}
  for name, value in flags.items():
    flag = SimpleNamespace(value=value)
    monkeypatch.setattr(compare_cells, name, flag, raising=False)
  return compare_cells.main


@pytest.mark.parametrize("directory", RECORDS, ids=lambda path: path.name)
def test_a_kept_comparison_is_whole(directory):
  record = compare_cells.load(directory)
  assert plots.draw(record).axes
  if directory.name == "compare_cells":  # the latest
    assert set(record["config"]) == set(to_record(CompareConfig()))
    assert len(tables(record)) == 4


@pytest.mark.parametrize(
  ("text", "message"),
  [
    (None, "there is no comparison in .*: no comparison.json$"),
    ("{", "comparison.json is damaged: Expecting property name"),
    ("[]", "comparison.json is damaged: "),
    ('{"runs": []}', "comparison.json is damaged: it lacks 'config'$"),
    ({"corpus": {"text_statistics": {"text": {}}}}, "damaged: it lacks 'words"),
    ({"runs": [], "context": []}, "has no training that has finished$"),
  ],
)
def test_what_is_no_whole_comparison_is_an_error_that_says_why(
  text, message, tmp_path
):
  if isinstance(text, dict):
    compare_cells.save(example() | text, tmp_path)
  elif text:
    (tmp_path / "comparison.json").write_text(text)
  with pytest.raises(ValueError, match=message):
    compare_cells.load(tmp_path)


@pytest.mark.exhaustive
def test_a_comparison_that_is_being_written_is_not_replotted(replot, tmp_path):
  with lock(tmp_path), pytest.raises(ValueError, match="is in use by process"):
    replot()
  assert not (tmp_path / "comparison.png").exists()
  replot()
  assert (tmp_path / "comparison.png").exists()


def test_every_seed_is_measured_on_the_validation_text(comparison, monkeypatch):
  """Stand-ins return the weights of the seeds, which are the numbers 1 to 4."""

  def norms(cell, params, tokens, steps):
    # 10: gradient_steps of the configuration
    assert (cell, tokens, steps) == (CELLS["rnn"], "val", 10)
    # From 0 to 10 steps back; the gradient of the last two overflows, as in
    # an untrained LayerNorm LSTM over thousands of steps.
    return {"h": [*[params] * 9, math.inf, math.nan]}

  def nats(model, params, tokens, window):
    assert (model, tokens, window) == ("model", "val", 16)  # context
    return [params] * 5  # a loss for each of the lengths below

  monkeypatch.setattr(compare_cells, "gradient_norms", norms)
  monkeypatch.setattr(compare_cells, "nats_by_context", nats)
  cell = SimpleNamespace(name="rnn", model="model")
  trained = SimpleNamespace(initial_params=[1, 3], final_params=[2, 4])
  corpus = SimpleNamespace(train="train", val="val")
  args = cell, trained, corpus, comparison
  assert compare_cells.gradient_flow(*args) == [
    {
      "cell": "rnn",
      "stage": "untrained",
      "norms": {"h": [*[2.0] * 9, None, None]},
    },
    {
      "cell": "rnn",
      "stage": "trained",
      "norms": {"h": [*[3.0] * 9, None, None]},
    },
  ]
  assert compare_cells.loss_by_context(*args) == {
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

  monkeypatch.setattr(compare_cells, "make_models", make_models)
  monkeypatch.setattr(recall, "learn", learn)
  config = replace(comparison, cells=("rnn", "lstm"))
  found = compare_cells.delayed_recall(config, key, console)
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


def test_the_tables_are_markdown_with_means_and_deviations():
  training, context, recall, gradient_flow = tables(example()).values()
  rows = [line.split(" | ") for line in training.splitlines()]
  assert len({len(row) for row in rows}) == 1
  assert rows[2][0] == "| rnn, equal steps"
  assert rows[2][1:4] == ["12", "1,904", "150"]
  assert rows[2][4:7] == ["4.000 ± 0.000", "2.100 ± 0.141", "1.2500 ± 0.3536"]
  assert rows[2][7:] == ["60.0 ± 14.1", "25.0 ± 0.0", "30.0", "25.0 ± 35.4 |"]
  assert rows[-1][0] == "| validation text"
  assert rows[-1][-4:] == ["90.0", "100.0", "40.5", "– |"]
  assert context.splitlines()[0] == "| cell | 1 | 2 | 3 – 4 |"
  assert context.splitlines()[2].endswith("| 3.000 | 2.000 | 1.250 |")
  # Accuracies at the delays 1 and 5, and the longest delay with more than 0.9.
  recalled = "H 8, 700 parameters"
  assert recall.splitlines()[2:] == [
    *(f"| {name}, {recalled} | usual | 1.00 | 0.75 | 1 |" for name in NAMES),
    *(f"| {n}, {recalled} | chrono | 1.00 | 0.85 | 1 |" for n in NAMES[1:]),
  ]
  assert gradient_flow.splitlines()[0] == "| cell | 1 | 5 | 10 |"
  assert "| lstm, h, trained | 5.0e-01 | 3.1e-02 | 9.8e-04 |" in gradient_flow
  assert "| lstm, c, trained | 1.0e+00 | 6.2e-02 | 2.0e-03 |" in gradient_flow
  losses, _, recalled, _ = tables(example())
  assert "(mean ± standard deviation of 2 seeds)," in losses
  assert "(chance 0.125)" in recalled
  single = example()
  single["config"]["num_seeds"] = 1
  assert "(1 seed)," in next(iter(tables(single)))


def test_a_loss_that_is_missing_or_a_norm_divided_by_zero_is_a_dash():
  record = example()
  record["runs"][0] |= {"evaluations": None, "samples": None}
  record["gradient_flow"][0]["norms"]["h"][0] = 0.0
  record["gradient_flow"][1]["norms"]["h"][10] = None  # beyond float32
  training, *_, gradient_flow = tables(record).values()
  diverged, other = training.splitlines()[2:4]
  losses = "| 150 | – | – | diverged |  |  |  |  |"
  assert diverged == f"| rnn, equal steps | 12 | 1,904 {losses}"
  assert "| 4.000 ± 0.000 | 2.100 ± 0.141 | 1.2500 ± 0.3536 |" in other
  assert "| rnn, h, untrained | – | – | – |" in gradient_flow
  assert "| rnn, h, trained | 5.0e-01 | 3.1e-02 | – |" in gradient_flow


@pytest.mark.exhaustive
def test_a_saved_comparison_is_loaded_and_reported(tmp_path, console):
  record = example()
  compare_cells.save(record, tmp_path)
  loaded = compare_cells.load(tmp_path)
  assert loaded == record
  samples = (tmp_path / "samples.txt").read_text("utf-8")
  # Two of each of the five runs.
  assert samples.count("===\nShall I\n") == 10
  assert "=== gru, equal time, step 140 ===" in samples
  compare_cells.report(loaded, tmp_path, console)
  printed = console.file.getvalue()
  for table in tables(record).values():
    assert all(line in printed for line in table.splitlines())
  figure = tmp_path / "comparison.png"
  assert figure.read_bytes()[:4] == b"\x89PNG"
  compare_cells.save(record, tmp_path)  # which removes an earlier figure
  assert not figure.exists()


def test_an_interrupted_comparison_is_reported(tmp_path, console):
  record = example() | {"recall": []}
  for name, count in (("runs", 1), ("context", 1), ("gradient_flow", 2)):
    del record[name][count:]
  compare_cells.report(record, tmp_path, console)
  assert "rnn, equal steps" in console.file.getvalue()
  assert "Delayed recall" not in console.file.getvalue()
  assert (tmp_path / "comparison.png").stat().st_size > 10_000
