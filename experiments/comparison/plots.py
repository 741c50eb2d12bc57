"""The two figures of a comparison.

`draw_lines` has a panel for each measurement, with a line for each cell:
training on top; context and memory below. Lines of more than MANY cells lie
over each other; `draw_rows` has a row for each cell, the best on top. Its
panels have one or two numbers for each cell, all but the time of a step from
the end of the training. A loss far to the right of the others' is written as a
number at the edge.
"""

import math
import re
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatter

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
from experiments.trainer.figures import SMALL, TEXT, tidy, zoom_on_tail

FIRST = "lstm", "rnn", "gru"  # in blue, orange and green
TAB20 = colormaps["tab20"](range(20))  # RGBA, [20, 4]; every second one is pale
COLORS = dict(
  zip(
    [*FIRST, *(cell for cell in CELLS if cell not in FIRST)],
    [*TAB20[::2], *TAB20[1::2]],
    strict=False,
  )
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
NATS = "nats per character"


def draw(record: Record) -> Figure:
  """Return the figure of a record: lines, or rows for more than MANY cells."""
  many = len(record["cells"]) > MANY
  return draw_rows(record) if many else draw_lines(record)


def draw_lines(record: Record) -> Figure:
  """Return a figure of six panels, or of five without recall."""
  figure = Figure(figsize=(11, 7), layout="constrained")
  *panels, last = figure.subplots(2, 3).flat
  contents = [_val_loss, _val_loss_by_time, _words, _context, _gradient_flow]
  for content, panel in zip(contents, panels, strict=True):
    content(record, panel)
  trained = dict.fromkeys(run["cell"] for run in record["runs"])
  handles = [
    Line2D([], [], color=COLORS[cell], marker=".", label=_title(record, cell))
    for cell in trained
  ]
  if record["recall"]:
    _recall(record, last)
    owner, columns, place = figure, len(handles), "outside lower center"
  else:
    last.set_axis_off()
    owner, columns, place = last, 1, "center"
  owner.legend(
    handles=handles,
    title="line: mean over seeds\nshade: minimum to maximum",
    title_fontsize=SMALL,
    fontsize=TEXT,
    frameon=False,
    ncols=columns,
    loc=place,
  )
  return figure


def _title(record: Record, cell: str) -> str:
  """Return a cell's name as one writes it, such as sLSTM, and its failures."""
  name = cell.replace("_", "-")
  name = re.sub("lstm|gru|rnn|lru", lambda found: found[0].upper(), name)
  return name + diverged(record, cell)


def _val_loss(record: Record, panel: Axes) -> None:
  _losses(panel, [(r, 1.0) for r in _select(finished(record), EQUAL_STEPS)])
  note = "each cell for the same number of training steps"
  tidy(panel, "Validation loss", "training steps", NATS, note)


def _val_loss_by_time(record: Record, panel: Axes) -> None:
  # The LSTM has one run, whose time the other cells get. If there is no run of
  # equal time, the runs of equal steps are drawn again, over their time.
  runs, note = finished(record), "the same runs"
  if timed := _select(runs, EQUAL_TIME):
    lstm = [run for run in runs if run["cell"] == REFERENCE]
    runs, note = timed + lstm, "each for the LSTM's time"
  cells = record["cells"]
  _losses(panel, [(r, cells[r["cell"]]["seconds_per_step"]) for r in runs])
  xlabel = "seconds of training, all seeds at once"
  tidy(panel, "Validation loss", xlabel, NATS, note)


def _losses(panel: Axes, runs: list[tuple[Record, float]]) -> None:
  """Draw the validation losses of runs, each with its x of a training step."""
  points = []
  for run, x_per_step in runs:
    rows = run["evaluations"]
    x = [x_per_step * row["step"] for row in rows]
    losses = [row["val_loss"] for row in rows]
    _band(panel, x, losses, run["cell"])
    points += [(a, b) for a, each in zip(x, losses, strict=True) for b in each]
  zoom_on_tail(panel, points, [])  # []: there is no loss that must be seen
  _plain_x(panel)


def _words(record: Record, panel: Axes) -> None:
  styles = {"words_in_train": "-", "words_in_val": ":"}
  note = "solid: training text; dotted: validation text"
  for run in _select(finished(record), EQUAL_STEPS):
    steps = [row["step"] for row in run["samples"]]
    for key, style in styles.items():
      percents = [_percents(row[key]) or [np.nan] for row in run["samples"]]
      means = [float(np.mean(each)) for each in percents]
      panel.plot(steps, means, style, color=COLORS[run["cell"]], marker=".")
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
  for run in _select(record["context"], EQUAL_STEPS):
    losses = np.transpose(run["val_loss"])
    _band(panel, run["lengths"], losses, run["cell"])
  panel.set_xscale("log", base=2)
  _plain_x(panel)
  note = "of contexts between the previous point and this"
  title = "Validation loss by context"
  tidy(panel, title, "context, characters", NATS, note)


def _recall(record: Record, panel: Axes) -> None:
  lines: dict[tuple[str, str], dict[int, list[float]]] = {}
  for row in sorted(record["recall"], key=lambda row: row["delay"]):
    kind = row["forget_bias"], row["cell"]
    lines.setdefault(kind, {})[row["delay"]] = row["accuracy"]
  for (bias, cell), line in lines.items():
    _band(panel, [*line], [*line.values()], cell, RECALL_STYLES[bias])
  _reference(panel, 1 / SYMBOLS, "chance")
  panel.set_xscale("log")
  _plain_x(panel)
  # The minor ticks have labels if the delays span less than a decade.
  panel.xaxis.set_minor_formatter(LogFormatter())
  panel.set_ylim(0, 1.03)
  note = f"initial biases, solid: {USUAL_BIAS}; dashed: {CHRONO_BIAS}"
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


def _reference(panel: Axes, value: float, label: str) -> None:
  """Draw a horizontal line at a value to compare with, and name it."""
  panel.axhline(value, color="gray", linestyle="--", linewidth=0.8)
  place = panel.get_yaxis_transform()  # x in axes, y in data
  text = panel.text(0.01, value, label, fontsize=SMALL, transform=place)
  text.set(color="0.35", va="top")


def _plain_x(panel: Axes) -> None:
  """Label the ticks of the horizontal axis with plain numbers, not powers."""
  panel.xaxis.set_major_formatter("{x:,g}")


def _band(
  panel: Axes, x: list, values: np.typing.ArrayLike, cell: str, style: str = "-"
) -> None:
  """Draw the mean over seeds; shade from the minimum to the maximum.

  Args:
    panel: where to draw.
    x: N places.
    values: those of each seed, [N, seeds].
    cell: has its colour.
    style: of the line.
  """
  color, values = COLORS[cell], np.asarray(values)
  panel.plot(x, values.mean(1), style, color=color, marker=".", markersize=4)
  low, high = values.min(1), values.max(1)
  panel.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)


def _select(rows: list[Record], budget: str) -> list[Record]:
  """Return the rows of a budget."""
  return [row for row in rows if row["budget"] == budget]


def _percents(values: list[float | None]) -> list[float]:
  """Return the values that are known, in percent."""
  return [100 * value for value in values if value is not None]


# {label: {cell: values}} of each kind of mark: those of each seed, or one.
Marks = dict[str, dict[str, list[float]]]


class Panel(NamedTuple):
  """One panel of `draw_rows`: its axis, and one or two kinds of marks."""

  title: str
  unit: str
  marks: Marks
  log: bool = False
  cut: bool = False  # far values are written at the edge


def draw_rows(record: Record) -> Figure:
  """Return a figure with a row for each cell, and the panels that have values.

  The rows are in the order of the loss after equal steps, the best first; those
  that diverged come last.
  """
  losses = _final(record, EQUAL_STEPS)
  planned = [run["cell"] for run in _select(record["runs"], EQUAL_STEPS)]
  order = sorted(planned, key=lambda c: np.mean(losses.get(c, math.inf)))
  panels = _make_panels(record)
  height = 1.7 + 0.27 * len(order)
  figure = Figure(figsize=(11.5, height), layout="constrained")
  row = figure.subplots(
    1,
    len(panels),
    sharey=True,
    squeeze=False,
    width_ratios=[2 if len(panel.marks) > 1 else 1.4 for panel in panels],
  )[0]
  for axes, panel in zip(row, panels, strict=True):
    _draw_panel(axes, panel, order)
  names = [
    f"{cell}, H {record['cells'][cell]['hidden_size']}{diverged(record, cell)}"
    for cell in order
  ]
  row[0].set_yticks(range(len(order)), names)
  row[0].set_ylim(len(order) - 0.4, -0.6)  # downwards: row 0 is on top
  return figure


def _final(record: Record, budget: str) -> dict[str, list[float]]:
  """Return each cell's losses at the end of its runs, one for each seed."""
  return {
    run["cell"]: run["evaluations"][-1]["val_loss"]
    for run in _select(finished(record), budget)
  }


def _make_panels(record: Record) -> list[Panel]:
  """Return the panels of a record's figure, without those with no values."""
  steps, timed = (_final(record, each) for each in (EQUAL_STEPS, EQUAL_TIME))
  if timed and REFERENCE in steps:  # it has one run for both budgets
    timed[REFERENCE] = steps[REFERENCE]
  contexts: Marks = {
    f"{length // 2 + 1} to {length} characters": {
      row["cell"]: [
        seed[row["lengths"].index(length)] for seed in row["val_loss"]
      ]
      for row in _select(record["context"], EQUAL_STEPS)
      if length in row["lengths"]
    }
    for length in (LONG, SHORT)
  }
  words = {
    run["cell"]: _percents(run["samples"][-1]["words_in_train"])
    for run in _select(finished(record), EQUAL_STEPS)
  }
  gradients = {
    row["cell"]: [norms[BACK] / norms[0]]
    for row in record["gradient_flow"]
    for norms in [row["norms"]["h"]]
    # A logarithmic axis has no 0; a norm beyond float32 is None.
    if row["stage"] == "trained" and all(norms[:1]) and any(norms[BACK:][:1])
  }
  seconds = {
    cell: entry["seconds_per_step"] for cell, entry in record["cells"].items()
  }
  times = {cell: [x / seconds[REFERENCE]] for cell, x in seconds.items()}
  losses = {EQUAL_STEPS: steps, EQUAL_TIME: timed}
  back = f"Gradient {BACK} back"
  panels = [
    Panel("Validation loss", NATS, losses, cut=True),
    Panel("Loss by context", NATS, contexts, cut=True),
    Panel("Real words", "% of those written", {"": words}),
    Panel(back, "of that at 0", {"": gradients}, log=True),
    Panel("Time of a step", f"of {REFERENCE}'s", {"": times}),
  ]
  shown = [
    panel._replace(marks={k: v for k, v in panel.marks.items() if v})
    for panel in panels
  ]
  return [panel for panel in shown if panel.marks]


def _edge(panel: Panel, order: list[str]) -> float | None:
  """Return where a panel's axis ends on the right, or None to show all values.

  The axis ends after the values of the best cells (a share NEAR of all) if the
  values of the others would make it more than twice as long.
  """

  def values(cells: list[str]) -> list[float]:
    kinds = panel.marks.values()
    return [x for kind in kinds for cell in cells for x in kind.get(cell, ())]

  near = values(order[: math.ceil(NEAR * len(order))])
  if not panel.cut or not near:  # if there is none, the best diverged
    return None
  length = max(near) - min(near)
  is_short = max(values(order)) - min(near) <= 2 * length
  return None if is_short else max(near) + 0.05 * length


def _draw_panel(axes: Axes, panel: Panel, order: list[str]) -> None:
  """Draw one panel: per cell, a mark at the mean, a line from min to max."""
  end = _edge(panel, order)
  far: dict[int, list[str]] = {}
  styles = (FILLED, FILLED), (OPEN, "white")
  for (label, kind), (color, fill) in zip(
    panel.marks.items(), styles, strict=False
  ):
    means = {
      row: float(np.mean(kind[cell]))
      for row, cell in enumerate(order)
      if kind.get(cell)
    }
    near = {row: x for row, x in means.items() if end is None or x <= end}
    for row in means.keys() - near.keys():
      far.setdefault(row, []).append(f"{means[row]:.2f}")
    for row in near:
      values = kind[order[row]]
      axes.hlines(row, min(values), max(values), color)
    axes.plot(
      [*near.values()],
      [*near],
      linestyle="",
      marker="o",
      markersize=5.5,
      color=color,
      markerfacecolor=fill,
      label=label,
    )
  if end is not None:
    axes.set_xlim(None, end)
  for row, numbers in far.items():
    axes.text(
      1,
      row,
      f"{', '.join(numbers)} →",
      transform=axes.get_yaxis_transform(),
      fontsize=SMALL,
      ha="right",
      va="center",
    )
  if panel.log:
    axes.set_xscale("log")
  tidy(axes, panel.title, panel.unit, "", room=3.3 * SMALL)  # for the legend
  axes.tick_params(axis="y", labelsize=TEXT, length=0)
  axes.spines["left"].set_visible(False)
  if any(panel.marks):
    axes.legend(
      fontsize=SMALL,
      frameon=False,
      loc="lower left",
      bbox_to_anchor=(-0.04, 0.98),
      handletextpad=0.1,
      borderpad=0,
    )
