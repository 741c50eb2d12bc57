"""The two figures of a comparison.

`draw` has a panel for each measurement, with a line for each cell: training on
top; context and memory below. Lines of more than a few cells lie over each
other; `draw_rows` has a row for each cell, the best on top. Its panels have one
or two numbers for each cell, all but the time of a step from the end of the
training. A loss far to the right of the others' is written as a number at the
edge.
"""

from __future__ import annotations

import math
import re
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from experiments.analysis.recall import SYMBOLS
from experiments.comparison.results import (
  CHRONO_BIAS,
  EQUAL_STEPS,
  EQUAL_TIME,
  USUAL_BIAS,
  Record,
  diverged,
  finished,
)
from experiments.trainer.config import CELLS
from experiments.trainer.figures import SMALL, TEXT, save, tidy, zoom_on_tail

if TYPE_CHECKING:
  from matplotlib.axes import Axes

FIRST = {"rnn": "tab:orange", "gru": "tab:green", "lstm": "tab:blue"}
OTHERS = (
  *("tab:red", "tab:purple", "tab:brown", "tab:pink", "tab:olive", "tab:cyan"),
  *("black", "navy", "teal", "gold", "darkgray"),
)
# Those of OTHERS are used again if needed.
COLORS = FIRST | dict(
  zip((c for c in CELLS if c not in FIRST), cycle(OTHERS), strict=False)
)
SHORT, LONG = 16, 128  # characters of context, at most
BACK = 50  # time steps back of the gradient
REFERENCE = "lstm"  # times are given relative to that of this cell
FILLED, OPEN = "#1f5fa8", "#c8501e"
MANY = 6  # cells whose lines can still be told apart
NEAR = 0.75  # share of the cells, the best ones, that decide the axis's length
MIN_RATIO = 1e-16  # lower limit of the gradients' axis: 1 + 1e-16 is 1
RECALL_STYLES = {USUAL_BIAS: "-", CHRONO_BIAS: "--"}
GRADIENT_STYLES = {"h": "-", "c": "--"}  # of the parts of a state


def draw(record: Record, path: Path) -> None:
  """Plot a record to an image file; without recall, it has five panels.

  For more than MANY cells, `compare_cells` calls `draw_rows` instead.
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


def draw_rows(record: Record, path: Path) -> None:
  """Plot a record of many cells to an image file."""
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
  best = order[: math.ceil(NEAR * len(order))]
  found = [
    (value, cell in best)
    for series in panel.series
    for cell, values in series.values.items()
    for value in values
    if cell in order
  ]
  near = [value for value, is_near in found if is_near]
  if not panel.cut or not near:  # if there is none, the best diverged
    return None
  length = max(near) - min(near)
  if max(found)[0] - min(near) <= 2 * length:
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
