"""Read the page of `experiments.report`, and choose what it shows."""

from tests.experiments.trainer.resuming import read_rows


def choose(chromium, name, value):
  """Set the value of a menu or a slider."""
  chromium.run(
    "const e = document.getElementById(args[0]); e.value = args[1];"
    "e.dispatchEvent(new Event(e.type === 'range' ? 'input' : 'change'))",
    name,
    value,
  )
  chromium.settle()


def points_of(directory, name):
  """Return [(step, value, seconds), ...] of a run's rows that have a value.

  `name` is that of a loss, "lr" or "grad_norm". A row without seconds has those
  of the last row before it that has them.
  """
  points, seconds = [], 0
  for row in read_rows(directory):
    seconds = row.get("seconds", seconds)
    if name in row:
      points.append((row["step"], row[name], seconds))
  return points


def lines(chromium):
  """Return the points [x, y] of each line of the chart, in pixels."""
  return chromium.run(
    "return [...document.querySelectorAll('polyline')].map((line) =>"
    "[...line.points].map((p) => [p.x, p.y]))"
  )
