"""What all figures share: tidy panels, labels at the ends of lines, PNGs."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments.trainer.files import write_bytes

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
    ValueError: a directory that this process has locked was moved or deleted.
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
  """Write the labels of lines beside their ends, moved apart to be legible.

  Call it when the panel's limits and scale are final.
  """
  figure = panel.figure
  size = SMALL * figure.dpi / 72 * GAP  # in pixels; a point is 1/72 inch
  to_pixels = panel.transData.transform
  ordered = sorted(ends, key=lambda end: end.y)
  heights = [float(to_pixels((1, end.y))[1]) for end in ordered]  # at any x
  for end, height, y in zip(
    ordered, heights, spread(heights, size), strict=True
  ):
    panel.annotate(
      end.text,
      (1, end.y),
      (6, (y - height) * 72 / figure.dpi),
      xycoords=("axes fraction", "data"),
      textcoords="offset points",
      color=end.color,
      fontsize=SMALL,
      va="center",
    )


def spread(heights: list[float], gap: float) -> list[float]:
  """Return rising heights moved apart to a gap, by as little as possible.

  Neighbours that are too close form a group, which stays where its mean is.
  """
  groups: list[list[float]] = []
  for height in heights:
    groups.append([height])
    while len(groups) > 1 and _bottom(groups[-1], gap) < (
      _bottom(groups[-2], gap) + len(groups[-2]) * gap
    ):
      groups[-2:] = [groups[-2] + groups[-1]]
  return [
    _bottom(group, gap) + gap * i for group in groups for i in range(len(group))
  ]


def _bottom(group: list[float], gap: float) -> float:
  """Return where the lowest of a group goes, if spread around its mean."""
  return sum(group) / len(group) - gap * (len(group) - 1) / 2
