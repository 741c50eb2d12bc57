"""The progress bar of a training, and its events for TensorBoard, read back."""

import io
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from experiments import train
from experiments.analysis.states import signals, trace_layers
from experiments.cli import make_console
from experiments.trainer import display
from experiments.trainer.data import read_corpus
from experiments.trainer.display import EXCERPT, TAGS, TensorBoard, TrainingBar
from experiments.trainer.records import replace
from experiments.trainer.trained import load
from lstm_jax import Autodiff, gru, lstm, rnn
from lstm_jax.language import ModelConfig, language_model
from lstm_jax.training import part_norms
from tests.experiments.trainer.events import shown_events, stored
from tests.experiments.trainer.resuming import (
  PROCESS_METRICS,
  outcome,
  read_rows,
  signal_at,
)
from tests.patterns import exact
from tests.training.test_matrix_state import cell as matrix_cell

GATES = {lstm: "ifo", gru: "rz", rnn: ""}  # letters of their gates


@pytest.fixture
def config(trained_runs):
  return trained_runs["lstm"]


def evaluated(directory):
  """Return the steps at which a run was evaluated."""
  return [row["step"] for row in read_rows(directory) if "val_loss" in row]


def saturated(gate):
  """Return how many values of a gate are below 0.1, and above 0.9."""
  return [np.count_nonzero(gate < 0.1), np.count_nonzero(gate > 0.9)]


@pytest.mark.exhaustive
def test_events_hold_the_rows_and_the_norms_and_gates_of_evaluations(config):
  directory = Path(config.job.run)
  shown = shown_events(directory)
  for name, tag in TAGS.items():
    expected = [
      (r["step"], stored(r[name])) for r in read_rows(directory) if name in r
    ]
    assert shown.get(tag, []) == expected
  assert len(shown["lr"]) == len(shown["loss/train"])
  assert len(shown["loss/train"]) >= len(shown["loss/val"]) > 3

  # The weights that the run has saved are those of one of its evaluations.
  trained = load(directory)
  at = evaluated(directory).index(trained.step)
  squares = sum(np.square(leaf).sum() for leaf in trained.params.layers[1])
  parts = part_norms(trained.params)
  assert {f"weight_norm/{part}" for part in parts} <= set(shown)
  assert {f"grad_norm/{part}" for part in parts} <= set(shown)
  norms = [norm for _, norm in shown["weight_norm/layer2"]]
  assert norms[at] == pytest.approx(float(squares) ** 0.5, rel=1e-6)
  excerpt = read_corpus(config.data).val.tokens[:EXCERPT]
  layers, _ = trace_layers(lstm, trained.params, jnp.asarray(excerpt))
  tags = "below_0.1", "above_0.9"
  for number, layer in enumerate(layers, start=1):
    for letter in GATES[lstm]:
      gate, name = signals(lstm, layer)[letter], f"layer{number}_{letter}"
      for tag, count in zip(tags, saturated(gate), strict=True):
        events = shown[f"gates_{tag}/{name}"]
        assert [step for step, _ in events] == evaluated(directory)
        assert events[at][1] == stored(count / gate.size)


@pytest.mark.exhaustive
@pytest.mark.parametrize("cell", GATES, ids=lambda cell: cell.__name__[-4:])
def test_the_gates_of_an_lstm_a_gru_and_an_rnn_are_counted(cell, tmp_path, key):
  model = language_model(ModelConfig(cell, hidden_size=9, num_layers=2), 7)
  params = jax.tree.map(lambda leaf: 4 * leaf, model.init(key))  # saturated
  tokens = np.arange(40) % 7
  writer = TensorBoard(tmp_path / "tensorboard", cell, tokens, 0)
  writer.evaluation(30, params)
  shown = shown_events(tmp_path)
  layers, _ = trace_layers(cell, params, jnp.asarray(tokens))
  gates = {
    f"layer{number}_{letter}": np.asarray(signals(cell, layer)[letter])
    for number, layer in enumerate(layers, start=1)
    for letter in GATES[cell]
  }
  assert {f"gates/{name}" for name in gates} == {
    tag for tag in shown if tag.startswith("gates/")
  }
  for name, gate in gates.items():
    ((_, (limits, counts)),) = shown[f"gates/{name}"]
    bins = dict(zip(np.round(limits, 3), counts, strict=True))
    below = sum(n for limit, n in bins.items() if limit <= 0.1)
    above = sum(n for limit, n in bins.items() if limit > 0.9)
    assert [below, above] == saturated(gate)
    assert sum(counts) == gate.size


def test_a_cell_whose_state_has_a_matrix_has_no_gates(tmp_path, key):
  config = ModelConfig(matrix_cell, embedding_size=3, hidden_size=4)
  params = language_model(config, 7, adjoint=Autodiff()).init(key)
  directory = tmp_path / "tensorboard"
  writer = TensorBoard(directory, matrix_cell, np.arange(7), 0)
  writer.evaluation(30, params)
  assert {tag.partition("/")[0] for tag in shown_events(tmp_path)} == {
    "weight_norm"
  }


def test_a_sample_is_shown_as_code_and_not_as_markup(config):
  directory = Path(config.job.run)
  shown = shown_events(directory)["samples/text_summary"]
  steps = evaluated(directory)
  # Untrained, at each evaluation, and at the end from the best checkpoint.
  assert [step for step, _ in shown] == [0, *steps, steps[-1]]
  samples = ""
  for _, text in shown:
    title, empty, *lines = text.split("\n")
    assert empty == "" and all(line.startswith("    ") for line in lines)
    samples += f"=== {title} ===\n" + "".join(f"{x[4:]}\n" for x in lines)
    samples += "\n"
  assert samples == (directory / "samples.txt").read_text(encoding="utf-8")
  assert "<" in samples


@pytest.mark.exhaustive
def test_a_resumed_run_shows_each_step_once(config, console, tmp_path):
  whole = Path(config.job.run)
  again = replace(config, run=str(tmp_path / "run"))
  with pytest.MonkeyPatch.context() as monkeypatch:
    signal_at(monkeypatch, 33)
    directory = train.run(again, console).directory
  # A row after the last checkpoint, as a kill leaves it: resuming drops it.
  late = TensorBoard(directory / "tensorboard", lstm, np.zeros(2, int), 34)
  late.row({"step": 40, "train_loss": 9.0}, {})
  train.run(again, console)
  shown, expected = shown_events(directory), shown_events(whole)
  for name in PROCESS_METRICS:
    shown.pop(TAGS[name], None), expected.pop(TAGS[name], None)
  assert shown == expected
  assert outcome(directory) == outcome(whole)


def test_without_tensorboardx_a_new_run_is_the_same_and_has_no_events(
  config, console, monkeypatch, tmp_path
):
  directory = tmp_path / "run"
  shutil.copytree(config.job.run, directory)
  assert (directory / "tensorboard").exists()  # of the run that is replaced
  monkeypatch.setattr(display, "summary", None)
  again = replace(config, run=str(directory), overwrite=True)
  train.run(again, console)
  assert not (directory / "tensorboard").exists()
  assert outcome(directory) == outcome(Path(config.job.run))


def test_a_directory_of_events_that_cannot_be_made_is_named(tmp_path):
  path = tmp_path / "tensorboard"
  path.touch()
  with pytest.raises(OSError, match=f"File exists: {exact(repr(str(path)))}"):
    TensorBoard(path, lstm, np.zeros(2, int), 0)


def test_each_entry_of_a_row_is_shown(tmp_path):
  directory = tmp_path / "tensorboard"
  writer = TensorBoard(directory, lstm, np.zeros(2, int), 0)
  losses = {"train_loss": 1.0, "val_loss": 2.0, "test_loss": 3.0}
  speed = {"tokens_per_second": 4.0, "seconds": 5.0, "lr": 6.0}
  process = {"resident_mb": 7.0, "live_mb": 8.0, "compilations": 9.0}
  row = {"step": 3, "grad_norm": 10.0, "skipped": 11.0}
  writer.row(row | losses | speed | process, {"layer1": np.float32(12)})
  assert shown_events(tmp_path) == {
    "loss/train": [(3, 1.0)],
    "loss/val": [(3, 2.0)],
    "loss/test": [(3, 3.0)],
    "speed/tokens_per_second": [(3, 4.0)],
    "speed/seconds": [(3, 5.0)],
    "lr": [(3, 6.0)],
    "process/resident_mb": [(3, 7.0)],
    "process/live_mb": [(3, 8.0)],
    "process/compilations": [(3, 9.0)],
    "grad_norm/all": [(3, 10.0)],
    "process/skipped_steps": [(3, 11.0)],
    "grad_norm/layer1": [(3, 12.0)],
  }


def test_a_bar_has_the_remaining_time_if_updates_are_minutes_apart():
  now, sent = 0.0, io.StringIO()
  console = Console(
    file=sent, width=80, force_terminal=True, get_time=lambda: now
  )
  with TrainingBar(console, 100, "character") as bar:
    for step in range(10, 40, 10):
      bar.update(step, 3.0, 5.0)
      now += 100.0
    bar.advance(35)
  text = re.sub(r"\x1b\[[0-9]+m", "", sent.getvalue())
  # Steps 11 to 35 took 300 s, so that the last 65 take 780.
  assert " 35/100 3.000 nats/char  5 chars/s 13:00 left\n" in text


def test_a_run_of_one_row_has_one_line_and_a_longer_one_no_first(capsys):
  for total in (10, 20):
    bar = TrainingBar(make_console(), total, "character")
    bar.update(10, 3.0, 5.0)
    line = "10/10  3.000 nats/char  5 chars/s  0:00:00 left\n"
    assert capsys.readouterr().out == (line if total == 10 else "")
