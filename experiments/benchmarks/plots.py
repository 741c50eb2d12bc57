"""The benchmark's figure: the time of a training step, and how it grows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.benchmarks.parts import GROWTH
from experiments.trainer.figures import SMALL, save, tidy

if TYPE_CHECKING:
  from matplotlib.axes import Axes

Row = dict[str, Any]
COLUMNS = 3  # panels in a row of the figure
LABELS = {
  "seq_len": "sequence length T",
  "batch_size": "batch size B",
  "hidden_size": "hidden size H",
  "num_layers": "number of layers",
}
LETTERS = {"seq_len": "T", "batch_size": "B", "hidden_size": "H"}
COLORS = {
  "lstm_jax": "tab:blue",
  "autodiff": "tab:cyan",
  "lstm_jax layer": "tab:brown",
  "flax linen": "tab:orange",
  "flax nnx": "tab:olive",
  "haiku": "tab:green",
  "equinox": "tab:purple",
  "keras": "tab:pink",
  "pytorch": "tab:red",
}


def draw(rows: list[Row], path: Path) -> bool:
  """Draw one figure of a benchmark; return whether there was a row to draw.

  Of the benchmark's part `model`, the character models (V 65) of one layer in
  float32 are drawn: for each number of devices, a panel has the time of an Adam
  step relative to ours, by hidden size. For each part of `GROWTH`, a panel has
  the milliseconds of an Adam step as one size grows.
  """
  from matplotlib.figure import Figure

  models: dict[str, list[Row]] = {}
  for row in filter(_is_character_model, rows):
    # A peer on several devices has a name such as "haiku, 2 devices".
    peer, _, devices = row["peer"].partition(", ")
    models.setdefault(devices, []).append(row | {"peer": peer})
  parts = dict.fromkeys(row["part"] for row in rows if row["part"] in GROWTH)
  count = len(models) + len(parts)
  if not count:
    return False
  columns = min(COLUMNS, count)
  lines = math.ceil(count / columns)
  figure = Figure(figsize=(3.7 * columns, 3.1 * lines), layout="constrained")
  grid = figure.subplots(lines, columns, squeeze=False).flat
  panels, unused = grid[:count], grid[count:]
  for panel in unused:
    panel.set_axis_off()
  for (devices, found), panel in zip(models.items(), panels, strict=False):
    _draw_ratios(found, devices or "1 device", panel)
  for part, panel in zip(parts, panels[len(models) :], strict=True):
    _draw_growth([row for row in rows if row["part"] == part], panel)
  handles: dict[str, Any] = {}
  for panel in panels:
    drawn, names = panel.get_legend_handles_labels()
    handles |= dict(zip(names, drawn, strict=True))
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


def _draw_ratios(rows: list[Row], devices: str, panel: Axes) -> None:
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
  panel.set_xscale("log")
  panel.set_ylim(0, None)
  panel.yaxis.set_major_formatter("{x:g}×")
  title = f"An Adam step, {devices}"
  tidy(panel, title, LABELS["hidden_size"], "time, lstm_jax = 1")
  _set_ticks(panel, list(ours))


def _draw_growth(rows: list[Row], panel: Axes) -> None:
  """Draw each peer's milliseconds by the size that grows in a part."""
  from matplotlib.ticker import LogLocator

  size, _ = GROWTH[rows[0]["part"]]
  _draw_peers(rows, size, "median_ms", panel)
  panel.set_xscale("log")
  panel.set_yscale("log")
  panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
  panel.yaxis.set_major_formatter("{x:,g}")
  panel.yaxis.set_minor_formatter("")
  others = ", ".join(
    f"{letter} {rows[0][name]:,}"
    for name, letter in LETTERS.items()
    if name != size and len({row[name] for row in rows}) == 1
  )
  tidy(panel, f"By {LABELS[size]}; {others}", LABELS[size], "milliseconds")
  _set_ticks(panel, list(dict.fromkeys(row[size] for row in rows)))


def _draw_peers(rows: list[Row], x: str, y: str, panel: Axes) -> None:
  """Draw a line of the values of x and y for each peer."""
  for peer in dict.fromkeys(row["peer"] for row in rows):
    points = [(row[x], row[y]) for row in rows if row["peer"] == peer]
    panel.plot(*zip(*points, strict=True), label=peer, **_style(peer))


def _set_ticks(panel: Axes, values: list[int]) -> None:
  """Have the axis of a size show each of its values, and no other."""
  panel.set_xticks(values, [f"{value:,}" for value in values])
  panel.set_xticks([], minor=True)


def _style(peer: str) -> dict[str, Any]:
  """Return the style of a peer's line, which is the same in every panel."""
  if peer == "products alone":
    return {"color": "black", "linestyle": ":"}
  return {
    "color": COLORS.get(peer, "gray"),
    "marker": "o",
    "markersize": 3,
    "linewidth": 2.5 if peer == "lstm_jax" else 1.2,
  }
