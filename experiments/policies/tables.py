"""Markdown tables of a run of `policy`."""

from typing import Any

import numpy as np

from experiments.comparison.tables import markdown
from experiments.policies.plots import curve

LAST = 0.1  # share of the updates whose mean return is the result
PROGRAMS = {
  "unroll": "unroll, pure functions",
  "scanned": "Flax, `scanned`",
  "flax": "Flax, ScannedRNN by hand",
}


def tables(record: dict[str, Any]) -> dict[str, str]:
  """Return {title: table}."""
  config = record["config"]
  found = {
    f"{record['task']}: mean return over the last {LAST:.0%} of "
    f"{config['num_updates']} updates, by seed": _returns(record)
  }
  if record["race"]:
    sizes = f"{config['num_seeds']} seeds, B {config['num_envs']}, "
    sizes += f"T {config['rollout_steps']}, H {config['hidden_size']}"
    rounds = config["timing_rounds"]
    found[f"Time of an update of {sizes}: {rounds} interleaved rounds"] = _race(
      record["race"]
    )
  return found


def _returns(record: dict[str, Any]) -> str:
  steps = record["steps_per_update"] * record["config"]["num_updates"]
  seeds = record["config"]["num_seeds"]
  header = ["network", "parameters", "return", "mean", "training, s"]
  rows = []
  for name, run in record["networks"].items():
    count = max(1, round(LAST * len(run["returns"])))
    last = curve(run["returns"][-count:], 1)[1]
    means = last.mean(0) if len(last) else np.full(seeds, np.nan)
    rows.append(
      [
        name,
        f"{run['num_parameters']:,}",
        ", ".join(f"{x:.2f}" for x in means),
        f"{means.mean():.2f}",
        f"{run['seconds']:.0f}",
      ]
    )
  header[-1] += f", {steps:,} steps a seed"
  return markdown(header, rows)


def _race(race: dict[str, Any]) -> str:
  header = ["network", "median, ms", "quartiles", "ratio", "compiling, s"]
  rows = []
  for name, programs in race.items():
    for row in programs:
      low, high = row["quartiles_ms"]
      rows.append(
        [
          f"{name}: {PROGRAMS[row['peer']]}",
          f"{row['median_ms']:.0f}",
          f"{low:.0f} – {high:.0f}",
          f"{row['ratio_to_ours']:.2f}",
          f"{row['compile_s']:.1f}",
        ]
      )
  return markdown(header, rows)
