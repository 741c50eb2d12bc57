"""The comparison's tables, as Markdown: printed as they stand in a README."""

from typing import Any

import numpy as np

from experiments.analysis.recall import SYMBOLS, longest

Record = dict[str, Any]
LAGS = 1, 5, 10, 20, 50, 100, 200  # steps back, of the gradient


def tables(record: Record) -> dict[str, str]:
  """Return each table's title and text."""
  seeds = record["config"]["num_seeds"]
  return {
    f"Text: nats per held-out character (mean ± deviation of {seeds} seeds), "
    "and, at the end, the form of what is written": _text(record),
    "Nats per held-out character by the characters seen before it": (
      _context(record)
    ),
    "Delayed recall: share recalled, by blanks between (chance "
    f"{1 / SYMBOLS:.3f})": _recall(record),
    "Gradient flow: norms of ∂ℓ_T/∂sₜ in shares of ‖∂ℓ_T/∂h_T‖, by T − t": (
      _flow(record)
    ),
  }


def markdown(header: list[str], rows: list[list[str]]) -> str:
  """Return a table whose first column stands left and the others right."""
  lines = [header, ["---", *("--:" for _ in header[1:])], *rows]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(record: Record) -> str:
  cells = record["cells"]
  looks = [
    {row["step"]: row["nats"] for row in one["held_out"]}
    for one in record["runs"]
  ]
  steps = [s for s in (0, 100, 1000) if any(s in look for look in looks)]
  header = [
    "cell",
    "H",
    "parameters",
    "updates",
    *(f"nats at {step}" for step in steps),
    "at the end",
    "words of the training text, %",
    "of the held-out text, %",
    "line length",
    "lines that rhyme, %",
  ]
  rows = []
  for one, look in zip(record["runs"], looks, strict=True):
    cell = cells[one["cell"]]
    written = one["writing"][-1]
    rows.append(
      [
        f"{one['cell']}, {one['budget']}",
        str(cell["hidden_size"]),
        f"{cell['parameters']:,}",
        f"{one['updates']:,}",
        *(_spread(look.get(step), 3) for step in steps),
        _spread(look[one["updates"]], 4),
        _spread(written["in_training"], 1, 100),
        _spread(written["in_held_out"], 1, 100),
        _spread(written["line_length"], 1),
        _spread(written["rhymes"], 1, 100),
      ]
    )
  for name, figures in record["corpus"]["writing"].items():
    values = [
      _number(figures[key], 1, factor)
      for key, factor in (
        ("in_training", 100),
        ("in_held_out", 100),
        ("line_length", 1),
        ("rhymes", 100),
      )
    ]
    rows.append([name, *("" for _ in range(4 + len(steps))), *values])
  return markdown(header, rows)


def _context(record: Record) -> str:
  rows = []
  for one in record["context"]:
    means = np.mean(one["nats"], axis=0)
    name = f"{one['cell']}, {one['budget']}"
    rows.append([name, *(f"{mean:.3f}" for mean in means)])
  lengths = record["context"][0]["lengths"]
  below = [0, *lengths[:-1]]
  header = [
    str(last) if last == first + 1 else f"{first + 1} – {last}"
    for first, last in zip(below, lengths, strict=True)
  ]
  return markdown(["cell", *header], rows)


def _recall(record: Record) -> str:
  rows = []
  for cell in dict.fromkeys(row["cell"] for row in record["recall"]):
    own = [row for row in record["recall"] if row["cell"] == cell]
    means = {row["delay"]: float(np.mean(row["accuracy"])) for row in own}
    sizes = own[0]["hidden_size"], own[0]["parameters"]
    rows.append(
      [
        f"{cell}, H {sizes[0]}, {sizes[1]:,} parameters",
        *(f"{mean:.2f}" for mean in means.values()),
        str(longest(means) or "none"),
      ]
    )
  delays = [str(delay) for delay in record["config"]["delay"]]
  return markdown(["cell", *delays, "longest above 0.9"], rows)


def _flow(record: Record) -> str:
  steps = record["config"]["flow_steps"]
  lags = [lag for lag in LAGS if lag <= steps]
  rows = []
  for one in record["flow"]:
    first = one["norms"]["h"][0]
    for field, norms in one["norms"].items():
      name = f"{one['cell']}, {field}, {one['stage']}"
      rows.append([name, *(f"{norms[lag] / first:.1e}" for lag in lags)])
  return markdown(["cell", *(str(lag) for lag in lags)], rows)


def _spread(values: list | None, digits: int, factor: float = 1) -> str:
  """Return mean ± deviation of the seeds that have a value."""
  known = [factor * value for value in values or [] if value is not None]
  if not known:
    return "–"
  mean = f"{np.mean(known):.{digits}f}"
  if len(known) == 1:
    return mean
  return f"{mean} ± {np.std(known, ddof=1):.{digits}f}"


def _number(value: float | None, digits: int, factor: float) -> str:
  return "–" if value is None else f"{factor * value:.{digits}f}"
