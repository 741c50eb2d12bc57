"""The benchmark's figure: the time of a training step, and how it grows."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.benchmarks.parts import GROWTH
from experiments.benchmarks.tables import Row
from experiments.trainer.figures import SMALL, save, tidy

if TYPE_CHECKING:
  from matplotlib.axes import Axes

COLUMNS = 3  # panels in a row of the figure
LABELS = {
  "seq_len": "sequence length T",
  "batch_size": "batch size B",
  "hidden_size": "hidden size H",
  "num_layers": "number of layers",
}
LETTERS = {"seq_len": "T", "batch_size": "B", "hidden_size": "H"}
COLORS = {  # of a peer, whatever it multiplies
  "lstm_jax": "tab:blue",
  "kernel": "tab:blue",
  "scan": "tab:cyan",
  "autodiff": "tab:gray",
  "lstm_jax layer": "tab:brown",
  "flax linen": "tab:orange",
  "flax nnx": "tab:olive",
  "haiku": "tab:green",
  "equinox": "tab:purple",
  "keras": "tab:pink",
  "jax.experimental.rnn": "tab:brown",
  "pytorch": "tab:red",
}
LINES = {"bfloat16": "-", "TF32": "--", "float32": ":"}  # on a GPU, by operands
FLOOR = "our floor, bfloat16"
WITHOUT_LIBRARY = "products alone", FLOOR


def draw(rows: list[Row], path: Path) -> bool:
  """Draw one figure of a benchmark; return whether there was a row to draw.

  Of the benchmark's part `model`, the character models (V 65) of one layer in
  float32 are drawn: for each number of devices, a panel has the time of an Adam
  step relative to ours, by hidden size. For each part of `GROWTH`, a panel has
  the milliseconds of an Adam step as one size grows. Of the part `gpu`, for
  each cell and batch size, a panel has the milliseconds of a layer's gradient
  by hidden size, and the floor of our programs in bfloat16.
  """
  from matplotlib.figure import Figure

  draws: list[Callable[[Axes], None]] = []
  models: dict[str, list[Row]] = {}
  for row in filter(_is_character_model, rows):
    # A peer on several devices has a name such as "haiku, 2 devices".
    peer, _, devices = row["peer"].partition(", ")
    models.setdefault(devices, []).append(row | {"peer": peer})
  for devices, found in models.items():
    title = f"An Adam step, {devices or '1 device'}"
    draws.append(partial(_draw_ratios, found, title))
  growth: dict[str, list[Row]] = {}
  layers: dict[tuple, list[Row]] = {}
  for row in rows:
    if row["part"] in GROWTH:
      growth.setdefault(row["part"], []).append(row)
    elif row["part"] == "gpu layer" and row["backward"]:
      layers.setdefault((row["cell"], row["batch_size"]), []).append(row)
  for part, found in growth.items():
    size, _ = GROWTH[part]
    title = f"By {LABELS[size]}; {_other_sizes(found, size)}"
    draws.append(partial(_draw_times, found, size, title))
  for (cell, _), found in sorted(layers.items()):
    title = f"{cell}, {_other_sizes(found, 'hidden_size')}"
    floors = [
      row | {"peer": FLOOR, "median_ms": row["floor_ms"]}
      for row in found
      if row["peer"] == "scan bfloat16"
    ]
    sized = sorted(found + floors, key=lambda row: row["hidden_size"])
    draws.append(partial(_draw_times, sized, "hidden_size", title))
  if not draws:
    return False
  columns = min(COLUMNS, len(draws))
  lines = math.ceil(len(draws) / columns)
  figure = Figure(figsize=(3.7 * columns, 3.1 * lines), layout="constrained")
  grid = figure.subplots(lines, columns, squeeze=False).flat
  handles: dict[str, Any] = {}
  for draw_panel, panel in zip(draws, grid, strict=False):
    draw_panel(panel)
    drawn, names = panel.get_legend_handles_labels()
    handles |= dict(zip(names, drawn, strict=True))
  for panel in grid[len(draws) :]:
    panel.set_axis_off()
  figure.legend(
    handles.values(),
    handles.keys(),
    fontsize=SMALL,
    ncols=5,
    loc="outside lower center",
    frameon=False,
  )
  save(figure, path, dpi=110)
  return True


def _is_character_model(row: Row) -> bool:
  """Return whether a row is of the model part, one layer, V 65 and float32."""
  return row["part"] == "model" and (
    (row["num_layers"], row["vocabulary_size"], row["dtype"])
    == (1, 65, "float32")
  )


def _other_sizes(rows: list[Row], grows: str) -> str:
  """Return the sizes that all rows have, but for the one that grows."""
  return ", ".join(
    f"{letter} {rows[0][name]:,}"
    for name, letter in LETTERS.items()
    if name != grows and len({row[name] for row in rows}) == 1
  )


def _draw_ratios(rows: list[Row], title: str, panel: Axes) -> None:
  """Draw each peer's time relative to ours, by hidden size."""
  ours = {
    row["hidden_size"]: row["median_ms"]
    for row in rows
    if row["peer"] == "lstm_jax"
  }
  ratios = [
    row | {"ratio": row["median_ms"] / ours[row["hidden_size"]]}
    for row in rows
    if row["hidden_size"] in ours
  ]
  _draw_peers(ratios, "hidden_size", "ratio", panel)
  panel.set_ylim(0, None)
  panel.yaxis.set_major_formatter("{x:g}×")
  tidy(panel, title, LABELS["hidden_size"], "time, lstm_jax = 1")


def _draw_times(rows: list[Row], size: str, title: str, panel: Axes) -> None:
  """Draw each peer's milliseconds by the size that grows."""
  from matplotlib.ticker import LogLocator

  _draw_peers(rows, size, "median_ms", panel)
  panel.set_yscale("log")
  panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
  panel.yaxis.set_major_formatter("{x:,g}")
  panel.yaxis.set_minor_formatter("")
  tidy(panel, title, LABELS[size], "milliseconds")


def _draw_peers(rows: list[Row], x: str, y: str, panel: Axes) -> None:
  """Draw a line of the values of x and y for each peer, at ticks of its own."""
  for peer in dict.fromkeys(row["peer"] for row in rows):
    mine = [row for row in rows if row["peer"] == peer]
    style: dict[str, Any] = {"color": "black", "linestyle": ":"}
    if peer not in WITHOUT_LIBRARY:
      name, _, last = peer.rpartition(" ")
      color = COLORS.get(name if last in LINES else peer, "tab:pink")
      line = LINES[mine[0].get("operands", "bfloat16")]
      width = 2.5 if peer.startswith(("lstm_jax", "kernel")) else 1.2
      style = {"color": color, "linestyle": line, "linewidth": width}
      style |= {"marker": "o", "markersize": 3}
    panel.plot(
      [row[x] for row in mine], [row[y] for row in mine], label=peer, **style
    )
  panel.set_xscale("log")
  values = sorted({row[x] for row in rows})
  panel.set_xticks(values, [f"{value:,}" for value in values])
  panel.set_xticks([], minor=True)
