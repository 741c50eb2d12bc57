"""The comparison's picture: learning above, reaching back below."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.analysis.recall import SYMBOLS
from experiments.comparison.measurements import PARAMETERS, TIME

Record = dict[str, Any]
COLORS = {"rnn": "tab:orange", "gru": "tab:green", "lstm": "tab:blue"}


def draw(record: Record, path: Path) -> None:
  """Draw the record into a file."""
  figure = Figure(figsize=(11, 6.4), layout="constrained")
  panels = figure.subplots(2, 3)
  _held_out(record, panels[0, 0])
  _equal_time(record, panels[0, 1])
  _words(record, panels[0, 2])
  _context(record, panels[1, 0])
  _recall(record, panels[1, 1])
  _flow(record, panels[1, 2])
  for panel in panels.flat:
    panel.title.set_fontsize(9)
    panel.tick_params(labelsize=7)
    for label in (panel.xaxis.label, panel.yaxis.label):
      label.set_fontsize(8)
    if panel.get_legend_handles_labels()[0]:  # not in an interrupted one
      panel.legend(fontsize=6.5)
  figure.savefig(path, dpi=110)


def _held_out(record: Record, panel: Axes) -> None:
  for one in _of(record["runs"], budget=PARAMETERS):
    steps = [row["step"] for row in one["held_out"]]
    _band(panel, steps, [row["nats"] for row in one["held_out"]], one["cell"])
  panel.set_xscale("symlog", linthresh=10)
  panel.set(
    title=f"{PARAMETERS}: held-out loss",
    xlabel="updates",
    ylabel="nats per character",
  )


def _equal_time(record: Record, panel: Axes) -> None:
  cells = record["cells"]
  for name, cell in cells.items():
    budget = PARAMETERS if name == "lstm" else TIME
    for one in _of(record["runs"], cell=name, budget=budget):
      rows = one["held_out"]
      seconds = [cell["seconds_per_update"] * row["step"] for row in rows]
      label = f"{name}, {one['updates']:,} updates"
      _band(panel, seconds, [row["nats"] for row in rows], name, label)
  panel.set_xscale("symlog", linthresh=1)
  panel.set(
    title=f"{TIME}: held-out loss",
    xlabel="seconds of training, all seeds together",
    ylabel="nats per character",
  )


def _words(record: Record, panel: Axes) -> None:
  for one in _of(record["runs"], budget=PARAMETERS):
    rows = one["writing"]
    steps = [row["step"] for row in rows]
    for key, line in (("in_training", "-"), ("in_held_out", ":")):
      shares = [_percent(row[key]) for row in rows]
      label = one["cell"] if line == "-" else None
      panel.plot(
        steps, shares, line, color=COLORS[one["cell"]], marker=".", label=label
      )
  truth = record["corpus"]["writing"]["held-out text"]["in_training"]
  if truth is not None:
    panel.axhline(
      100 * truth, color="gray", linewidth=0.7, label="the held-out text itself"
    )
  panel.set_xscale("symlog", linthresh=100)
  panel.set(
    title="written words that the training text has\n(dotted: held-out text)",
    xlabel="updates",
    ylabel="%",
  )


def _context(record: Record, panel: Axes) -> None:
  for one in _of(record["context"], budget=PARAMETERS):
    nats = np.transpose(one["nats"]).tolist()
    _band(panel, one["lengths"], nats, one["cell"])
  panel.set_xscale("log", base=2)
  panel.set(
    title="held-out loss by context seen",
    xlabel="characters seen, at most",
    ylabel="nats per character",
  )


def _recall(record: Record, panel: Axes) -> None:
  for cell in dict.fromkeys(row["cell"] for row in record["recall"]):
    rows = _of(record["recall"], cell=cell)
    delays = [row["delay"] for row in rows]
    _band(panel, delays, [row["accuracy"] for row in rows], cell)
  panel.axhline(1 / SYMBOLS, color="gray", linewidth=0.7, label="chance")
  panel.set_xscale("log")
  panel.set(
    title="delayed recall",
    xlabel="blanks between",
    ylabel="share recalled",
    ylim=(0, 1.03),
  )


def _flow(record: Record, panel: Axes) -> None:
  for one in record["flow"]:
    for field, norms in one["norms"].items():
      shares = np.array(norms) / one["norms"]["h"][0]
      shares[shares <= 0] = np.nan  # underflow: no place on a logarithm
      trained = one["stage"] == "trained"
      name = one["cell"] if field == "h" else f"{one['cell']}, {field}"
      panel.plot(
        shares,
        "-" if field == "h" else "--",
        color=COLORS[one["cell"]],
        linewidth=1.6 if trained else 0.6,
        label=name if trained else None,
      )
  panel.set_yscale("log")
  panel.set(
    title="‖∂ℓ_T/∂sₜ‖ / ‖∂ℓ_T/∂h_T‖\n(thin: untrained; s = h, dashed c)",
    xlabel="T − t, characters",
  )


def _band(
  panel: Axes, x: list, values: list[list[float]], cell: str, label: str = ""
) -> None:
  """Draw the mean over seeds, and shade from the least to the greatest."""
  color, label = COLORS[cell], label or cell
  mean, low, high = (f(values, axis=1) for f in (np.mean, np.min, np.max))
  panel.plot(x, mean, color=color, marker=".", markersize=4, label=label)
  panel.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)


def _of(rows: list[Record], **wanted: str) -> list[Record]:
  """Return the rows that have these values."""
  return [row for row in rows if all(row[k] == v for k, v in wanted.items())]


def _percent(values: list[float | None]) -> float:
  """Return the mean over the seeds that have a value, in percent."""
  known = [value for value in values if value is not None]
  return 100 * float(np.mean(known)) if known else np.nan
