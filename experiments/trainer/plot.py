"""The picture of a run: its losses over training steps."""

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.trainer.figures import End, label_ends, tidy
from experiments.trainer.run_dir import METRICS, PICTURE

CURVES: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
  ("train_loss", "training", "tab:gray", {"linewidth": 1}),
  ("val_loss", "validation", "tab:blue", {"marker": ".", "zorder": 3}),
  ("test_loss", "test", "tab:red", {"marker": "s", "linewidth": 0}),
)
# The loss falls so far in this share of the training that what comes after it
# would be a flat line.
STEEP = 0.03


def draw(directory: Path, unit: str) -> None:
  """Draw loss.png from metrics.jsonl.

  Args:
    directory: the run directory.
    unit: what a token is, in the singular.
  """
  *lines, partial = (
    (directory / METRICS).read_text(encoding="utf-8").split("\n")
  )
  del partial  # a line without a line break was cut off by a full disk
  rows = [json.loads(line) for line in lines]
  figure = Figure(figsize=(7, 3.8), layout="constrained")
  panel = figure.subplots()
  ends = []
  for name, label, color, style in CURVES:
    points = _points(rows, name)
    if points:
      panel.plot(*zip(*points, strict=True), color=color, **style)
      ends.append(End(points[-1][1], label, color))
  tidy(panel, _title(rows, unit), "training steps", f"nats per {unit}")
  panel.xaxis.set_major_formatter("{x:,.0f}")
  shown = _after_the_steep_part(rows)
  if shown:
    margin = 0.05 * (max(shown) - min(shown)) or 0.1
    panel.set_ylim(min(shown) - margin, max(shown) + margin)
  figure.draw_without_rendering()  # the layout decides where the ends are
  label_ends(panel, ends)
  figure.savefig(directory / PICTURE, dpi=120)


def _points(rows: list[dict[str, Any]], name: str) -> list[tuple[int, float]]:
  return [(row["step"], row[name]) for row in rows if row.get(name) is not None]


def _title(rows: list[dict[str, Any]], unit: str) -> str:
  points = _points(rows, "val_loss")
  if not points:
    return f"Training loss, nats per {unit}"
  step, best = min(points, key=lambda point: point[1])
  return f"Best validation loss {best:.4f} nats per {unit}, at step {step:,}"


def _after_the_steep_part(rows: list[dict[str, Any]]) -> list[float]:
  """Return the losses that the picture must show."""
  points = [point for name, *_ in CURVES for point in _points(rows, name)]
  last = max((step for step, _ in points), default=0)
  return [loss for step, loss in points if step >= STEEP * last]
