r"""Which of a recipe's parts matter? Train it once more for each change.

  python -m experiments.ablate --flagfile=experiments/recipes/ablations.flags \
    --change=weight_drop=0 --change=num_layers=2,layer_dropout=0.3

trains the recipe, and then, with the same seed and budget but for what a change
says, each change; every run has a folder under --run. The table compares their
held-out losses, over every prediction: cold windows of 256, and one stateful
pass. What the seed alone does, --change=seed=1 tells. The figures are kept in
ablations.json, and a change that is in it is not trained again; one that was
interrupted goes on. One that diverges is marked so. --overwrite trains all of
them anew.
"""

import dataclasses
import json
import shlex
import signal
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import flags
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.rule import Rule
from rich.table import Table

from experiments import train
from experiments.cli import SIGNALLED, Diverged, launch, plain_console
from experiments.trainer import run_dir
from experiments.trainer.claim import OWN
from experiments.trainer.config import TrainConfig
from experiments.trainer.data import sha256_of
from experiments.trainer.flags import define_flags
from experiments.trainer.setup import make
from lstm_jax.language import read_text, split
from lstm_jax.language.evaluate import cold_nats, stateful_nats

RECORD = "ablations.json"
BASE = "base"
FIXED = (
  "corpus",
  "val_fraction",
  "tokenizer",
  "min_count",
)  # or losses do not compare


class Result(NamedTuple):
  """What the runs came to."""

  rows: list[dict[str, Any]]  # of the table: the recipe's, and each change's
  stopped_by: signal.Signals | None = None  # before the last


def run(config: TrainConfig, changes: list[str], console: Console) -> Result:
  """Train the recipe and each change, and print the table.

  Raises:
    ValueError: a change is none, no folder is given, or it holds the figures
      of another recipe or corpus; or as `train.run`, of any of the runs and
      before the first.
    Diverged: the recipe itself does.
  """
  if not config.run:
    raise ValueError("--run must be the folder of the runs, got none")
  configs = {BASE: config} | {c: changed(config, c) for c in changes}
  sha256 = _check(configs)
  path, stopped_by = Path(config.run) / RECORD, None
  rows = [] if config.overwrite else _known(path, config, sha256, console)
  for name, one in configs.items():
    if any(row["change"] == name for row in rows):
      continue
    console.print(Rule(f"{name} ({len(rows) + 1} of {len(configs)})"))
    directory = Path(config.run) / name.replace("/", "-")
    finished = (directory / run_dir.RESULT).exists()
    anew = finished or config.overwrite
    again = dataclasses.replace(one, run=str(directory), overwrite=anew)
    try:
      result = train.run(again, console)
    except Diverged as error:
      if name == BASE:
        raise
      console.print(f"{error}", soft_wrap=True)
      rows.append({"change": name, "diverged": True})
    else:
      stopped_by = result.stopped_by
      if stopped_by:
        break
      rows.append({"change": name} | _measure(result, again))
    record = {"recipe": _recipe(config), "corpus_sha256": sha256, "rows": rows}
    run_dir.write_json(path, record | run_dir.origin())
  if rows:
    console.print(table(rows))
    console.print(f"kept in {shlex.quote(str(path))}", soft_wrap=True)
  return Result(rows, stopped_by)


def changed(config: TrainConfig, change: str) -> TrainConfig:
  """Return the configuration with NAME=VALUE[,NAME=VALUE ...] in it.

  Raises:
    ValueError: a name is not of a flag, or a value not of its kind.
  """
  fields = {f.name for f in dataclasses.fields(TrainConfig)} - set(OWN)
  found = {}
  for part in change.split(","):
    name, _, text = part.partition("=")
    if name not in fields:
      raise ValueError(
        f"--change must be NAME=VALUE[,NAME=VALUE ...] of training flags, "
        f"got {name!r} in {change!r}"
      )
    kind = type(getattr(config, name))
    try:
      value = {"true": True, "false": False}[text] if kind is bool else text
      found[name] = kind(value)
    except (KeyError, ValueError):
      raise ValueError(
        f"--change of {name} must be of kind {kind.__name__}, got {text!r}"
      ) from None
  return dataclasses.replace(config, **found)


def table(rows: list[dict[str, Any]]) -> Table:
  """Return the rows as a table, beside the base's."""
  result = Table(box=SIMPLE_HEAD, pad_edge=False)
  result.add_column("", overflow="fold")
  for name in ("parameters", "cold", "stateful", "− base", "seconds"):
    result.add_column(name, justify="right", no_wrap=True)
  base = rows[0]["stateful"]
  for row in rows:
    if row.get("diverged"):
      result.add_row(row["change"], "", "", "diverged", "", "")
      continue
    difference = row["stateful"] - base
    result.add_row(
      row["change"],
      f"{row['parameters']:,}",
      _told(row["cold"]),
      _told(row["stateful"]),
      "" if row["change"] == BASE else _told(difference, "+"),
      f"{row['seconds']:.0f}",
    )
  return result


def _check(configs: dict[str, TrainConfig]) -> str:
  """Raise ValueError for what cannot be trained; return the corpus's hash."""
  base = configs[BASE]
  for change, one in configs.items():
    for name in FIXED:
      if getattr(one, name) != getattr(base, name):
        raise ValueError(
          f"--change must leave {', '.join(FIXED)} as they are, or the losses "
          f"do not compare, got {change!r}"
        )
    jax.eval_shape(lambda one=one: make(one).state)
  return sha256_of(read_text(base.corpus))


def _told(nats: float, sign: str = "") -> str:
  return f"{nats:{sign}{'.4f' if nats < 1e4 else '.3g'}}"


def _measure(result: train.Result, config: TrainConfig) -> dict[str, Any]:
  """Return what a finished run came to, in nats per token."""
  trained = run_dir.load(result.directory)
  _, held_out = split(read_text(config.corpus), config.val_fraction)
  of = trained.model, trained.params, trained.vocabulary.encode(held_out)
  return {
    "parameters": sum(p.size for p in jax.tree.leaves(trained.params)),
    "cold": float(cold_nats(*of).mean()),
    "stateful": float(stateful_nats(*of).mean()),
    "watched": trained.held_out,
    "update": trained.step,
    "seconds": round(result.seconds, 3),
  }


def _recipe(config: TrainConfig) -> dict[str, Any]:
  fields = dataclasses.asdict(config)
  return {name: value for name, value in fields.items() if name not in OWN}


def _known(
  path: Path, config: TrainConfig, sha256: str, console: Console
) -> list[dict[str, Any]]:
  """Return the rows that are in the record, if it is of this recipe."""
  if not path.exists():
    return []
  try:
    record = json.loads(path.read_text(encoding="utf-8"))
    recipe, rows = dict(record["recipe"]), record["rows"]
    rows = [row for row in rows if row["change"]]
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise ValueError(f"{path} cannot be read: {error!r}") from None
  for name, value in _recipe(config).items():
    if recipe.get(name) != value:
      raise ValueError(
        f"{path} is of another recipe: {name} was {recipe.get(name)!r} and is "
        f"{value!r}; choose another --run"
      )
  if record.get("corpus_sha256", sha256) != sha256:
    raise ValueError(
      f"{path} is of another corpus: {config.corpus} has changed; choose "
      "another --run, or --overwrite"
    )
  console.print(f"{path} has {len(rows)} of the runs", soft_wrap=True)
  return rows


def main() -> int:
  """Read the flags and run."""
  config = TrainConfig(**{flag.name: flag.value for flag in FLAGS})
  result = run(config, CHANGES.value, plain_console())
  return SIGNALLED + result.stopped_by if result.stopped_by else 0


if __name__ == "__main__":
  FLAGS = define_flags()
  CHANGES = flags.DEFINE_multi_string(
    "change", [], "NAME=VALUE[,NAME=VALUE ...] of these flags; repeat it."
  )
  launch(main)
