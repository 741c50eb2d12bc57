"""The figure of a comparison of many cells: a row for each, the best on top.

Lines of more than a few cells lie over each other. Here each panel has one or
two numbers for each cell, all but the time of a step from the end of the
training, so that the cells can be compared. A loss far to the right of the
others' is written as a number at the edge.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from experiments.comparison.measurements import (
  EQUAL_STEPS,
  EQUAL_TIME,
  diverged,
  finished,
)
from experiments.trainer.figures import SMALL, TEXT, save, tidy

if TYPE_CHECKING:
  from matplotlib.axes import Axes

Record = dict[str, Any]
SHORT, LONG = 16, 128  # characters of context, at most
BACK = 50  # time steps back of the gradient
REFERENCE = "lstm"  # times are given relative to that of this cell
FILLED, OPEN = "#1f5fa8", "#c8501e"
MANY = 6  # cells whose lines can still be told apart
NEAR = 0.75  # share of the cells, the best ones, that decide the axis's length


class Series(NamedTuple):
  """The values of one kind of mark, by cell: of each seed, or one for all."""

  label: str
  values: dict[str, list[float]]


class Panel(NamedTuple):
  """One panel: its title, the unit of its axis, one or two kinds of marks."""

  title: str
  unit: str
  series: list[Series]
  log: bool = False
  cut: bool = False  # far values are written at the edge


def draw(record: Record, path: Path) -> None:
  """Plot a record to an image file."""
  from matplotlib.figure import Figure

  panels = make_panels(record)
  order = sorted_cells(record)
  height = 1.7 + 0.27 * len(order)
  figure = Figure(figsize=(11.5, height), layout="constrained")
  widths = [2 if len(panel.series) > 1 else 1.4 for panel in panels]
  row = figure.subplots(
    1, len(panels), sharey=True, squeeze=False, width_ratios=widths
  )[0]
  for axes, panel in zip(row, panels, strict=True):
    _draw_panel(axes, panel, order)
  first = row[0]
  first.set_yticks(range(len(order)), [name(record, cell) for cell in order])
  first.set_ylim(len(order) - 0.4, -0.6)  # downwards: row 0 is on top
  save(figure, path, dpi=110)


def sorted_cells(record: Record) -> list[str]:
  """Return the cells by their loss after equal steps, the best first.

  Those that diverged come last.
  """
  losses = _final(record, EQUAL_STEPS)
  means = {
    run["cell"]: float(np.mean(losses.get(run["cell"], math.inf)))
    for run in record["runs"]
    if run["budget"] == EQUAL_STEPS
  }
  return sorted(means, key=means.__getitem__)


def make_panels(record: Record) -> list[Panel]:
  """Return the panels of a record's figure, without those with no values."""
  steps, timed = (
    _final(record, budget) for budget in (EQUAL_STEPS, EQUAL_TIME)
  )
  losses = [Series("equal steps", steps)]
  if timed:
    # The LSTM has one run for both budgets.
    timed |= {REFERENCE: steps[REFERENCE]} if REFERENCE in steps else {}
    losses.append(Series("equal time", timed))
  by_context = {
    row["cell"]: dict(
      zip(row["lengths"], np.transpose(row["val_loss"]).tolist(), strict=True)
    )
    for row in record["context"]
    if row["budget"] == EQUAL_STEPS
  }
  contexts = [
    Series(
      f"{length // 2 + 1} to {length} characters",
      {cell: row[length] for cell, row in by_context.items() if length in row},
    )
    for length in (LONG, SHORT)
  ]
  words = {
    run["cell"]: [
      100 * share
      for share in run["samples"][-1]["words_in_train"]
      if share is not None
    ]
    for run in finished(record)
    if run["budget"] == EQUAL_STEPS
  }
  gradients = {
    row["cell"]: [row["norms"]["h"][BACK] / row["norms"]["h"][0]]
    for row in record["gradient_flow"]
    if row["stage"] == "trained"
    and len(row["norms"]["h"]) > BACK
    # A logarithmic axis has no 0; a norm beyond float32 is None.
    and row["norms"]["h"][0]
    and row["norms"]["h"][BACK]
  }
  seconds = {
    cell: entry["seconds_per_step"] for cell, entry in record["cells"].items()
  }
  times = {
    cell: [value / seconds[REFERENCE]] for cell, value in seconds.items()
  }
  nats = "nats per character"
  panels = [
    Panel("Validation loss", nats, losses, cut=True),
    Panel("Loss by context", nats, contexts, cut=True),
    Panel("Real words", "% of those written", [Series("", words)]),
    Panel(
      f"Gradient {BACK} back", "of that at 0", [Series("", gradients)], log=True
    ),
    Panel("Time of a step", f"of {REFERENCE}'s", [Series("", times)]),
  ]
  shown = [
    panel._replace(series=[each for each in panel.series if each.values])
    for panel in panels
  ]
  return [panel for panel in shown if panel.series]


def _final(record: Record, budget: str) -> dict[str, list[float]]:
  """Return each cell's losses at the end of its runs, one for each seed."""
  return {
    run["cell"]: run["evaluations"][-1]["val_loss"]
    for run in finished(record)
    if run["budget"] == budget
  }


def edge(panel: Panel, order: list[str]) -> float | None:
  """Return where a panel's axis ends on the right, or None to show all values.

  The axis ends after the values of the best cells (a share NEAR of all) if the
  values of the others would make it more than twice as long.
  """
  if not panel.cut:
    return None

  def values(cells: list[str]) -> list[float]:
    return [
      value
      for series in panel.series
      for cell in cells
      for value in series.values.get(cell, ())
    ]

  near = values(order[: math.ceil(NEAR * len(order))])
  everything = values(order)
  if not near:  # the best diverged
    return None
  length = max(near) - min(near)
  if max(everything) - min(near) <= 2 * length:
    return None
  return max(near) + 0.05 * length


def _draw_panel(axes: Axes, panel: Panel, order: list[str]) -> None:
  """Draw one panel: per cell, a mark at the mean, a line from min to max."""
  end = edge(panel, order)
  far: dict[str, list[str]] = {}
  for series, color in zip(panel.series, (FILLED, OPEN), strict=False):
    means, rows = [], []
    for row, cell in enumerate(order):
      values = series.values.get(cell)
      if not values:
        continue
      mean = float(np.mean(values))
      if end is not None and mean > end:
        far.setdefault(cell, []).append(f"{mean:.2f}")
        continue
      axes.hlines(row, min(values), max(values), color)
      means.append(mean)
      rows.append(row)
    axes.plot(
      means,
      rows,
      linestyle="",
      marker="o",
      markersize=5.5,
      color=color,
      markerfacecolor=color if color == FILLED else "white",
      label=series.label,
    )
  if end is not None:
    axes.set_xlim(None, end)
  for cell, numbers in far.items():
    axes.annotate(
      f"{', '.join(numbers)} →",
      (1, order.index(cell)),
      xycoords=("axes fraction", "data"),
      fontsize=SMALL,
      ha="right",
      va="center",
    )
  if panel.log:
    axes.set_xscale("log")
  tidy(axes, panel.title, panel.unit, "", room=3.3 * SMALL)  # for the legend
  axes.tick_params(axis="y", labelsize=TEXT, length=0)
  axes.spines["left"].set_visible(False)
  if any(series.label for series in panel.series):
    axes.legend(
      fontsize=SMALL,
      frameon=False,
      loc="lower left",
      bbox_to_anchor=(-0.04, 0.98),
      handletextpad=0.1,
      borderpad=0,
    )


def name(record: Record, cell: str) -> str:
  """Return the label of a cell's row."""
  size = record["cells"][cell]["hidden_size"]
  return f"{cell}, H {size}{diverged(record, cell)}"
