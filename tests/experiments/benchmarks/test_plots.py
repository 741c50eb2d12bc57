"""What the panels of the benchmark's figure show."""

import os
from pathlib import Path

from matplotlib.figure import Figure

from experiments import benchmark
from experiments.benchmark import figure_of
from experiments.benchmarks.plots import draw

SIZES = {"seq_len": 64, "batch_size": 32, "num_layers": 1}
MODEL = {"vocabulary_size": 65, "dtype": "float32", **SIZES}


def panels(rows, path, monkeypatch):
  """Return {title: {label: points}} of the figure of these rows."""
  found = {}

  def savefig(figure, *args, **kwargs):
    for panel in figure.axes:
      found[panel.get_title(loc="left")] = {
        line.get_label(): line.get_xydata().tolist() for line in panel.lines
      }

  monkeypatch.setattr(Figure, "savefig", savefig)
  assert draw(rows, path)
  return found


def test_a_panel_of_models_has_the_time_relative_to_ours(tmp_path, monkeypatch):
  def row(peer, hidden_size, median, **changes):
    sizes = MODEL | {"hidden_size": hidden_size} | changes
    return {"part": "model", "peer": peer, "median_ms": median} | sizes

  rows = [
    row("lstm_jax", 128, 2.0),
    row("lstm_jax", 256, 4.0),
    row("pytorch", 128, 3.0),
    row("pytorch", 256, 2.0),
    row("pytorch", 512, 9.0),  # ours is not known
    row("lstm_jax, 2 devices", 128, 1.0),
    row("flax linen, 2 devices", 128, 2.5),
    row("lstm_jax", 64, 5.0, dtype="bfloat16"),
    row("lstm_jax", 64, 6.0, num_layers=2),
    row("lstm_jax", 64, 7.0, vocabulary_size=10_000),
  ]
  assert panels(rows, tmp_path / "figure.png", monkeypatch) == {
    "An Adam step, 1 device": {
      "lstm_jax": [[128, 1], [256, 1]],
      "pytorch": [[128, 1.5], [256, 0.5]],
    },
    "An Adam step, 2 devices": {
      "lstm_jax": [[128, 1]],
      "flax linen": [[128, 2.5]],
    },
  }


def test_a_panel_of_growth_has_milliseconds_and_names_the_other_sizes(
  tmp_path, monkeypatch
):
  rows = [
    SIZES
    | {"part": "growth in steps", "peer": "lstm_jax", "hidden_size": 256}
    | {"seq_len": seq_len, "median_ms": median}
    for seq_len, median in ((16, 0.5), (64, 2.0))
  ]
  rows[1]["batch_size"] = 8  # not the same in all
  title = "By sequence length T; H 256"
  expected = {title: {"lstm_jax": [[16, 0.5], [64, 2.0]]}}
  assert panels(rows, tmp_path / "figure.png", monkeypatch) == expected


def test_each_file_of_results_has_a_figure_of_its_own():
  names = {"a.json": "a.png", "jax-0.10": "jax-0.10.png", "b.1.json": "b.1.png"}
  assert {n: figure_of(Path("runs") / n).name for n in names} == names


def test_results_that_go_into_a_pipe_have_no_figure(tmp_path, console):
  row = {"part": "growth in steps", "peer": "lstm_jax", "hidden_size": 256}
  row |= SIZES | {"median_ms": 1.0}
  pipe = tmp_path / "pipe"
  os.mkfifo(pipe)
  benchmark.draw({"rows": [row]}, pipe, console)
  assert console.file.getvalue() == f"saved in {pipe}\n"
  assert [*tmp_path.iterdir()] == [pipe]
