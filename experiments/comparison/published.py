"""The losses of a reproduction beside the published ones."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from experiments.comparison.board import Result, Row, format_minutes
from experiments.trainer.format import number_table

UNIT = "nats_per_character"  # entry of evaluation.json, {protocol: loss}


def compare(
  published: Result, done: Mapping[int, Mapping[str, Any]]
) -> dict[str, Any]:
  """Return the losses by one protocol beside the published ones.

  The published mean is that of the same seeds, if each of them was published,
  and otherwise that of all published seeds.

  Args:
    published: the result of the board.
    done: {seed: its losses under UNIT}, of one seed at least.
  """
  values = [entry[UNIT][published.protocol] for entry in done.values()]
  recorded = {"mean": published.mean, "std": published.std}
  if published.values:
    known = dict(zip(published.seeds, published.values, strict=True))
    if done.keys() < known.keys():
      recorded = _summary([known[seed] for seed in done])
  ours = _summary(values)
  return {
    "protocol": published.protocol,
    "published": recorded,
    **ours,
    "seeds": [*done],
    "values": values,
    "difference": ours["mean"] - recorded["mean"],
  }


def compare_together(
  published: Result, losses: Mapping[str, float]
) -> dict[str, Any]:
  """Return the loss of an ensemble of all seeds beside the published one.

  Args:
    published: the result of the board, of an ensemble.
    losses: {protocol of experiments.evaluate: loss}.
  """
  loss = losses[published.evaluated_by]
  return {
    "protocol": published.protocol,
    "published": {"mean": published.mean, "std": None},
    "mean": loss,
    "std": None,
    "seeds": [*published.seeds],
    "values": [loss],
    "difference": loss - published.mean,
  }


def make_table(rows: Sequence[dict[str, Any]]) -> Table:
  """Return a table of the results of `compare` and `compare_together`.

  The losses are in nats per character.
  """
  table = number_table("protocol", "published", "here", "− published")
  for row in rows:
    table.add_row(
      row["protocol"],
      _format(**row["published"]),
      _format(row["mean"], row["std"]),
      f"{row['difference']:+.4f}",
    )
  return table


def cost(row: Row, minutes: Sequence[float]) -> str:
  """Return a line with each seed's minutes of training, and the published ones.

  Published minutes that the seeds share, as for teachers, are named separately.
  """
  text = f"minutes of training: {', '.join(f'{m:.1f}' for m in minutes)}"
  if row.training:
    shared = row.training.shared
    own = format_minutes([m - shared for m in row.training.minutes])
    common = f" and, for all seeds together, {shared:g}" if shared else ""
    text += f"; published {own}{common}, {row.training.machine}"
  return text


def _summary(values: Sequence[float]) -> dict[str, Any]:
  std = statistics.stdev(values) if len(values) > 1 else None
  return {"mean": statistics.mean(values), "std": std}


def _format(mean: float, std: float | None) -> str:
  return f"{mean:.4f}" + (f" ± {std:.4f}" if std is not None else "")
