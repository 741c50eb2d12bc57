"""The picture of a run: training and held-out loss over updates."""

import json
from pathlib import Path

from matplotlib.figure import Figure

from experiments.trainer.run_dir import METRICS, PICTURE


def draw(directory: Path, unit: str) -> None:
  """Draw loss.png from metrics.jsonl, in nats per unit: per what a token is."""
  *lines, cut = (directory / METRICS).read_text(encoding="utf-8").split("\n")
  del cut  # without a line break: half a row, where a disk was full
  rows = [json.loads(line) for line in lines]
  figure = Figure(figsize=(7, 4), layout="constrained")
  axes = figure.subplots()
  for name, label, style in (
    ("loss", "training", {"alpha": 0.6, "linewidth": 1}),
    ("development", "development", {"marker": "o", "markersize": 3}),
    ("held_out", "held out", {"marker": "o", "markersize": 3}),
  ):
    points = [
      (row["step"], row[name]) for row in rows if row.get(name) is not None
    ]
    if points:
      steps, values = zip(*points, strict=True)
      axes.plot(steps, values, label=label, **style)
  held_out = [row["held_out"] for row in rows if "held_out" in row]
  if held_out:
    best = min(held_out)
    axes.axhline(best, color="gray", linewidth=0.5)
    axes.set_title(f"best held-out loss {best:.4f} nats per {unit}")
  axes.set_xlabel("updates")
  axes.set_ylabel(f"nats per {unit}")
  axes.legend()
  figure.savefig(directory / PICTURE, dpi=120)
