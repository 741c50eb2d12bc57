"""The figure of a comparison: training on top; context and memory below."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.analysis.recall import SYMBOLS
from experiments.comparison.measurements import (
  CHRONO_BIAS,
  EQUAL_STEPS,
  EQUAL_TIME,
  USUAL_BIAS,
  diverged,
  finished,
)
from experiments.trainer.config import CELLS
from experiments.trainer.figures import SMALL, TEXT, save, tidy, zoom_on_tail

if TYPE_CHECKING:
  from matplotlib.axes import Axes

Record = dict[str, Any]  # comparison.json, or an entry in one of its lists
FIRST = {"rnn": "tab:orange", "gru": "tab:green", "lstm": "tab:blue"}
OTHERS = (
  *("tab:red", "tab:purple", "tab:brown", "tab:pink", "tab:olive", "tab:cyan"),
  *("black", "navy", "teal", "gold", "darkgray"),
)


def colors(cells: Iterable[str]) -> dict[str, str]:
  """Return the color of each cell; those of OTHERS are used again if needed."""
  others = cycle(OTHERS)
  return FIRST | {cell: next(others) for cell in cells if cell not in FIRST}


COLORS = colors(CELLS)
MIN_RATIO = 1e-16  # lower limit of the gradients' axis: 1 + 1e-16 is 1
RECALL_STYLES = {USUAL_BIAS: "-", CHRONO_BIAS: "--"}
GRADIENT_STYLES = {"h": "-", "c": "--"}  # of the parts of a state


def draw(record: Record, path: Path) -> None:
  """Plot a record to an image file; without recall, it has five panels.

  For more than `dot_plot.MANY` cells, `compare_cells` calls `dot_plot` instead.
  """
  from matplotlib.figure import Figure
  from matplotlib.lines import Line2D

  figure = Figure(figsize=(11, 7), layout="constrained")
  *panels, last = figure.subplots(2, 3).flat
  contents = [_val_loss, _val_loss_by_time, _words, _context, _gradient_flow]
  for content, panel in zip(contents, panels, strict=True):
    content(record, panel)
  trained = {run["cell"] for run in record["runs"]}
  labels = {cell: _title(cell) + diverged(record, cell) for cell in trained}
  handles = [
    Line2D([], [], color=color, marker=".", label=labels[cell])
    for cell, color in COLORS.items()
    if cell in trained
  ]
  legend: dict[str, Any] = {
    "handles": handles,
    "title": "line: mean over seeds\nshade: minimum to maximum",
    "title_fontsize": SMALL,
    "fontsize": TEXT,
    "frameon": False,
  }
  if record["recall"]:
    _recall(record, last)
    place = "outside lower center"
    figure.legend(**legend, ncols=len(handles), loc=place)
  else:
    last.set_axis_off()
    last.legend(**legend, loc="center")
  save(figure, path, dpi=110)


def _val_loss(record: Record, panel: Axes) -> None:
  runs = _select(finished(record), budget=EQUAL_STEPS)
  points = [point for run in runs for point in _losses(run, panel)]
  zoom_on_tail(panel, points, [])  # []: there is no loss that must be seen
  _plain_x(panel)
  note = "each cell for the same number of training steps"
  tidy(panel, "Validation loss", "training steps", "nats per character", note)


def _val_loss_by_time(record: Record, panel: Axes) -> None:
  # The LSTM has one run, whose time the other cells get. If there is no run of
  # equal time, the runs of equal steps are drawn again, over their time.
  runs, note = finished(record), "the same runs"
  if timed := _select(runs, budget=EQUAL_TIME):
    runs, note = timed + _select(runs, cell="lstm"), "each for the LSTM's time"
  points = []
  for run in runs:
    seconds = record["cells"][run["cell"]]["seconds_per_step"]
    points += _losses(run, panel, seconds)
  zoom_on_tail(panel, points, [])
  _plain_x(panel)
  xlabel = "seconds of training, all seeds at once"
  tidy(panel, "Validation loss", xlabel, "nats per character", note)


def _words(record: Record, panel: Axes) -> None:
  styles = {"words_in_train": "-", "words_in_val": ":"}
  note = "solid: training text; dotted: validation text"
  for run in _select(finished(record), budget=EQUAL_STEPS):
    steps = [row["step"] for row in run["samples"]]
    for key, style in styles.items():
      shares = [_mean_percent(row[key]) for row in run["samples"]]
      panel.plot(steps, shares, style, color=COLORS[run["cell"]], marker=".")
  texts = record["corpus"]["text_statistics"]
  share = texts["validation text"]["words_in_train"]
  if share is not None:
    _reference(panel, 100 * share, "validation text, in the training text")
  # Samples are drawn after 0, 100, 1000 … steps.
  panel.set_xscale("symlog", linthresh=100)
  panel.set_xlim(0, None)
  _plain_x(panel)
  panel.set_ylim(0, 100)
  title = "Sampled words found in the text"
  tidy(panel, title, "training steps", "% of the words", note)


def _context(record: Record, panel: Axes) -> None:
  for run in _select(record["context"], budget=EQUAL_STEPS):
    losses = np.transpose(run["val_loss"]).tolist()
    _band(panel, run["lengths"], losses, run["cell"])
  panel.set_xscale("log", base=2)
  _plain_x(panel)
  note = "of contexts between the previous point and this"
  xlabel = "context, characters"
  title = "Validation loss by context"
  tidy(panel, title, xlabel, "nats per character", note)


def _recall(record: Record, panel: Axes) -> None:
  from matplotlib.ticker import LogFormatter

  names = {}
  for bias, style in RECALL_STYLES.items():
    rows_of_bias = _select(record["recall"], forget_bias=bias)
    for cell in dict.fromkeys(row["cell"] for row in rows_of_bias):
      rows = _select(rows_of_bias, cell=cell)
      rows.sort(key=lambda row: row["delay"])
      delays = [row["delay"] for row in rows]
      accuracies = [row["accuracy"] for row in rows]
      _band(panel, delays, accuracies, cell, style)
    if rows_of_bias:
      names[bias] = "solid" if style == "-" else "dashed"
  _reference(panel, 1 / SYMBOLS, "chance")
  panel.set_xscale("log")
  _plain_x(panel)
  # The minor ticks have labels if the delays span less than a decade.
  panel.xaxis.set_minor_formatter(LogFormatter())
  panel.set_ylim(0, 1.03)
  biases = "; ".join(f"{style}: {bias}" for bias, style in names.items())
  note = f"initial biases, {biases}"
  tidy(panel, "Delayed recall", "delay, in blanks", "accuracy", note)


def _gradient_flow(record: Record, panel: Axes) -> None:
  for row in record["gradient_flow"]:
    first = row["norms"]["h"][0]
    for field, style in GRADIENT_STYLES.items():
      if field not in row["norms"]:
        continue
      ratios = np.array(row["norms"][field], float) / (first or np.nan)
      ratios[ratios <= 0] = np.nan  # underflow, which a log axis cannot show
      panel.plot(
        ratios,
        style,
        color=COLORS[row["cell"]],
        linewidth=1.8 if row["stage"] == "trained" else 0.7,
      )
  panel.set_yscale("log")
  panel.set_ylim(MIN_RATIO, None)
  note = "solid: s = h; dashed: s = c; thin: untrained"
  ylabel = "‖∂ℓ$_T$/∂s$_t$‖ / ‖∂ℓ$_T$/∂h$_T$‖"
  tidy(panel, "Gradient flow", "T − t, characters", ylabel, note)


def _title(cell: str) -> str:
  """Return a cell's name as one writes it, such as min-GRU and sLSTM."""
  name = cell.replace("_", "-")
  return re.sub("lstm|gru|rnn|lru", lambda found: found[0].upper(), name)


def _reference(panel: Axes, value: float, label: str) -> None:
  """Draw a horizontal line at a value to compare with, and name it."""
  panel.axhline(value, color="gray", linestyle="--", linewidth=0.8)
  panel.annotate(
    label,
    (0, value),
    (4, -3),
    xycoords=("axes fraction", "data"),
    textcoords="offset points",
    fontsize=SMALL,
    color="0.35",
    va="top",
  )


def _plain_x(panel: Axes) -> None:
  """Label the ticks of the horizontal axis with plain numbers, not powers."""
  panel.xaxis.set_major_formatter("{x:,g}")


def _losses(
  run: Record, panel: Axes, x_per_step: float = 1
) -> list[tuple[float, float]]:
  """Draw a run's validation losses, and return the (x, loss) of all seeds."""
  rows = run["evaluations"]
  x = [x_per_step * row["step"] for row in rows]
  _band(panel, x, [row["val_loss"] for row in rows], run["cell"])
  losses = zip(x, (row["val_loss"] for row in rows), strict=True)
  return [(place, loss) for place, each in losses for loss in each]


def _band(
  panel: Axes,
  x: list,
  values: list[list[float]],
  cell: str,
  style: str = "-",
) -> None:
  """Draw the mean over seeds; shade from the minimum to the maximum."""
  color = COLORS[cell]
  mean, low, high = (f(values, axis=1) for f in (np.mean, np.min, np.max))
  panel.plot(x, mean, style, color=color, marker=".", markersize=4)
  panel.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)


def _select(rows: list[Record], **values: str) -> list[Record]:
  """Return the rows that have these values."""
  return [row for row in rows if all(row[k] == v for k, v in values.items())]


def _mean_percent(values: list[float | None]) -> float:
  """Return the mean of the values that are not None, in percent."""
  known = [value for value in values if value is not None]
  return 100 * float(np.mean(known)) if known else np.nan
