"""Time this project's layers, models and sampling against other libraries'.

  uv run --group bench python -m experiments.benchmark

Everyone begins with the same weights and must first compute the same outputs,
losses and gradients; then they are timed round after round in one process.
Printed, drawn and saved: medians and quartiles, the ratio to ours, the time to
compile, the memory that the compiled program asks for. A peer that is faster is
printed as faster; one that is not installed, or has no such layer, is left out
and named.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from absl import flags
from rich.console import Console

from experiments.benchmarks import plots
from experiments.benchmarks.peers import (
  memory,
  models,
  original,
  resets,
  samplers,
  sequences,
)
from experiments.benchmarks.tables import Row, changes, table
from experiments.benchmarks.timing import compare, environment
from experiments.cli import launch, plain_console

Cases = Iterator[tuple[list[Row], dict[str, str]]]  # and who is left out
MODEL: Row = {
  "hidden": 512,
  "steps": 64,
  "batch": 32,
  "layers": 1,
  "vocabulary": 65,
  "dtype": "float32",
}
MODELS: list[Row] = [
  *({"hidden": hidden} for hidden in (128, 256, 512, 1024)),
  *({"hidden": hidden, "dtype": "bfloat16"} for hidden in (512, 1024)),
  {"layers": 2},
  {"vocabulary": 10_000},
]
LAYER: Row = {"hidden": 256, "steps": 64, "batch": 32}
LAYERS: list[Row] = [
  *({"hidden": hidden} for hidden in (32, 128, 256, 512, 1024)),
  {"hidden": 128, "batch": 1},
  {"batch": 256},
  {"steps": 1024},
]
SHORT: list[Row] = [{"hidden": h} for h in (128, 256, 512)]  # GRU and RNN
POLICY: Row = {"hidden": 128, "steps": 128, "batch": 1024}
SAMPLING: list[Row] = [
  {"hidden": 512, "streams": 1},
  {"hidden": 512, "streams": 64},
]
GROWTH: dict[str, tuple[int, ...]] = {
  "steps": (16, 64, 256, 1024),
  "batch": (1, 8, 32, 128),
  "hidden": (64, 128, 256, 512, 1024),
  "layers": (1, 2, 4),
}
GROWERS = "lstm_jax", "flax linen", "pytorch", "products alone"


def model_part(
  cases: list[Row], rounds: int, part: str = "model", names: Any = None
) -> Cases:
  """Yield the rows of a language model's whole Adam step, case after case."""
  makers = models.models()
  if names:
    makers = {name: makers[name] for name in names}
  for case in cases:
    sizes = MODEL | case
    rows, missing = compare(makers, rounds, models.make_problem(**sizes))
    yield [{"part": part} | sizes | row for row in rows], missing


def layer_part(cases: list[Row], rounds: int, cells: tuple[str, ...]) -> Cases:
  """Yield the rows of one layer: outputs alone, and all gradients."""
  for cell in cells:
    for case in cases:
      for backward in (False, True):
        sizes = LAYER | case
        problem = sequences.make_problem(cell, backward, **sizes)
        rows, missing = compare(sequences.sequences(), rounds, problem)
        title = {"part": "layer", "cell": cell, "backward": backward}
        yield [title | sizes | row for row in rows], missing


def resets_part(cases: list[Row], rounds: int) -> Cases:
  """Yield the rows of a recurrent policy's GRU, with episodes inside."""
  for case in cases:
    for backward in (False, True):
      rows, missing = compare(
        resets.resets(), rounds, resets.make_problem(backward, **case)
      )
      title = {"part": "resets", "backward": backward}
      yield [title | case | row for row in rows], missing


def sampling_part(cases: list[Row], rounds: int, length: int = 500) -> Cases:
  """Yield the rows of writing `length` characters in each stream."""
  for case in cases:
    problem = samplers.make_problem(length=length, **case)
    rows, missing = compare(samplers.samplers(), rounds, problem)
    characters = 1e3 * length * case["streams"]
    for row in rows:
      row["per_second"] = characters / row["median_ms"]
    yield [{"part": "sampling"} | case | row for row in rows], missing


def memory_part(
  cases: list[Row],
) -> Cases:
  """Yield the rows of what all gradients of one LSTM layer need."""
  for case in cases:
    rows, missing = memory.compare(LAYER | case)
    yield [{"part": "memory"} | LAYER | case | row for row in rows], missing


def growth_part(growth: dict[str, tuple[int, ...]], rounds: int) -> Cases:
  """Yield the rows of the model's step as one size grows."""
  for axis, values in growth.items():
    cases = [{"hidden": 256, axis: value} for value in values]
    yield from model_part(cases, rounds, f"growth in {axis}", GROWERS)


def original_part(rounds: int, updates: int = 64) -> Cases:
  """Yield the rows of the original recipe's update: batch 1, hidden 32."""
  one, several = (original.compiled_program(n) for n in (1, updates))
  makers = {
    "lstm_jax": (one, "jax"),
    f"lstm_jax, {updates} a call": (several, "jax"),
    "numpy": (original.numpy_program, "numpy"),
  }
  rows, missing = compare(makers, 10 * rounds)
  for row in rows:
    count = updates if "a call" in row["peer"] else 1
    row["median_ms"] /= count
    row["quartiles_ms"] = [ms / count for ms in row["quartiles_ms"]]
    row["ratio_to_ours"] = row["median_ms"] / rows[0]["median_ms"]
    row["per_second"] = 1e3 * original.STEPS / row["median_ms"]
  yield [{"part": "original"} | row for row in rows], missing


def parts(wanted: list[str], sizes: Row, rounds: int) -> Cases:
  """Yield the cases of every wanted part; given sizes replace its own."""
  model = {k: v for k, v in sizes.items() if k in MODEL}
  layer = {k: v for k, v in sizes.items() if k in LAYER}
  every: dict[str, Callable[[], Cases]] = {
    "model": lambda: model_part([model] if model else MODELS, rounds),
    "layer": lambda: _layers(layer, rounds),
    "resets": lambda: resets_part([POLICY | layer], rounds),
    "sampling": lambda: sampling_part(SAMPLING, rounds),
    "memory": lambda: memory_part([layer or {"hidden": 512, "steps": 1024}]),
    "original": lambda: original_part(rounds),
    "growth": lambda: growth_part(GROWTH, rounds),
  }
  for name in wanted:
    yield from every[name]()


def _layers(layer: Row, rounds: int) -> Cases:
  if layer:
    yield from layer_part([layer], rounds, ("lstm", "gru", "rnn"))
    return
  yield from layer_part(LAYERS, rounds, ("lstm",))
  yield from layer_part(SHORT, rounds, ("gru", "rnn"))


PARTS = (
  "model",
  "layer",
  "resets",
  "sampling",
  "memory",
  "original",
  "growth",
)


def run(
  wanted: list[str], sizes: Row, rounds: int, console: Console
) -> dict[str, Any]:
  """Measure the wanted parts, print each case, and return the record."""
  record: dict[str, Any] = {"environment": environment(), "rows": []}
  console.print(record["environment"])
  told = set()
  for rows, missing in parts(wanted, sizes, rounds):
    console.print(table(rows))
    for name, reason in missing.items():
      if (name, reason) not in told:
        console.print(f"left out: {name}: {reason}")
        told.add((name, reason))
    record["rows"] += rows
  return record


def main() -> None:
  """Read the flags, measure, print and save."""
  console = plain_console()
  old = json.loads(Path(COMPARE.value).read_text()) if COMPARE.value else None
  sizes = {flag.name: flag.value for flag in SIZES if flag.value is not None}
  record = run(PART.value, sizes, ROUNDS.value, console)
  if old:
    console.print(f"against {COMPARE.value}, of {old['environment']}")
    console.print(changes(old["rows"], record["rows"]))
  if OUT.value:
    path = Path(OUT.value)
    path.write_text(json.dumps(record, indent=1) + "\n")
    picture = path.with_suffix(".png")
    drawn = plots.draw(record["rows"], picture)
    console.print(f"saved in {path}" + (f" and {picture}" if drawn else ""))


if __name__ == "__main__":
  PART = flags.DEFINE_multi_enum(
    "part", list(PARTS), PARTS, "What to measure; repeat for several."
  )
  SIZES = [
    flags.DEFINE_integer("hidden", None, "H, hidden units.", lower_bound=1),
    flags.DEFINE_integer("steps", None, "T, time steps.", lower_bound=1),
    flags.DEFINE_integer("batch", None, "B, sequences.", lower_bound=1),
    flags.DEFINE_integer("layers", None, "Layers of a model.", lower_bound=1),
    flags.DEFINE_integer("vocabulary", None, "V, tokens.", lower_bound=2),
    flags.DEFINE_enum(
      "dtype", None, ["float32", "bfloat16"], "Of a model's products."
    ),
  ]
  ROUNDS = flags.DEFINE_integer(
    "rounds", 11, "How often each is timed.", lower_bound=1
  )
  OUT = flags.DEFINE_string(
    "out", "", "JSON file to write, and a picture beside it; empty for none."
  )
  COMPARE = flags.DEFINE_string(
    "compare", "", "JSON file of an earlier run to compare with."
  )
  launch(main)
