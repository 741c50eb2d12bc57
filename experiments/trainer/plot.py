"""The picture of a run: its losses over training steps."""

import json
from pathlib import Path

from matplotlib.figure import Figure

from experiments.trainer.run_dir import METRICS, PICTURE

CURVES = (
  ("train_loss", "training", {"alpha": 0.6, "linewidth": 1}),
  ("val_loss", "validation", {"marker": "o", "markersize": 3}),
  ("test_loss", "test", {"marker": "s", "markersize": 5, "linewidth": 0}),
)


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
  figure = Figure(figsize=(7, 4), layout="constrained")
  axes = figure.subplots()
  for name, label, style in CURVES:
    points = [
      (row["step"], row[name]) for row in rows if row.get(name) is not None
    ]
    if points:
      steps, values = zip(*points, strict=True)
      axes.plot(steps, values, label=label, **style)
  val_losses = [row["val_loss"] for row in rows if "val_loss" in row]
  if val_losses:
    best = min(val_losses)
    axes.axhline(best, color="gray", linewidth=0.5)
    axes.set_title(f"best validation loss: {best:.4f} nats per {unit}")
  axes.set_xlabel("training steps")
  axes.set_ylabel(f"nats per {unit}")
  axes.legend()
  figure.savefig(directory / PICTURE, dpi=120)
