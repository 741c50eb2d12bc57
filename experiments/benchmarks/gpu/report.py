"""The last tables of --part=gpu: kernels beside scans and other libraries."""

from collections.abc import Callable, Iterator

from rich.table import Table

from experiments.benchmarks.tables import Row, format_time
from experiments.trainer.format import number_table

PARTS = {"gpu layer": "", "gpu policy": ", with resets"}
KERNELS = "kernel bfloat16", "kernel"
SCANS = "scan bfloat16", "scan"
AUTODIFF = "autodiff bfloat16", "autodiff"
CUDNN = "pytorch bfloat16", "pytorch TF32", "pytorch float32"
LAYER = "cell", "hidden_size", "batch_size"


def summary_tables(rows: list[Row]) -> Iterator[Table]:
  """Yield a table of outputs and one of gradients, without and with resets.

  Each table is of one T, and has a row for each layer: the µs per time step of
  our kernel and scan, in bfloat16 and in TF32; of the fastest of the other JAX
  libraries, in whatever dtype it runs; and of PyTorch's cuDNN, in float32 too;
  and how many times its floor the kernel takes in each dtype.

  Args:
    rows: of all parts; only those of layers and policies are shown.
  """
  # (part, backward, T) → (cell, H, B) → peer → its row
  found: dict[tuple, dict[tuple, dict[str, Row]]] = {}
  for row in rows:
    if row["part"] in PARTS:
      table = row["part"], row["backward"], row["seq_len"]
      layer = tuple(row[name] for name in LAYER)
      layers = found.setdefault(table, {})
      layers.setdefault(layer, {})[row["peer"]] = row
  for (part, backward, steps), layers in sorted(found.items()):
    mode = "gradient" if backward else "outputs alone"
    title = f"{mode}{PARTS[part]}, T {steps}: µs per time step"
    yield _table(f"{title}, bfloat16/TF32/float32", layers)


def _table(title: str, layers: dict[tuple, dict[str, Row]]) -> Table:
  names = "kernel", "scan", "a library", "cuDNN", "× floor"
  table = number_table("cell H×B", *names, title=title)
  table.padding = (0, 1, 0, 0)  # the columns fit into 80 characters
  table.columns[0].no_wrap = True
  for (cell, hidden_size, batch_size), peers in layers.items():
    others = [
      (row["us_per_step"], name.replace(".experimental.", " "))  # shorter
      for name, row in peers.items()
      if name not in (*KERNELS, *SCANS, *AUTODIFF, *CUDNN)
    ]
    table.add_row(
      f"{cell} {hidden_size}×{batch_size}",
      _joined(peers, KERNELS, _microseconds),
      _joined(peers, SCANS, _microseconds),
      f"{format_time(min(others)[0])} {min(others)[1]}" if others else "",
      _joined(peers, CUDNN, _microseconds),
      _joined(peers, KERNELS, _times_floor),
    )
  return table


def _microseconds(row: Row) -> str:
  """Return the µs per time step of a row."""
  return format_time(row["us_per_step"])


def _times_floor(row: Row) -> str:
  """Return how many times its floor a row's program takes."""
  return f"{row['us_per_step'] / row['floor_us']:.1f}"


def _joined(
  peers: dict[str, Row], names: tuple[str, ...], text: Callable[[Row], str]
) -> str:
  """Return the texts of the named peers, joined by "/".

  The text of a peer that was not timed is "–". If none was, all is empty.
  """
  if not any(name in peers for name in names):
    return ""
  return "/".join(text(peers[n]) if n in peers else "–" for n in names)
