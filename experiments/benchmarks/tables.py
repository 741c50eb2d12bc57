"""Tables of the benchmark: the peers of one case, and two runs compared.

A case is one problem, such as a layer of a cell and its sizes. A peer is one
library's program for it, ours included.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from rich.table import Table

from experiments.trainer.files import check_numbers
from experiments.trainer.format import number_table

Row = dict[str, Any]  # the case, the peer, and its results
RESULTS = (  # keys that are not in a row's name; the others name case and peer
  *("median_ms", "quartiles_ms", "ratio_to_ours", "compile_s", "bytes"),
  *("tokens_per_second", "temporary_bytes", "operands", "floor_ms"),
  *("forward_launches", "forward_in_graph"),
  *("backward_launches", "backward_in_graph"),
  *("error", "allowed", "array"),
)


class Found(NamedTuple):
  """What a part found of a case."""

  rows: list[Row]
  skipped: dict[str, str]  # what was not measured, and why
  failures: Sequence[str] = ()  # a line each


def format_time(time: float) -> str:
  """Return a time with three digits, or as a whole number from 1,000 on."""
  return f"{time:,.0f}" if time >= 999.5 else f"{time:.3g}"


def _format_quartiles(times: list[float]) -> str:
  low, high = times
  return f"{format_time(low)} – {format_time(high)}"


COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {  # (heading, format)
  "operands": ("operands", "{}".format),
  "median_ms": ("ms", format_time),
  "quartiles_ms": ("quartiles", _format_quartiles),
  "ratio_to_ours": ("ratio", "{:.2f}".format),
  "products_share": ("products", "{:.0%}".format),
  "times_floor": ("× floor", "{:.1f}".format),
  "tokens_per_second": ("tokens/s", "{:,.0f}".format),
  "compile_s": ("compile s", "{:.1f}".format),
  "mebibytes": ("MiB", "{:,.1f}".format),
  "forward_loop": ("forward launches", "{}".format),
  "backward_loop": ("backward launches", "{}".format),
  "temporary_mebibytes": ("temp MiB", "{:,.1f}".format),
  "error": ("error", "{:.1e}".format),
  "allowed": ("allowed", "{:.0e}".format),
  "array": ("largest in", "{}".format),
}


def case_table(rows: list[Row]) -> Table:
  """Return the results of one case, a row per peer.

  A column that no peer has is left out. The columns:
    operands: the format of the operands of matrix products, on a GPU.
    ms, quartiles: the median and the quartiles of a call; in the part called
      original, of a training step.
    ratio: the median, divided by lstm_jax's; on a GPU, by the first peer's.
    products: the time of a program, compiled by XLA, that has only the matrix
      products of our training step, divided by the median.
    × floor: the median, divided by the least that a GPU needs (see `floor`).
    MiB: of arguments, results and temporaries; for PyTorch, in the part called
      memory, by how much the process grew.
    launches: of kernels in a time step, and whether a CUDA graph holds them.
    temp MiB: of the temporaries.
    error, allowed, largest in: of a GPU's kernel, and of which array.
  """
  medians = {row["peer"]: row.get("median_ms") for row in rows}
  products = medians.get("products alone")
  title = _case_title(rows[0])
  rows = [_with_derived(row, products) for row in rows]
  keys = [k for k in COLUMNS if any(row.get(k) is not None for row in rows)]
  headings = (COLUMNS[key][0] for key in keys)
  table = number_table("", *headings, title=title)
  table.padding = (0, 1, 0, 0)  # narrow: the columns fit into 80 characters
  for row in rows:
    cells = (
      COLUMNS[k][1](row[k]) if row.get(k) is not None else "" for k in keys
    )
    table.add_row(row["peer"], *cells)
  return table


def _case_title(row: Row) -> str:
  """Return the title of a row's case, such as "launches, lstm, …, float32"."""
  return ", ".join(
    str(v) if k in ("part", "cell", "dtype") else f"{k} {v}"
    for k, v in row.items()
    if k not in RESULTS and k != "peer"
  )


def _with_derived(row: Row, products_ms: float | None) -> Row:
  """Return a row with the columns that follow from its results."""
  derived: Row = {}
  for key in ("bytes", "temporary_bytes"):
    if row.get(key) is not None:
      derived[key.replace("bytes", "mebibytes")] = row[key] / 2**20
  if row.get("floor_ms"):
    derived["times_floor"] = row["median_ms"] / row["floor_ms"]
  for loop in ("forward", "backward"):
    if launches := row.get(f"{loop}_launches"):
      graph = ", in a graph" if row[f"{loop}_in_graph"] else ""
      derived[f"{loop}_loop"] = f"{launches:g}{graph}"
  if products_ms:
    derived["products_share"] = products_ms / row["median_ms"]
  return row | derived


def timed_parts(rows: Any) -> set[str]:
  """Return the parts, as in --part, of which rows of a file have times.

  Rows of the parts gpu and growth name a section too, as in "gpu layer".

  Raises:
    ValueError: a time is not a number.
  """
  check_numbers("median_ms", _medians(rows).values())
  timed = (row for row in rows if row.get("median_ms"))
  return {str(row["part"]).partition(" ")[0] for row in timed}


def change_table(old: list[Row], new: list[Row]) -> Table:
  """Return the median times of the cases that both runs have, and their ratio.

  Times are in milliseconds.

  Raises:
    ValueError: no case is in both runs.
  """
  before, after = _medians(old), _medians(new)
  both = [name for name in after if name in before]
  if not both:
    raise ValueError("no case is in both runs")
  table = number_table("", "old", "new", "new / old")
  for name in both:
    old_time, new_time = before[name], after[name]
    times = format_time(old_time), format_time(new_time)
    table.add_row(name, *times, f"{new_time / old_time:.2f}")
  return table


def _medians(rows: list[Row]) -> dict[str, float]:
  """Return the median time of each row that has one, by case and peer."""
  return {
    f"{_case_title(row)}: {row['peer']}": row["median_ms"]
    for row in rows
    if row.get("median_ms")
  }
