"""The figure of `experiments.policy`: return over environment steps."""

from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from experiments.policies.networks import FEED_FORWARD
from experiments.trainer.figures import End, label_ends, save, tidy
from experiments.trainer.format import counted

COLORS = {
  "gru": "tab:green",
  "lstm": "tab:blue",
  "min_gru": "tab:orange",
  FEED_FORWARD: "tab:gray",
}
OTHERS = "tab:red", "tab:purple", "tab:brown", "tab:pink", "tab:olive", "black"
LOWEST = -1.05  # lower limit of the returns' axis, unless a curve ends below


def draw(record: dict[str, Any], path: Path) -> None:
  """Plot a record to an image file: the seeds' mean, minimum and maximum."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=(7, 3.8), layout="constrained")
  panel, ends, lowest = figure.subplots(), list[End](), LOWEST
  others = cycle(OTHERS)
  for name, run in record["networks"].items():
    color = COLORS.get(name) or next(others)
    steps, returns = curve(run["returns"], record["steps_per_update"])
    marker = "." if len(steps) == 1 else None
    panel.plot(steps, returns.mean(1), marker=marker, color=color)
    if len(steps):
      label = name.replace("_", "-")
      ends.append(End(returns.mean(1)[-1], label, color))
      lowest = min(lowest, returns[-1].min())
    panel.fill_between(
      steps,
      returns.min(1),
      returns.max(1),
      color=color,
      alpha=0.2,
      linewidth=0,
    )
  guessing = record["guessing"]
  panel.axhline(guessing, color="black", linestyle="--", linewidth=0.8)
  ends.append(End(guessing, "best without memory", "black"))
  panel.xaxis.set_major_formatter("{x:,.0f}")
  panel.locator_params(axis="x", nbins=5)
  panel.set_ylim(lowest, 1.05)
  seeds = counted(record["config"]["num_seeds"], "seed")
  shade = f"line: mean of {seeds}; shade: minimum to maximum"
  xlabel = f"environment steps of a seed ({shade})"
  tidy(panel, record["task"], xlabel, "mean return of an episode")
  figure.draw_without_rendering()  # the layout decides where the ends are
  label_ends(panel, ends)
  save(figure, path, dpi=100)


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
