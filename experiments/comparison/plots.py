"""The figure of a comparison: training on top, use of memory below."""

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

if TYPE_CHECKING:
  from matplotlib.axes import Axes

Record = dict[str, Any]
COLORS = {"rnn": "tab:orange", "gru": "tab:green", "lstm": "tab:blue"}
OTHERS = (
  *("tab:red", "tab:purple", "tab:brown", "tab:pink", "tab:olive", "tab:cyan"),
  *("black", "navy", "teal", "gold", "darkgray"),
)
COLORS |= dict(zip((n for n in CELLS if n not in COLORS), OTHERS, strict=True))
LEGEND_FONT_SIZE = 7.5
RECALL_STYLES = {USUAL_BIAS: "-", DELAY_BIAS: "--"}


def draw(record: Record, path: Path) -> None:
  """Plot a record to an image file; panels without results stay empty."""
  from matplotlib.figure import Figure
  from matplotlib.lines import Line2D

  figure = Figure(figsize=(11, 6.8), layout="constrained")
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
    panel.title.set_fontsize(10)
    panel.tick_params(labelsize=8)
    for label in (panel.xaxis.label, panel.yaxis.label):
      label.set_fontsize(9)
  figure.legend(
    handles=[
      Line2D([], [], color=color, marker=".", label=cell.upper())
      for cell, color in COLORS.items()
      if cell in record["cells"]
    ],
    title="line: mean over seeds, shade: minimum to maximum",
    title_fontsize=9,
    fontsize=9,
    ncols=min(6, len(record["cells"])),
    loc="outside lower center",
  )
  figure.savefig(path, dpi=110)


def _val_loss(record: Record, panel: Axes) -> None:
  for run in _select(record["runs"], budget=EQUAL_STEPS):
    _losses(run, panel)
  _scale_x(panel, "symlog", linthresh=10)
  panel.set(
    title="Validation loss, equal steps",
    xlabel="training steps",
    ylabel="nats per character",
  )


def _val_loss_by_time(record: Record, panel: Axes) -> None:
  for cell, cell_record in record["cells"].items():
    # The LSTM has one run: the other cells get its time. If no cell has a run
    # of equal time, all are drawn over the time of equal steps.
    runs = _select(record["runs"], cell=cell)
    runs = _select(runs, budget=EQUAL_TIME) or runs
    for run in runs:
      _losses(run, panel, cell_record["seconds_per_step"])
  _scale_x(panel, "symlog", linthresh=1)
  panel.set(
    title="Validation loss over time",
    xlabel="seconds of training, all seeds at once",
    ylabel="nats per character",
  )


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
      label="the validation text itself",
    )
  _scale_x(panel, "symlog", linthresh=100)
  panel.legend(loc="lower right", fontsize=LEGEND_FONT_SIZE)
  panel.set(
    title="Sampled words found in the text",
    xlabel="training steps",
    ylabel="% of the words",
    ylim=(0, 100),
  )


def _context(record: Record, panel: Axes) -> None:
  for run in _select(record["context"], budget=EQUAL_STEPS):
    losses = np.transpose(run["val_loss"]).tolist()
    _band(panel, run["lengths"], losses, run["cell"])
  _scale_x(panel, "log", base=2)
  panel.set(
    title="Validation loss by context",
    xlabel="maximum context, characters",
    ylabel="nats per character",
  )


def _recall(record: Record, panel: Axes) -> None:
  for bias, style in RECALL_STYLES.items():
    rows_of_bias = _select(record["recall"], forget_bias=bias)
    for cell in dict.fromkeys(row["cell"] for row in rows_of_bias):
      rows = _select(rows_of_bias, cell=cell)
      delays = [row["delay"] for row in rows]
      accuracies = [row["accuracy"] for row in rows]
      _band(panel, delays, accuracies, cell, style)
    if rows_of_bias:
      panel.plot([], [], style, color="black", label=f"{bias} forget bias")
  panel.axhline(
    1 / SYMBOLS, color="gray", linestyle="--", linewidth=0.8, label="chance"
  )
  _scale_x(panel, "log")
  panel.legend(loc="center left", fontsize=LEGEND_FONT_SIZE)
  panel.set(
    title="Delayed recall",
    xlabel="delay, in blanks",
    ylabel="accuracy",
    ylim=(0, 1.03),
  )


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
  panel.legend(loc="lower left", fontsize=LEGEND_FONT_SIZE)
  panel.set(
    title="Gradient flow",
    xlabel="T − t, characters",
    ylabel="‖∂ℓ$_T$/∂s$_t$‖ / ‖∂ℓ$_T$/∂h$_T$‖,  s = h or c",
  )


def _scale_x(panel: Axes, scale: str, **options: float) -> None:
  """Set the scale of the horizontal axis, with plain numbers at its ticks."""
  panel.set_xscale(scale, **options)
  panel.xaxis.set_major_formatter("{x:,g}")


def _losses(run: Record, panel: Axes, step_size: float = 1) -> None:
  """Draw a run's validation losses; a training step is `step_size` long."""
  rows = run["evaluations"]
  x = [step_size * row["step"] for row in rows]
  _band(panel, x, [row["val_loss"] for row in rows], run["cell"])


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
