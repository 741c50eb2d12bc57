"""What all figures share, and the picture of a run."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments.trainer.files import write_bytes
from experiments.trainer.format import format_nats

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

TITLE, TEXT, SMALL = 11, 10, 9  # font sizes, points
GAP = 1.15  # least distance of the centres of two labels, in font sizes
STEEP = 0.03  # share of a training, at its start, that sets no axis limits


class End(NamedTuple):
  """The end of a line, on the right, and its label."""

  y: float
  text: str
  color: str


def save(figure: Figure, path: Path, **options: Any) -> None:
  """Write a figure as PNG, atomically, with the options of `Figure.savefig`.

  Raises:
    OSError: it cannot be written; the error names the file.
  """
  png = io.BytesIO()
  figure.savefig(png, format="png", **options)
  write_bytes(path, png.getvalue())


def tidy(
  panel: Axes,
  title: str,
  xlabel: str,
  ylabel: str,
  note: str = "",
  room: float = 0,
) -> None:
  """Title and label a panel, and draw it without a frame, on a faint grid.

  The note, of one line, stands between the title and the panel. Their distance
  is at least `room`, in points.
  """
  # Matplotlib's usual 6 points, and the height of the note.
  pad = max(room, 6 + 1.25 * SMALL * bool(note))
  panel.set_title(title, fontsize=TITLE, loc="left", pad=pad)
  if note:
    panel.annotate(
      note,
      (0, 1),
      (0, 4),
      xycoords="axes fraction",
      textcoords="offset points",
      fontsize=SMALL,
      color="0.35",
    )
  panel.set_xlabel(xlabel, fontsize=TEXT)
  panel.set_ylabel(ylabel, fontsize=TEXT)
  panel.tick_params(labelsize=SMALL)
  panel.spines[["top", "right"]].set_visible(False)
  panel.grid(axis="y", color="0.92")
  panel.set_axisbelow(True)


def zoom_on_tail(
  panel: Axes, points: list[tuple[float, float]], important: list[float]
) -> None:
  """Set the limits of a panel of losses so that the first, high ones are cut.

  A loss falls so far at first that what comes after would be a flat line.

  Args:
    panel: shows losses over training steps, or over a quantity proportional to
      them.
    points: (x, loss) of everything in the panel.
    important: losses that the panel shows in any case.
  """
  last = max((x for x, _ in points), default=0)
  shown = [loss for x, loss in points if x >= STEEP * last] + important
  shown = [loss for loss in shown if math.isfinite(loss)]
  if shown:
    low, high = min(shown), max(shown)
    # Equal losses need a margin, too; 0.1 vanishes beside one such as 1e20.
    margin = 0.05 * (high - low) or max(0.1, 0.001 * high)
    panel.set_ylim(low - margin, high + margin)


def label_ends(panel: Axes, ends: list[End]) -> None:
  """Write the labels of lines beside their ends, moved up to be legible.

  Call it when the panel's limits and scale are final.
  """
  figure, lowest = panel.figure, -math.inf
  for end in sorted(ends, key=lambda end: end.y):
    height = panel.transData.transform((1, end.y))[1]  # in pixels, at any x
    height *= 72 / figure.dpi  # in points
    shown = max(height, lowest)
    lowest = shown + GAP * SMALL
    panel.annotate(
      end.text,
      (1, end.y),
      (6, shown - height),
      xycoords=("axes fraction", "data"),
      textcoords="offset points",
      color=end.color,
      fontsize=SMALL,
      va="center",
    )


def draw_losses(rows: list[dict[str, Any]], unit: str, path: Path) -> None:
  """Draw the losses of a run over its training steps, as PNG.

  Args:
    rows: of metrics.jsonl.
    unit: what a token is, in the singular.
    path: of the picture.

  Raises:
    OSError: as `save`.
  """
  from matplotlib.figure import Figure  # here: programs' help needs none

  train, val, test = (
    [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    for name in ("train_loss", "val_loss", "test_loss")
  )
  figure = Figure(figsize=(7, 3.8), layout="constrained")
  panel = figure.subplots()
  ends: list[End] = []
  important: list[float] = []
  title = f"Training loss, nats per {unit}"
  if train:
    panel.plot(*zip(*train, strict=True), color="tab:gray", linewidth=1)
    ends.append(End(train[-1][1], "training", "tab:gray"))
  if val:
    panel.plot(*zip(*val, strict=True), ".-", color="tab:blue", zorder=3)
    ends.append(End(val[-1][1], "validation", "tab:blue"))
    step, best = min(val, key=lambda point: point[1])
    important.append(best)
    title = f"Best validation loss {format_nats(best)} nats per {unit}, "
    title += f"at step {step:,}"
  if test:
    panel.plot(*zip(*test, strict=True), "s", color="tab:red", zorder=4)
    ends.append(End(test[-1][1], "test", "tab:red"))
  tidy(panel, title, "training steps", f"nats per {unit}")
  panel.xaxis.set_major_formatter("{x:,.0f}")
  zoom_on_tail(panel, train + val, important + [end.y for end in ends])
  figure.draw_without_rendering()  # the layout decides where ends are
  label_ends(panel, ends)
  save(figure, path, dpi=120)
