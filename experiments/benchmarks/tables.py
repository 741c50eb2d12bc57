"""The benchmark's tables: one case's peers side by side, and two runs'."""

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

Row = dict[str, Any]  # sizes, the peer, and what was measured
MEASURED = (
  "median_ms",
  "quartiles_ms",
  "ratio_to_ours",
  "compile_s",
  "bytes",
  "per_second",
)


def table(rows: list[Row]) -> Table:
  """Return the rows of one case as a table.

  `share` is the part of a step that its products alone would take; `compile` is
  in seconds.
  """
  case = {k: v for k, v in rows[0].items() if k not in (*MEASURED, "peer")}
  title = ", ".join(
    str(v) if k in ("part", "cell", "dtype") else f"{k} {v}"
    for k, v in case.items()
  )
  result = Table(
    title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False
  )
  result.add_column("", no_wrap=True)
  units = {
    "median_ms": ("ms", "{:.3g}"),
    "quartiles_ms": ("quartiles", "{0[0]:.3g} – {0[1]:.3g}"),
    "ratio_to_ours": ("× ours", "{:.2f}"),
    "of_products": ("share", "{:.2f}"),
    "per_second": ("characters/s", "{:,.0f}"),
    "compile_s": ("compile", "{:.1f}"),
    "bytes": ("MiB", "{:,.1f}"),
  }
  products = {r["peer"]: r.get("median_ms") for r in rows}.get("products alone")
  rows = [
    row
    | {"bytes": row["bytes"] / 2**20 if row.get("bytes") else None}
    | ({"of_products": products / row["median_ms"]} if products else {})
    for row in rows
  ]
  shown = [k for k in units if any(row.get(k) is not None for row in rows)]
  for key in shown:
    result.add_column(units[key][0], justify="right", no_wrap=True)
  for row in rows:
    cells = (
      units[k][1].format(row[k]) if row.get(k) is not None else ""
      for k in shown
    )
    result.add_row(row["peer"], *cells)
  return result


def changes(old: list[Row], new: list[Row]) -> Table:
  """Return a table of the rows that both hold: their medians, and the ratio."""

  def key(row):
    return tuple(
      sorted((k, str(v)) for k, v in row.items() if k not in MEASURED)
    )

  before = {key(row): row for row in old if row.get("median_ms")}
  result = Table(box=SIMPLE_HEAD, pad_edge=False)
  result.add_column("")
  for name in ("before ms", "now ms", "now / before"):
    result.add_column(name, justify="right", no_wrap=True)
  for row in new:
    if row.get("median_ms") and key(row) in before:
      was, now = before[key(row)]["median_ms"], row["median_ms"]
      name = " ".join(
        str(v) for k, v in row.items() if k not in (*MEASURED, "backward")
      )
      name += " backward" if row.get("backward") else ""
      result.add_row(name, f"{was:.3g}", f"{now:.3g}", f"{now / was:.2f}")
  return result
