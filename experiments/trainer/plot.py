"""The picture of a run: its losses over training steps."""

import math
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.trainer.figures import (
  End,
  label_ends,
  save,
  tidy,
  zoom_on_tail,
)
from experiments.trainer.format import format_nats
from experiments.trainer.history import read_rows
from experiments.trainer.run_dir import METRICS, PICTURE

CURVES: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
  ("train_loss", "training", "tab:gray", {"linewidth": 1}),
  ("val_loss", "validation", "tab:blue", {"marker": ".", "zorder": 3}),
)
TEST_COLOR = "tab:red"


def draw(directory: Path, unit: str) -> None:
  """Draw loss.png from metrics.jsonl.

  Args:
    directory: the run directory.
    unit: what a token is, in the singular.

  Raises:
    ValueError: a complete line is not a row of a run; or as `save`.
    OSError: metrics.jsonl cannot be read, or loss.png cannot be written.
  """
  rows = read_rows(directory / METRICS)
  figure = Figure(figsize=(7, 3.8), layout="constrained")
  panel = figure.subplots()
  ends: list[End] = []
  drawn: list[tuple[float, float]] = []
  important: list[float] = []
  for name, label, color, style in CURVES:
    points = _points(rows, name)
    if len(points) == 1:  # a line through one point is invisible
      style = style | {"marker": "."}
    if points:
      panel.plot(*zip(*points, strict=True), color=color, **style)
      ends.append(End(points[-1][1], label, color))
      important.append(points[-1][1])
      drawn += points
  for point in _points(rows, "test_loss"):  # at most one, at the best step
    panel.plot(*point, "s", color=TEST_COLOR, zorder=4)
    panel.annotate(
      "test", point, (0, 6), textcoords="offset points", color=TEST_COLOR
    )
    important.append(point[1])
  tidy(panel, _title(rows, unit), "training steps", f"nats per {unit}")
  panel.xaxis.set_major_formatter("{x:,.0f}")
  losses = [loss for _, loss in _points(rows, "val_loss")]
  zoom_on_tail(panel, drawn, [*important, min(losses, default=math.inf)])
  figure.draw_without_rendering()  # the layout decides where the ends are
  label_ends(panel, ends)
  save(figure, directory / PICTURE, dpi=120)


def _points(rows: list[dict[str, Any]], name: str) -> list[tuple[int, float]]:
  return [(row["step"], row[name]) for row in rows if row.get(name) is not None]


def _title(rows: list[dict[str, Any]], unit: str) -> str:
  points = _points(rows, "val_loss")
  if not points:
    return f"Training loss, nats per {unit}"
  step, best = min(points, key=lambda point: point[1])
  loss = f"{format_nats(best)} nats per {unit}"
  return f"Best validation loss {loss}, at step {step:,}"
