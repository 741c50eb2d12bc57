"""The figure of a comparison: training on top; context and memory below."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.analysis.recall import SYMBOLS
from experiments.comparison.measurements import (
  DELAY_BIAS,
  EQUAL_STEPS,
  EQUAL_TIME,
  USUAL_BIAS,
)
from experiments.trainer.config import CELLS
from experiments.trainer.figures import SMALL, TEXT, tidy, zoom_on_tail

if TYPE_CHECKING:
  from matplotlib.axes import Axes

Record = dict[str, Any]
COLORS = {"rnn": "tab:orange", "gru": "tab:green", "lstm": "tab:blue"}
OTHERS = (
  *("tab:red", "tab:purple", "tab:brown", "tab:pink", "tab:olive", "tab:cyan"),
  *("black", "navy", "teal", "gold", "darkgray"),
)
COLORS |= dict(zip((n for n in CELLS if n not in COLORS), OTHERS, strict=True))
MIN_RATIO = 1e-16  # lower limit of the gradients' axis: 1 + 1e-16 is 1
RECALL_STYLES = {USUAL_BIAS: "-", DELAY_BIAS: "--"}


def draw(record: Record, path: Path) -> None:
  """Plot a record to an image file; without recall, its panel is blank."""
  from matplotlib.figure import Figure
  from matplotlib.lines import Line2D

  figure = Figure(figsize=(11, 7), layout="constrained")
  panels = figure.subplots(2, 3)
  contents = (
    _val_loss,
    _val_loss_by_time,
    _words,
    _context,
    _recall,
    _gradient_flow,
  )
  for content, panel in zip(contents, panels.flat, strict=True):
    content(record, panel)
  figure.legend(
    handles=[
      Line2D([], [], color=color, marker=".", label=cell.upper())
      for cell, color in COLORS.items()
      if cell in record["cells"]
    ],
    title="line: mean over seeds; shade: minimum to maximum",
    title_fontsize=SMALL,
    fontsize=TEXT,
    ncols=min(6, len(record["cells"])),
    loc="outside lower center",
    frameon=False,
  )
  figure.savefig(path, dpi=110)


def _val_loss(record: Record, panel: Axes) -> None:
  runs = _select(record["runs"], budget=EQUAL_STEPS)
  points = [point for run in runs for point in _losses(run, panel)]
  zoom_on_tail(panel, points, [])
  _plain_x(panel)
  title = "Validation loss, equal steps"
  tidy(panel, title, "training steps", "nats per character")


def _val_loss_by_time(record: Record, panel: Axes) -> None:
  points = []
  for cell, cell_record in record["cells"].items():
    # The LSTM has one run: the other cells get its time. If no cell has a run
    # of equal time, all are drawn over the time of equal steps.
    runs = _select(record["runs"], cell=cell)
    runs = _select(runs, budget=EQUAL_TIME) or runs
    for run in runs:
      points += _losses(run, panel, cell_record["seconds_per_step"])
  zoom_on_tail(panel, points, [])
  _plain_x(panel)
  xlabel = "seconds of training, all seeds at once"
  tidy(panel, "Validation loss over time", xlabel, "nats per character")


def _words(record: Record, panel: Axes) -> None:
  styles = {"words_in_train": "-", "words_in_val": ":"}
  for run in _select(record["runs"], budget=EQUAL_STEPS):
    steps = [row["step"] for row in run["samples"]]
    for key, style in styles.items():
      shares = [_mean_percent(row[key]) for row in run["samples"]]
      panel.plot(steps, shares, style, color=COLORS[run["cell"]], marker=".")
  panel.plot([], [], "-", color="black", label="in the training text")
  panel.plot([], [], ":", color="black", label="in the validation text")
  texts = record["corpus"]["text_statistics"]
  share = texts["validation text"]["words_in_train"]
  if share is not None:
    panel.axhline(
      100 * share,
      color="gray",
      linestyle="--",
      linewidth=0.8,
      label="validation text, in the training text",
    )
  panel.set_xscale("symlog", linthresh=100)
  panel.set_xlim(0, None)
  _plain_x(panel)
  _legend(panel, loc="upper left", bbox_to_anchor=(0, 0.88))
  panel.set_ylim(0, 100)
  title = "Sampled words found in the text"
  tidy(panel, title, "training steps", "% of the words")


def _context(record: Record, panel: Axes) -> None:
  for run in _select(record["context"], budget=EQUAL_STEPS):
    losses = np.transpose(run["val_loss"]).tolist()
    _band(panel, run["lengths"], losses, run["cell"])
  panel.set_xscale("log", base=2)
  _plain_x(panel)
  xlabel = "maximum context, characters"
  tidy(panel, "Validation loss by context", xlabel, "nats per character")


def _recall(record: Record, panel: Axes) -> None:
  if not record["recall"]:
    panel.set_axis_off()
    return
  for bias, style in RECALL_STYLES.items():
    rows_of_bias = _select(record["recall"], forget_bias=bias)
    for cell in dict.fromkeys(row["cell"] for row in rows_of_bias):
      rows = _select(rows_of_bias, cell=cell)
      delays = [row["delay"] for row in rows]
      accuracies = [row["accuracy"] for row in rows]
      _band(panel, delays, accuracies, cell, style)
    if rows_of_bias:
      panel.plot([], [], style, color="black", label=f"{bias}\nforget bias")
  panel.axhline(
    1 / SYMBOLS, color="gray", linestyle="--", linewidth=0.8, label="chance"
  )
  panel.set_xscale("log")
  _plain_x(panel)
  _legend(panel, loc="center left")
  panel.set_ylim(0, 1.03)
  tidy(panel, "Delayed recall", "delay, in blanks", "accuracy")


def _gradient_flow(record: Record, panel: Axes) -> None:
  for row in record["gradient_flow"]:
    for field, norms in row["norms"].items():
      ratios = np.array(norms) / row["norms"]["h"][0]
      ratios[ratios <= 0] = np.nan  # underflow, which a log axis cannot show
      panel.plot(
        ratios,
        "-" if field == "h" else "--",
        color=COLORS[row["cell"]],
        linewidth=1.8 if row["stage"] == "trained" else 0.7,
      )
  panel.plot([], [], "-", color="black", linewidth=1.8, label="h, trained")
  panel.plot([], [], "--", color="black", linewidth=1.8, label="c, trained")
  panel.plot(
    [], [], "-", color="black", linewidth=0.7, label="thin lines: untrained"
  )
  panel.set_yscale("log")
  panel.set_ylim(MIN_RATIO, None)
  _legend(panel, loc="best")
  ylabel = "‖∂ℓ$_T$/∂s$_t$‖ / ‖∂ℓ$_T$/∂h$_T$‖,  s = h or c"
  tidy(panel, "Gradient flow", "T − t, characters", ylabel)


def _legend(panel: Axes, **place: Any) -> None:
  """Explain the styles of a panel's lines; the figure explains their colors."""
  panel.legend(fontsize=SMALL, frameon=False, handlelength=1.3, **place)


def _plain_x(panel: Axes) -> None:
  """Have plain numbers at the ticks of the horizontal axis."""
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
