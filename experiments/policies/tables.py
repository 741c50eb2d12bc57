"""Markdown tables of a run of `experiments.policy`."""

from typing import Any

from experiments.comparison.results import check_length
from experiments.comparison.tables import markdown
from experiments.policies.training import mean
from experiments.trainer.files import check_numbers
from experiments.trainer.format import counted, format_milliseconds
from lstm_jax.cells.checks import check_count

LAST = 0.1  # the result is the mean return over this last share of the updates
PROGRAMS = {
  "unroll": "unroll, pure functions",
  "scanned": "Flax, `scanned`",
  "flax": "Flax, ScannedRNN by hand",
}


def tables(record: dict[str, Any]) -> dict[str, str]:
  """Return the tables of a record, {title: Markdown}."""
  config = record["config"]
  found = {
    f"{record['task']}: mean return over the last {_count(record)} of "
    f"{counted(config['num_updates'], 'update')}, by seed": _returns(record)
  }
  if record["race"]:
    sizes = f"{counted(config['num_seeds'], 'seed')}, B {config['num_envs']}, "
    sizes += f"T {config['rollout_steps']}, H {config['hidden_size']}"
    rounds = counted(config["timing_rounds"], "interleaved round")
    found[f"Time of an update of {sizes}: {rounds}"] = _race(record["race"])
  return found


def check_entries(record: dict[str, Any]) -> None:
  """Raise ValueError unless the entries of a record fit each other.

  Each list must have the length that the configuration gives it. `guessing`,
  which only the figure reads, must be a number. Returns and episodes must be
  numbers or None; beside a return, the episodes that ended are an integer ≥ 1.
  """
  check_numbers("guessing", [record["guessing"]])
  for run in record["networks"].values():
    check_length("returns", run["returns"], record["config"]["num_updates"])
    episodes = run.get("episodes", run["returns"])
    check_length("episodes", episodes, len(run["returns"]))
    for name, rows in (("returns", run["returns"]), ("episodes", episodes)):
      for row in rows:
        check_length(name, row, record["config"]["num_seeds"])
        check_numbers(name, [x for x in row if x is not None])
    if "episodes" not in run:  # an older record
      continue
    for row, counts in zip(run["returns"], episodes, strict=True):
      for value, count in zip(row, counts, strict=True):
        if value is not None:
          check_count("episodes beside a return", count)


def _count(record: dict[str, Any]) -> int:
  """Return over how many of the last updates the mean return is taken."""
  return max(1, round(LAST * record["config"]["num_updates"]))


def _returns(record: dict[str, Any]) -> str:
  steps = record["steps_per_update"] * record["config"]["num_updates"]
  training = f"training of all seeds, s ({steps:,} steps each)"
  header = ["network", "parameters", "return", "mean", training]
  rows, count = [], _count(record)
  for name, run in record["networks"].items():
    returns = run["returns"][-count:]
    # Older records do not say how many episodes ended in an update.
    episodes = run.get("episodes") or [[1] * len(row) for row in returns]
    means = [
      mean(own, weights)
      for own, weights in zip(
        zip(*returns, strict=True),
        zip(*episodes[-count:], strict=True),
        strict=True,
      )
    ]
    rows.append(
      [
        name,
        f"{run['num_parameters']:,}",
        ", ".join(map(_format, means)),
        _format(None if None in means else mean(means)),
        f"{run['seconds']:.0f}",
      ]
    )
  return markdown(header, rows)


def _format(value: float | None) -> str:
  """Return a mean return; "–" where no episode ended."""
  return "–" if value is None else f"{value:.2f}"


def _race(race: dict[str, Any]) -> str:
  header = ["network", "median, ms", "quartiles", "ratio", "compiling, s"]
  rows = []
  for name, programs in race.items():
    for row in programs:
      low, high = row["quartiles_ms"]
      rows.append(
        [
          f"{name}: {PROGRAMS[row['peer']]}",
          format_milliseconds(row["median_ms"]),
          f"{format_milliseconds(low)} – {format_milliseconds(high)}",
          f"{row['ratio_to_ours']:.2f}",
          f"{row['compile_s']:.1f}",
        ]
      )
  return markdown(header, rows)
