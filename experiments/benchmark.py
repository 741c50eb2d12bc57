"""Time layers, language models and sampling against other libraries.

  uv run --group bench python -m experiments.benchmark

A part is a set of cases of one kind (`benchmarks/parts.py` lists them).
Before a case is timed, every library must compute the same outputs, losses and
gradients from the same weights (for `original`, an LSTM in JAX and NumPy, a
test checks this); then all are timed in turns, in one process. PyTorch uses a
GPU if JAX has one, except in the part `memory`. In the part `model`, a training
step is timed on one device and, for the JAX libraries, also with the batch
split over CPU devices, as many as the greatest common divisor of the number of
cores and the batch size. The tables have medians and quartiles, the time
relative to ours, the seconds to compile, and the memory that the compiled
program needs on each device. A library that cannot be imported, or does not
have the layer, is skipped and named; one that computes something else stops the
benchmark. A size, such as --hidden_size, applies to each part that has this
size: one case replaces the cases of the part, with the sizes given and the
part's defaults for the others.

On an H100 or H200, in less than 8 minutes,

  python -m experiments.benchmark --part=gpu

first checks that the GPU kernels compute what the scan does, and then times
them. Its --hidden_size, --seq_len and --batch_size are those of one layer of
each cell, which replaces the grids of layers; checks, policies and models keep
their own sizes. A case that fails does not end the run: failures are printed
and stored under "failures" in the JSON file, and the exit status is then 1.
This part needs JAX's CUDA packages and the dependencies of this project; other
libraries are timed if they are installed.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags
from rich.console import Console

from experiments.benchmarks.parts import MODEL, PARTS, check
from experiments.benchmarks.tables import (
  Row,
  case_table,
  change_table,
  timed_parts,
)
from experiments.benchmarks.timing import environment
from experiments.cli import launch, make_console
from experiments.comparison.results import naming_damaged, read_record
from experiments.trainer.distributed import num_cores, start_cpu_devices
from experiments.trainer.files import ensure_directory, write_json
from experiments.trainer.format import counted, print_table
from experiments.trainer.run_dir import check_outside_runs

GPU_OUT = Path(__file__).parent / "results/benchmark/gpu.json"
CHECK_FAILED = 1  # exit status


def run(
  parts: list[str],
  sizes: Row,
  rounds: int,
  console: Console,
  save: Callable[[dict[str, Any]], None] = lambda record: None,
) -> dict[str, Any]:
  """Measure the parts, print each case, and return all results.

  Args:
    parts: names in PARTS.
    sizes: {name: size}. One case with these sizes replaces the cases of each
      part that has one of them. Empty for the parts' own cases.
    rounds: how often each program is timed; the short steps of the part
      `original` are timed 10 times as often.
    console: where to print.
    save: called with the results so far after every case.

  Raises:
    ValueError: a size is one that none of these parts has; the part `launches`
      cannot count for this sequence length, or JAX's CUDA packages are missing;
      there is no H100 or H200 for the part `gpu`; or a library does not compute
      what ours does.
  """
  check(parts, sizes)
  record: dict[str, Any] = {
    "environment": environment(),
    "rows": [],
    "failures": [],
  }
  console.print(record["environment"])
  printed = set()
  for part in parts:
    for rows, skipped, failures in PARTS[part].measure(sizes, rounds):
      if rows:
        print_table(case_table(rows), console)
      for failure in failures:
        console.print(f"FAILED {failure}", soft_wrap=True, markup=False)
      for name, reason in skipped.items():
        if (name, reason) not in printed:
          text = f"skipped: {name}: {reason}"
          console.print(text, soft_wrap=True, markup=False)
          printed.add((name, reason))
      record["rows"] += rows
      record["failures"] += failures
      save(record)
  if record["failures"]:
    console.print(f"{counted(len(record['failures']), 'case')} failed")
  return record


def figure_of(path: Path) -> Path:
  """Return the path of the figure that is drawn from a file of results.

  Only an ending .json is replaced: `with_suffix` would give the files jax-0.10
  and jax-0.11 the same figure, jax-0.png.
  """
  return path.with_name(f"{path.name.removesuffix('.json')}.png")


def draw(record: dict[str, Any], path: Path, console: Console) -> None:
  """Draw the figure of the results, if any, beside their file."""
  from experiments.benchmarks import plots

  figure = figure_of(path)
  drawn = plots.draw(record["rows"], figure)
  files = f"{path} and {figure}" if drawn else f"{path}"
  console.print(f"saved in {files}", soft_wrap=True)


def main() -> int:
  """Read the flags, run the benchmark, and print and save its results."""
  console = make_console()
  chosen = [*dict.fromkeys(PART.value)]
  old = _read_old(Path(COMPARE.value), chosen) if COMPARE.value else None
  sizes = {flag.name: flag.value for flag in SIZES if flag.value is not None}
  out = Path(OUT.value) if OUT.value else None
  if "gpu" in chosen:
    out = out or GPU_OUT
  if out and out.is_dir():
    raise ValueError(f"--out must be a file, got the directory {out}")
  if out and out.suffix == ".png":
    raise ValueError(f"--out must not end in .png, as the figure does: {out}")
  if out and figure_of(out).exists() and not out.exists():
    raise ValueError(
      f"{figure_of(out)} exists, and {out} does not: choose another --out"
    )
  if out:
    check_outside_runs("--out", out)
    ensure_directory(out.parent)

  def save(record: dict[str, Any]) -> None:
    if out:
      write_json(out, record)
      figure_of(out).unlink(missing_ok=True)  # it shows the earlier results

  if "model" in chosen:
    batch_size: Any = (MODEL | sizes)["batch_size"]  # of each case
    start_cpu_devices(math.gcd(num_cores(), batch_size))
  record = run(chosen, sizes, ROUNDS.value, console, save)
  if out:
    draw(record, out, console)
  if old:
    compared = f"compared with {COMPARE.value}: {old['environment']}"
    console.print(compared, soft_wrap=True)
    before, now = (
      each["environment"].get("num_devices", "an unknown number")
      for each in (old, record)
    )
    if before != now:
      console.print(f"devices of JAX: {before} there and {now} here")
    print_table(change_table(old["rows"], record["rows"]), console)
  return CHECK_FAILED if record["failures"] else 0


def _read_old(path: Path, chosen: list[str]) -> dict[str, Any]:
  """Return the record of an earlier run, which has times of a chosen part."""
  path.stat()  # raises an error that names a missing file
  if path.is_dir():
    raise ValueError(f"--compare must be a file, got the directory {path}")
  old = read_record(path, "there is no record", ("environment", "rows"))
  with naming_damaged(path):
    timed = timed_parts(old["rows"])
    old["environment"].get("num_devices")  # raises unless it is a dict
  if not timed:
    raise ValueError(f"{path} has no row with a time")
  if not any(PARTS[name].timed for name in chosen):
    raise ValueError(
      f"--compare needs a part with times, got {', '.join(chosen)}"
    )
  if timed.isdisjoint(chosen):
    raise ValueError(
      f"{path} has times of --part={' and '.join(sorted(timed))}, not of "
      f"{', '.join(chosen)}"
    )
  return old


if __name__ == "__main__":
  PART = flags.DEFINE_multi_enum(
    "part",
    [name for name, part in PARTS.items() if part.default],
    [*PARTS],
    "What to measure; repeat for several. launches needs JAX's CUDA packages, "
    "gpu an H100 or H200.",
  )
  SIZES = [
    flags.DEFINE_integer("hidden_size", None, "H, hidden units.", 1),
    flags.DEFINE_integer("seq_len", None, "T, time steps.", 1),
    flags.DEFINE_integer("batch_size", None, "B, sequences in a batch.", 1),
    flags.DEFINE_integer("num_layers", None, "Layers of a model.", 1),
    flags.DEFINE_integer("vocabulary_size", None, "V, tokens.", 2),
    flags.DEFINE_enum(
      "dtype",
      None,
      ["float32", "bfloat16"],
      "Dtype of a model's matrix products.",
    ),
  ]
  ROUNDS = flags.DEFINE_integer(
    "rounds", 11, "How often each program is timed.", 1
  )
  OUT = flags.DEFINE_string(
    "out",
    "",
    "JSON file to write or to replace, outside of run directories, with a "
    "figure beside it; empty for none, and for --part=gpu for "
    "experiments/results/benchmark/gpu.json.",
  )
  COMPARE = flags.DEFINE_string(
    "compare", "", "JSON file of an earlier run to compare with."
  )
  launch(main)
