"""Time a language model's training step against other libraries'.

  uv run --group bench python -m experiments.benchmark

A whole Adam update of an LSTM language model over characters: this project,
the same forward under autodiff, Flax, Haiku, Equinox and PyTorch. All begin
with the same weights and must report the same first losses; then they are timed
round after round, so that a busy moment hits all of them. Printed and
saved: median and quartiles, the ratio to ours, the first call (which compiles)
apart. A peer that is faster is printed as faster; one that is not installed is
left out and named.
"""

import json
import platform
import time
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from rich.box import SIMPLE_HEAD
from rich.table import Table

from experiments.peers import PEERS, Problem, Step, installed
from experiments.program import launch, plain_console
from lstm_jax.language import ModelConfig, language_model

CHECKED = 5  # updates whose losses must agree
TOLERANCE = 1e-5  # of those losses, relative; float32 and other orders of sums


def make_problem(
  hidden: int, steps: int, batch: int, layers: int, vocabulary: int
) -> Problem:
  """Return a language-model step of those sizes on random tokens."""
  config = ModelConfig(
    vocabulary_size=vocabulary, hidden_size=hidden, num_layers=layers
  )
  params = language_model(config).init(jax.random.key(0))
  draw = np.random.default_rng(0)
  text = draw.integers(0, vocabulary, (steps + 1, batch)).astype(np.int32)
  return Problem(config, params, text[:-1], text[1:])


def prepare(problem: Problem) -> tuple[dict[str, Step], dict[str, float]]:
  """Return every peer's step, warm and proven equal, and its first seconds.

  Raises:
    ValueError: a peer's losses are not ours.
  """
  steps, first, losses = {}, {}, {}
  for name, make in installed().items():
    steps[name] = make(problem)
    start = time.perf_counter()
    losses[name] = [float(steps[name]())]
    first[name] = time.perf_counter() - start
    losses[name] += [float(steps[name]()) for _ in range(CHECKED - 1)]
    if not np.allclose(losses[name], losses["lstm_jax"], rtol=TOLERANCE):
      raise ValueError(
        f"{name} computes something else: its losses are {losses[name]}, "
        f"ours {losses['lstm_jax']}"
      )
  return steps, first


def measure(steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
  """Return the seconds of each step, one a round, all peers in every round.

  Each round has an order of its own: caches and spinning threads that one peer
  leaves behind must not always meet the same next one.
  """
  seconds: dict[str, list[float]] = {name: [] for name in steps}
  draw = np.random.default_rng(0)
  for _ in range(rounds):
    for name in draw.permutation(list(steps)):
      start = time.perf_counter()
      steps[name]()
      seconds[name].append(time.perf_counter() - start)
  return seconds


def run(sizes: dict[str, int], rounds: int) -> list[dict[str, Any]]:
  """Return a row for each peer at one size, ours first."""
  steps, first = prepare(make_problem(**sizes))
  seconds = measure(steps, rounds)
  ours = float(np.median(seconds["lstm_jax"]))
  rows = []
  for name, values in seconds.items():
    low, median, high = np.percentile(values, [25, 50, 75])
    rows.append(
      sizes
      | {
        "peer": name,
        "median_ms": 1e3 * median,
        "quartiles_ms": [1e3 * low, 1e3 * high],
        "ratio_to_ours": median / ours,
        "first_call_s": first[name],
      }
    )
  return rows


def environment() -> dict[str, Any]:
  """Return what a timing depends on: processor, device and versions."""
  packages = "jax", "flax", "dm-haiku", "equinox", "torch", "optax"
  versions: dict[str, str | None] = {}
  for name in packages:
    try:
      versions[name] = version(name)
    except PackageNotFoundError:
      versions[name] = None
  return {
    "date": datetime.now().date().isoformat(),
    "python": platform.python_version(),
    "processor": _processor(),
    "device": jax.devices()[0].device_kind,
    "dtype": "float32",
    "versions": versions,
  }


def _processor() -> str:
  path = Path("/proc/cpuinfo")
  lines = path.read_text().splitlines() if path.exists() else []
  names = [line.split(":")[1].strip() for line in lines if "model name" in line]
  return f"{len(names)} × {names[0]}" if names else platform.processor()


def table(title: str, rows: list[dict[str, Any]]) -> Table:
  """Return the rows of one size as a table."""
  result = Table(
    title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False
  )
  result.add_column("Adam step", no_wrap=True)
  for name in ("median ms", "quartiles", "× ours", "first call s"):
    result.add_column(name, justify="right", no_wrap=True)
  for row in rows:
    low, high = row["quartiles_ms"]
    result.add_row(
      row["peer"],
      f"{row['median_ms']:.2f}",
      f"{low:.2f} – {high:.2f}",
      f"{row['ratio_to_ours']:.2f}",
      f"{row['first_call_s']:.1f}",
    )
  return result


def main() -> None:
  """Read the flags, measure, print and save."""
  console = plain_console()
  record: dict[str, Any] = {"environment": environment(), "rows": []}
  console.print(record["environment"])
  missing = sorted(set(PEERS) - set(installed()))
  if missing:
    console.print(f"not installed, left out: {', '.join(missing)}")
  for hidden in map(int, HIDDEN.value):
    sizes = {
      "hidden": hidden,
      "steps": STEPS.value,
      "batch": BATCH.value,
      "layers": LAYERS.value,
      "vocabulary": VOCABULARY.value,
    }
    rows = run(sizes, ROUNDS.value)
    title = ", ".join(f"{name} {value}" for name, value in sizes.items())
    console.print(table(title, rows))
    record["rows"] += rows
  if OUT.value:
    Path(OUT.value).write_text(json.dumps(record, indent=1) + "\n")
    console.print(f"saved in {OUT.value}")


if __name__ == "__main__":
  HIDDEN = flags.DEFINE_multi_integer(
    "hidden", [128, 256, 512, 1024], "Hidden sizes; repeat for several."
  )
  STEPS = flags.DEFINE_integer("steps", 64, "T, time steps.", lower_bound=1)
  BATCH = flags.DEFINE_integer("batch", 32, "B, sequences.", lower_bound=1)
  LAYERS = flags.DEFINE_integer("layers", 1, "LSTM layers.", lower_bound=1)
  VOCABULARY = flags.DEFINE_integer(
    "vocabulary", 65, "V, distinct tokens.", lower_bound=2
  )
  ROUNDS = flags.DEFINE_integer(
    "rounds", 15, "Timed updates of each peer.", lower_bound=1
  )
  OUT = flags.DEFINE_string("out", "", "JSON file to write; empty for none.")
  launch(main)
