"""The charts of the board: the loss against parameters and training time.

The numbers beside the points are those of the rows of the table. The points of
a chart are written into its PNG file, as text, so that a test can detect a
chart that is out of date.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from experiments.comparison.board import Board, Row
from experiments.trainer.figures import SMALL, save, tidy

if TYPE_CHECKING:
  from matplotlib.figure import Figure

MARKERS = "osD^v*PX"  # one for each protocol, in order; then the first again
OUR_COLOR, OTHERS_COLOR = "tab:blue", "tab:gray"
NEAR = 0.1, 0.03  # in log x and in nats: labels that are closer overlap
KEYWORD = "Description"  # of a PNG file's text


class Point(NamedTuple):
  """A result in a chart."""

  number: int  # of its row in the table
  protocol: str
  x: float
  loss: float
  deviation: float
  ours: bool


class Chart(NamedTuple):
  """A chart, by its horizontal axis.

  `value` takes a row and how many seeds a result counts (1, or all members of
  an ensemble), and returns x, or None if the row does not state it.
  """

  file: str
  title: str
  label: str
  value: Callable[[Row, int], float | None]


def _millions(row: Row, num_seeds: int) -> float | None:
  return num_seeds * (row.parameters / 1e6) if row.parameters else None


def _minutes(row: Row, num_seeds: int) -> float | None:
  """Return the minutes in which so many seeds are trained, one after another.

  A seed counts with the middle of the least and the most minutes; minutes that
  the seeds share count once.
  """
  if not row.training:
    return None
  (low, high), shared = row.training.minutes, row.training.shared
  return shared + num_seeds * ((low + high) / 2 - shared)


CHARTS = (
  Chart("loss-by-parameters.png", "size", "parameters, millions", _millions),
  Chart(
    "loss-by-time.png",
    "training time",
    "minutes of training, on different machines",
    _minutes,
  ),
)


def draw(board: Board, directory: Path) -> None:
  """Draw both charts of the rows into a directory."""
  from matplotlib.figure import Figure

  for chart in CHARTS:
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    found = points(board, chart)
    _draw(board, found, chart, figure)
    text = json.dumps(found)
    save(figure, directory / chart.file, dpi=100, metadata={KEYWORD: text})


def points(board: Board, chart: Chart) -> list[Point]:
  """Return a point for each result of the rows that have the chart's value.

  An ensemble counts the parameters and the minutes of all its members together;
  it is left out if the number of members is not known.
  """
  return [
    Point(number, r.protocol, x, r.mean, r.std or 0.0, row.is_ours)
    for number, row in enumerate(board.rows, start=1)
    for r in row.results
    if (num_seeds := len(r.seeds) if r.is_ensemble else 1)
    and (x := chart.value(row, num_seeds)) is not None
  ]


def labels(found: list[Point]) -> list[tuple[float, float, str]]:
  """Return (x, loss, text) of a label for each row, at its first result.

  Points that would hide each other's labels share one.
  """
  first: dict[int, Point] = {}
  for point in found:
    first.setdefault(point.number, point)
  groups: list[list[Point]] = []
  for point in first.values():
    for group in groups:
      ratio, gap = point.x / group[0].x, point.loss - group[0].loss
      if abs(math.log(ratio)) < NEAR[0] and abs(gap) < NEAR[1]:
        group.append(point)
        break
    else:
      groups.append([point])
  return [
    (g[0].x, g[0].loss, ", ".join(str(point.number) for point in g))
    for g in groups
  ]


def _draw(
  board: Board, found: list[Point], chart: Chart, figure: Figure
) -> None:
  from matplotlib.ticker import LogLocator

  panel = figure.subplots()
  for (protocol, title), marker in zip(
    board.protocols.items(), itertools.cycle(MARKERS), strict=False
  ):
    for ours, color in ((True, OUR_COLOR), (False, OTHERS_COLOR)):
      chosen = [p for p in found if (p.protocol, p.ours) == (protocol, ours)]
      if chosen:
        panel.errorbar(
          [point.x for point in chosen],
          [point.loss for point in chosen],
          [point.deviation for point in chosen],
          fmt=marker,
          color=color,
          label=f"{'ours' if ours else 'others’'}, {title}",
          markersize=5,
          capsize=2,
        )
  for x, loss, text in labels(found):
    panel.annotate(
      text, (x, loss), xytext=(6, 2), textcoords="offset points", fontsize=SMALL
    )
  panel.set_xscale("log")
  panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
  panel.xaxis.set_major_formatter("{x:g}")
  panel.xaxis.set_minor_formatter("")
  panel.margins(x=0.1)
  title = f"Loss by {chart.title}; the numbers are those of the table"
  tidy(panel, title, chart.label, "nats per character")
  figure.legend(
    fontsize=SMALL, ncols=2, loc="outside lower center", frameon=False
  )
