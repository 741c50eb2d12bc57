"""The columns of a case, how two runs are compared, and what is drawn."""

from pathlib import Path

from matplotlib.figure import Figure

from experiments.benchmark import figure_of
from experiments.benchmarks.gpu import ALWAYS, LIBRARIES
from experiments.benchmarks.plots import COLORS, draw
from experiments.benchmarks.tables import RESULTS, case_table, change_table

CASE = {"part": "gpu layer", "cell": "gru", "backward": True, "seq_len": 3}


def cells(*rows):
  """Return (heading, *entries) of the columns after the peers' in a table."""
  table = case_table([CASE | {"peer": "other"} | row for row in rows])
  assert table.title == "gpu layer, gru, backward True, seq_len 3"
  return [(column.header, *column.cells) for column in table.columns[1:]]


def test_a_kernel_has_its_time_its_floor_and_its_error():
  row = {"median_ms": 6.0, "quartiles_ms": [5.5, 7.0], "floor_ms": 2.4}
  other = {"median_ms": 2.4, "quartiles_ms": [2.0, 3.0], "operands": "TF32"}
  assert cells(row, other) == [
    ("operands", "", "TF32"),
    ("ms", "6", "2.4"),
    ("quartiles", "5.5 – 7", "2 – 3"),
    ("× floor", "2.5", ""),
  ]
  assert cells({"error": 1.5e-3, "allowed": 5e-3, "array": "hs"}) == [
    ("error", "1.5e-03"),
    ("allowed", "5e-03"),
    ("largest in", "hs"),
  ]


def test_a_peer_has_its_ratio_and_the_share_of_the_matrix_products():
  row = {"median_ms": 4.0, "quartiles_ms": [3.0, 5.0], "ratio_to_ours": 1.25}
  products = {"peer": "products alone", "median_ms": 3.0}
  products["bytes"] = 0
  assert cells(row | {"bytes": 3 * 2**19, "compile_s": 0.25}, products) == [
    ("ms", "4", "3"),
    ("quartiles", "3 – 5", ""),
    ("ratio", "1.25", ""),
    ("products", "75%", "100%"),
    ("compile s", "0.2", ""),
    ("MiB", "1.5", "0.0"),
  ]


def test_a_time_of_1000_or_more_has_no_exponent():
  row = {"median_ms": 0.1234, "quartiles_ms": [999.4, 999.6]}
  assert cells(row, {"median_ms": 1234.5}) == [
    ("ms", "0.123", "1,234"),
    ("quartiles", "999 – 1,000", ""),
  ]
  old = CASE | {"peer": "kernel", "median_ms": 6.0}
  _, before, after, _ = change_table(
    [old], [old | {"median_ms": 15_900}]
  ).columns
  assert [*before.cells, *after.cells] == ["6", "15,900"]


def test_launches_say_whether_a_graph_holds_them():
  row = {
    "forward_launches": 3.25,
    "forward_in_graph": True,
    "backward_launches": 4.0,
    "backward_in_graph": False,
    "temporary_bytes": 2**20,
  }
  assert cells(row) == [
    ("forward launches", "3.25, in a graph"),
    ("backward launches", "4"),
    ("temp MiB", "1.0"),
  ]


def test_a_result_is_no_part_of_the_name_of_a_case():
  row = CASE | {"peer": "kernel"}
  old = row | {"median_ms": 4.0}
  new = row | dict.fromkeys(RESULTS, 0) | {"median_ms": 6.0}
  names, *_, ratios = change_table([old], [new]).columns
  assert [*names.cells] == ["gpu layer, gru, backward True, seq_len 3: kernel"]
  assert [*ratios.cells] == ["1.50"]


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


def test_a_panel_of_a_gpu_has_gradients_and_the_floor_of_bfloat16(
  tmp_path, monkeypatch
):
  def row(hidden_size, peer, median, **changes):
    row = {"part": "gpu layer", "cell": "gru", "backward": True, "peer": peer}
    row |= SIZES | {"hidden_size": hidden_size, "floor_ms": median / 4}
    operands = "bfloat16" if "bfloat16" in peer else "TF32"
    return row | {"median_ms": median, "operands": operands} | changes

  rows = [
    row(128, "kernel bfloat16", 4.0),
    row(64, "kernel bfloat16", 2.0),
    row(64, "kernel bfloat16", 9.0, backward=False),
    row(64, "scan bfloat16", 6.0),
    row(64, "scan", 8.0),
    row(64, "scan", 7.0, part="gpu policy"),
    row(64, "scan", 5.0, batch_size=128),
    row(64, "pytorch bfloat16", 3.0),
  ]
  assert panels(rows, tmp_path / "figure.png", monkeypatch) == {
    "gru, T 64, B 32": {
      "kernel bfloat16": [[64, 2], [128, 4]],
      "scan bfloat16": [[64, 6]],
      "our floor, bfloat16": [[64, 1.5]],
      "scan": [[64, 8]],
      "pytorch bfloat16": [[64, 3]],
    },
    "gru, T 64, B 128": {"scan": [[64, 5]]},
  }


def test_every_program_of_a_layer_has_a_color():
  operands = "bfloat16", "TF32", "float32"
  for name in (*ALWAYS, *LIBRARIES):
    first, _, last = name.rpartition(" ")
    assert (first if last in operands else name) in COLORS
