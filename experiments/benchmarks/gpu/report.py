"""The tables at the end: the kernels beside what else there is."""

from collections.abc import Iterator

from rich.table import Table

from experiments.benchmarks.tables import Row
from experiments.trainer.format import number_table

KERNELS = "kernel bfloat16", "kernel"
SCANS = "scan bfloat16", "scan"
AUTODIFF = "autodiff bfloat16", "autodiff"
CUDNN = "pytorch bfloat16", "pytorch TF32", "pytorch float32"
SIZES = "cell", "hidden_size", "batch_size"


def summary_tables(rows: list[Row]) -> Iterator[Table]:
  """Yield the µs per time step of all layers: outputs, gradient, with resets.

  All rows have the same T. A row for each layer: ours, in bfloat16 and in TF32;
  the fastest of the other JAX libraries; PyTorch's cuDNN, in float32 too; how
  many times its floor the kernel takes.
  """
  for part, resets in (("gpu layer", ""), ("gpu policy", ", with resets")):
    for backward, mode in ((False, "outputs alone"), (True, "gradient")):
      layers: dict[tuple, dict[str, Row]] = {}
      for row in rows:
        if row["part"] == part and row["backward"] == backward:
          key = tuple(row[name] for name in SIZES)
          layers.setdefault(key, {})[row["peer"]] = row
      if layers:
        title = f"{mode}{resets}: µs per time step, bfloat16/TF32/float32"
        yield _table(title, layers)


def _table(title: str, layers: dict[tuple, dict[str, Row]]) -> Table:
  names = "kernel", "scan", "a library", "cuDNN", "× floor"
  table = number_table("H×B", *names, title=title)
  table.padding = (0, 1, 0, 0)  # the columns fit into 80 characters
  table.columns[0].no_wrap = True
  for (cell, hidden_size, batch_size), peers in layers.items():
    others = [
      (row["us_per_step"], name.replace(".experimental.", " "))
      for name, row in peers.items()
      if name not in (*KERNELS, *SCANS, *AUTODIFF, *CUDNN)
    ]
    kernel = next((peers[name] for name in KERNELS if name in peers), None)
    table.add_row(
      f"{cell} {hidden_size}×{batch_size}",
      _microseconds(peers, KERNELS),
      _microseconds(peers, SCANS),
      "{:.3g} {}".format(*min(others)) if others else "",
      _microseconds(peers, CUDNN),
      f"{kernel['us_per_step'] / kernel['floor_us']:.1f}" if kernel else "",
    )
  return table


def _microseconds(peers: dict[str, Row], names: tuple[str, ...]) -> str:
  """Return the times of some peers, with – for one that has none."""
  if not any(name in peers for name in names):
    return ""
  return "/".join(
    f"{peers[name]['us_per_step']:.3g}" if name in peers else "–"
    for name in names
  )
