"""The figure of a run of `policy`: return over environment steps."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.policies.networks import FEED_FORWARD

COLORS = {
  "gru": "tab:green",
  "lstm": "tab:blue",
  "min_gru": "tab:orange",
  FEED_FORWARD: "tab:gray",
}


def draw(record: dict[str, Any], path: Path) -> None:
  """Plot a record to an image file: mean over seeds, minimum to maximum."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=(6.4, 3.6), layout="constrained")
  panel = figure.subplots()
  for name, run in record["networks"].items():
    steps, returns = curve(run["returns"], record["steps_per_update"])
    label = name.replace("_", "-")
    panel.plot(steps, returns.mean(1), color=COLORS[name], label=label)
    panel.fill_between(
      steps,
      returns.min(1),
      returns.max(1),
      color=COLORS[name],
      alpha=0.2,
      linewidth=0,
    )
  panel.axhline(
    record["guessing"],
    color="black",
    linestyle="--",
    linewidth=0.8,
    label="without memory, at best",
  )
  panel.legend(fontsize=8)
  panel.xaxis.set_major_formatter("{x:,.0f}")
  panel.locator_params(axis="x", nbins=5)
  panel.set(
    title=record["task"],
    xlabel="environment steps of a seed",
    ylabel="mean return of an episode",
    ylim=(-1.05, 1.05),
  )
  seeds = record["config"]["num_seeds"]
  shade = f"line: mean of {seeds} seeds; shade: minimum to maximum"
  figure.supxlabel(shade, fontsize=8)
  figure.savefig(path, dpi=80)


def curve(
  returns: list[list[float | None]], steps_per_update: int
) -> tuple[np.ndarray, np.ndarray]:
  """Return (steps [U], returns [U, S]) of the updates with all returns known.

  Args:
    returns: the mean return of each seed, after each update.
    steps_per_update: time steps of all environments of a seed together.
  """
  rows = [i for i, row in enumerate(returns) if None not in row]
  steps = steps_per_update * (np.array(rows, int) + 1)
  known = np.array([returns[i] for i in rows], float)
  return steps, known.reshape(len(rows), len(returns[0]))
