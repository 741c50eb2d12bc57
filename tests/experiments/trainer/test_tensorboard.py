"""What a run leaves for TensorBoard, read back from its files."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import train
from experiments.analysis.states import read, signals
from experiments.trainer import run_dir
from experiments.trainer import tensorboard as boards
from experiments.trainer.tensorboard import TAGS, TensorBoardWriter
from lstm_jax import gru, lstm, rnn
from lstm_jax.language import ModelConfig, language_model, read_text, split
from tests.experiments.trainer.events import board, stored
from tests.experiments.trainer.lives import CLOCK, essence, signal_at

GATES = {lstm: "ifo", gru: "rz", rnn: ""}


@pytest.fixture
def config(trained_runs):
  return trained_runs["lstm"]


def rows(directory):
  text = (directory / "metrics.jsonl").read_text(encoding="utf-8")
  return [json.loads(line) for line in text.splitlines()]


def looks(directory):
  return [row["step"] for row in rows(directory) if "held_out" in row]


def shares(gate):
  """Return the shares of a gate that are nearly shut and nearly open."""
  return [np.count_nonzero(gate < 0.1), np.count_nonzero(gate > 0.9)]


def test_the_board_has_every_row_and_at_looks_the_norms_and_gates(config):
  directory = Path(config.run)
  shown = board(directory)
  for name, tag in TAGS.items():
    wanted = [
      (r["step"], stored(r[name])) for r in rows(directory) if name in r
    ]
    assert shown.get(tag, []) == wanted
  assert len(shown["loss/training"]) >= len(shown["loss/held_out"]) > 3

  # Of the weights that the run kept, which are those of one of its looks.
  trained = run_dir.load(directory)
  at = looks(directory).index(trained.step)
  squares = sum(np.square(leaf).sum() for leaf in trained.params.layers[1])
  norms = [norm for _, norm in shown["weight_norm/layer2"]]
  assert norms[at] == pytest.approx(float(squares) ** 0.5, rel=1e-6)
  _, held_out = split(read_text(config.corpus), config.val_fraction)
  piece = trained.vocabulary.encode(held_out)[: train.PIECE]
  layers, _ = read(lstm, trained.params, jnp.asarray(piece))
  tags = "below_0.1", "above_0.9"
  for number, layer in enumerate(layers, start=1):
    for letter in GATES[lstm]:
      gate, name = signals(lstm, layer)[letter], f"layer{number}_{letter}"
      for tag, share in zip(tags, shares(gate), strict=True):
        told = shown[f"gates_{tag}/{name}"]
        assert [step for step, _ in told] == looks(directory)
        assert told[at][1] == stored(share / gate.size)


@pytest.mark.parametrize("cell", GATES, ids=lambda cell: cell.__name__[-4:])
def test_the_gates_of_every_cell_are_counted(cell, tmp_path, key):
  model = language_model(ModelConfig(7, cell, hidden_size=9, num_layers=2))
  params = jax.tree.map(lambda leaf: 4 * leaf, model.init(key))  # saturated
  tokens = np.arange(40) % 7
  writer = TensorBoardWriter(tmp_path / "tensorboard", cell, tokens)
  writer.begin(0)
  writer.look(30, params)
  shown = board(tmp_path)
  layers, _ = read(cell, params, jnp.asarray(tokens))
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
    found = dict(zip(np.round(limits, 3), counts, strict=True))
    below = sum(n for limit, n in found.items() if limit <= 0.1)
    above = sum(n for limit, n in found.items() if limit > 0.9)
    assert [below, above] == shares(gate)
    assert sum(counts) == gate.size


def test_a_sample_stands_on_the_board_as_code_and_not_as_markup(config):
  directory = Path(config.run)
  shown = board(directory)["samples/text_summary"]
  steps = looks(directory)
  assert [step for step, _ in shown] == [0, *steps, steps[-1]]
  told = ""
  for _, text in shown:
    title, empty, *lines = text.split("\n")
    assert empty == "" and all(line.startswith("    ") for line in lines)
    told += f"=== {title} ===\n" + "".join(f"{line[4:]}\n" for line in lines)
    told += "\n"
  assert told == (directory / "samples.txt").read_text(encoding="utf-8")
  assert "<" in told


def test_a_run_that_goes_on_shows_each_step_once(config, console, tmp_path):
  whole = Path(config.run)
  again = dataclasses.replace(config, run=str(tmp_path / "run"))
  with pytest.MonkeyPatch.context() as monkeypatch:
    signal_at(monkeypatch, 33)
    directory = train.run(again, console).directory
  # As one that is killed after its last checkpoint: rows that are cut off.
  late = TensorBoardWriter(directory / "tensorboard", lstm, np.zeros(2, int))
  late.begin(34)
  late.row({"step": 40, "loss": 9.0}, {})
  train.run(again, console)
  found, wanted = board(directory), board(whole)
  for name in CLOCK:
    found.pop(TAGS[name], None), wanted.pop(TAGS[name], None)
  assert found == wanted
  assert essence(directory) == essence(whole)


def test_without_the_library_a_new_run_is_as_ever_and_has_no_board(
  config, console, monkeypatch, tmp_path
):
  directory = tmp_path / "run"
  shutil.copytree(config.run, directory)
  assert (directory / "tensorboard").exists()  # of the run that is replaced
  monkeypatch.setattr(boards, "summary", None)
  again = dataclasses.replace(config, run=str(directory), overwrite=True)
  train.run(again, console)
  assert not (directory / "tensorboard").exists()
  assert essence(directory) == essence(Path(config.run))


def test_a_board_that_cannot_be_written_is_named(tmp_path):
  path = tmp_path / "tensorboard"
  path.touch()
  with pytest.raises(OSError, match=f"File exists: '{path}'"):
    TensorBoardWriter(path, lstm, np.zeros(2, int)).begin(0)
