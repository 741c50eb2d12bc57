"""The figure of `--part=gpu`: µs per time step, by H, for every B."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.benchmarks.tables import Row
from experiments.trainer.figures import save

if TYPE_CHECKING:
  from matplotlib.axes import Axes

STYLES: dict[str, dict[str, Any]] = {
  "kernel bfloat16": {"color": "tab:blue", "linewidth": 2},
  "kernel": {"color": "tab:blue", "linestyle": "--", "linewidth": 2},
  "scan bfloat16": {"color": "tab:cyan"},
  "scan": {"color": "tab:cyan", "linestyle": "--"},
  "autodiff": {"color": "tab:gray", "linestyle": "--"},
  "flax linen": {"color": "tab:orange", "linestyle": "--"},
  "flax nnx": {"color": "tab:olive", "linestyle": "--"},
  "haiku": {"color": "tab:green", "linestyle": "--"},
  "equinox": {"color": "tab:purple", "linestyle": "--"},
  "jax.experimental.rnn": {"color": "tab:brown", "linestyle": "--"},
  "pytorch bfloat16": {"color": "tab:red"},
  "pytorch TF32": {"color": "tab:red", "linestyle": "--"},
  "pytorch float32": {"color": "tab:red", "linestyle": ":"},
}
CELLS = "lstm", "gru", "rnn"


def draw(rows: list[Row], path: Path) -> bool:
  """Draw how long the gradients of layers take, if any was timed.

  A row of panels for each cell, a panel for each B; solid lines are bfloat16,
  dashed ones TF32, and the dotted red one is PyTorch in float32. The dotted
  black line is the least time that the device needs (`floor`) for our programs
  in bfloat16.

  Args:
    rows: of all parts; only those of a layer's gradient are drawn.
    path: of the figure.

  Returns:
    Whether there was anything to draw.
  """
  from matplotlib.figure import Figure

  rows = [r for r in rows if r["part"] == "gpu layer" and r["backward"]]
  if not rows:
    return False
  cells = [cell for cell in CELLS if any(r["cell"] == cell for r in rows)]
  batches = sorted({row["batch_size"] for row in rows})
  size = 3.2 * len(batches) + 2, 2.9 * len(cells)
  figure = Figure(figsize=size, layout="constrained")
  panels = figure.subplots(len(cells), len(batches), squeeze=False)
  drawn: dict[str, Any] = {}
  for cell, line in zip(cells, panels, strict=True):
    for batch_size, panel in zip(batches, line, strict=True):
      chosen = [
        row
        for row in rows
        if (row["cell"], row["batch_size"]) == (cell, batch_size)
      ]
      _draw_panel(chosen, panel)
      panel.set_title(f"{cell}, B {batch_size}", fontsize=9)
      handles, names = panel.get_legend_handles_labels()
      drawn |= dict(zip(names, handles, strict=True))
  for panel in panels[:, 0]:
    panel.set_ylabel("gradient: µs per time step", fontsize=8)
  figure.legend(
    drawn.values(), drawn.keys(), fontsize=8, loc="outside right center"
  )
  save(figure, path, dpi=110)
  return True


def _draw_panel(rows: list[Row], panel: "Axes") -> None:
  """Draw a line for each peer, and the floor."""
  for peer in dict.fromkeys(row["peer"] for row in rows):
    points = sorted(
      (row["hidden_size"], row["us_per_step"])
      for row in rows
      if row["peer"] == peer
    )
    style = STYLES.get(peer, {"color": "tab:pink"})
    panel.plot(*zip(*points, strict=True), label=peer, marker=".", **style)
  floors = {  # PyTorch's is lower where memory decides: its arrays are bfloat16
    row["hidden_size"]: row["floor_us"]
    for row in rows
    if row["peer"] in ("kernel bfloat16", "scan bfloat16")
  }
  if floors:
    points = sorted(floors.items())
    panel.plot(*zip(*points, strict=True), "k:", label="our floor, bfloat16")
  panel.set_xscale("log", base=2)
  panel.set_yscale("log")
  sizes = sorted({row["hidden_size"] for row in rows})
  panel.set_xticks(sizes, [str(size) for size in sizes])
  panel.set_xlabel("hidden size H", fontsize=8)
  panel.tick_params(labelsize=8)
