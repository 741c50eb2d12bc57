"""Train one recipe with several seeds and learning rates, all at once.

  python -m experiments.sweep --num_seeds=8 --rate=3e-3 --rate=1e-2

trains eight seeds at each rate in one program: one compilation, and products
over all members. It takes every flag of `experiments.train`; the seeds count up
from --seed. Each member is the run that `experiments.train` makes with its seed
and rate, up to rounding. The tables have each member's best held-out loss, and
the mean and the deviation over the seeds of each rate; result.json in the run's
folder has every look.
"""

import dataclasses
import itertools
import signal
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from experiments import run_folder
from experiments.claim import claimed
from experiments.config import TrainConfig, optimizer_config
from experiments.parts import Parts, heading, keys_of, make
from experiments.program import SIGNALLED, launch, plain_console, stoppable
from experiments.progress import TrainingBar
from experiments.train_flags import define_flags
from lstm_jax.language import stateful_loss
from lstm_jax.training import (
  TrainState,
  Update,
  init_ensemble,
  learnt,
  make_ensemble_update,
  make_optimizer,
  member,
  train,
)


class Member(NamedTuple):
  """A run of the sweep."""

  seed: int
  learning_rate: float
  looks: list[tuple[int, float]]  # updates, and the watched loss; NaN diverged

  @property
  def best(self) -> tuple[int, float]:
    """The look of the lowest loss; of a run that diverged, before it did."""
    return min(self.looks, key=lambda look: np.nan_to_num(look[1], nan=np.inf))


class Result(NamedTuple):
  """What a sweep ends with."""

  members: list[Member]
  seconds: float  # of the updates
  stopped_by: signal.Signals | None  # before its end


def run(
  config: TrainConfig, num_seeds: int, rates: list[float], console: Console
) -> Result:
  """Train every member, print the tables, and keep them in the folder.

  Args:
    config: of every member but for its seed and rate.
    num_seeds: from config.seed on.
    rates: learning rates; none for that of the configuration.
    console: where it is told.

  Raises:
    ValueError: as `train.run`; or the configuration has what a sweep has not.
  """
  _refuse(config, rates)
  seeds = range(config.seed, config.seed + num_seeds)
  pairs = itertools.product(rates or [config.learning_rate], seeds)
  members = [Member(seed, rate, []) for rate, seed in pairs]
  at_one = dataclasses.replace(config, learning_rate=1.0)
  parts = make(at_one)
  state, update = _ensemble(at_one, parts, members)
  config = dataclasses.replace(config, resume=False)
  with claimed(config, parts.corpus.sha256) as (folder, _):
    console.print(
      f"{heading(config, parts)}\n"
      f"members     {len(members)}: {num_seeds} seeds at each of "
      f"{len(members) // num_seeds} learning rates\nrun folder  {folder}",
      soft_wrap=True,
    )
    bar = TrainingBar(console, parts.num_updates, parts.corpus.vocabulary.unit)
    with bar, stoppable() as requests:
      seconds = _learn(config, parts, members, state, update, bar, requests)
    result = Result(members, seconds, requests[0] if requests else None)
    _keep(result, folder)
  console.print(table(members))
  console.print(summary(members))
  console.print(f"{seconds:.0f} s of training, kept in {folder}")
  return result


def _refuse(config: TrainConfig, rates: list[float]) -> None:
  """Raise ValueError for rates that are none, and for what a sweep has not."""
  for rate in rates:
    optimizer_config(dataclasses.replace(config, learning_rate=rate))
  for name in ("average_after", "nonfinite", "mesh"):
    value = getattr(config, name)
    if value != getattr(TrainConfig(), name):
      raise ValueError(
        f"a sweep has no {name}: it must be left as it is, got {value!r}"
      )


def _ensemble(
  config: TrainConfig, parts: Parts, members: list[Member]
) -> tuple[TrainState, Update]:
  """Return the members' state and update; config has a learning rate of 1."""
  keys = [keys_of(one.seed) for one in members]
  init, noise = (jnp.stack([key[i] for key in keys]) for i in (0, 2))
  model = parts.model
  rule = make_optimizer(optimizer_config(config), parts.num_updates)
  factors = jnp.array([one.learning_rate for one in members], jnp.float32)
  averaged = config.average > 0
  params = jax.block_until_ready(jax.vmap(model.init)(init))
  return (
    init_ensemble(model, rule, params, config.num_streams, averaged=averaged),
    make_ensemble_update(
      model, rule, noise, decay=config.average, factors=factors
    ),
  )


def _learn(
  config: TrainConfig,
  parts: Parts,
  members: list[Member],
  state: TrainState,
  update: Update,
  bar: TrainingBar,
  requests: list[Any],
) -> float:
  """Make the updates and the looks; return the seconds of the updates."""
  text = parts.corpus.watched.tokens
  epochs = parts.reading.epochs(parts.corpus.training.tokens)
  began, seconds = time.monotonic(), 0.0
  for step, (after, metrics) in enumerate(train(update, state, epochs), 1):
    last = step == parts.num_updates or requests
    if step % config.eval_every and not last:
      continue
    loss = float(np.nanmean(jax.device_get(metrics.loss)))
    predictions = np.sum(jax.device_get(metrics.predictions))
    seconds += time.monotonic() - began
    made = step * len(members) * predictions / np.size(metrics.predictions)
    bar.update(step, loss, made / seconds)
    for i, one in enumerate(members):
      params = learnt(member(after, i))
      one.looks.append((step, stateful_loss(parts.model, params, text)))
    began = time.monotonic()
    if requests:
      break
  return seconds


def _keep(result: Result, folder: Path) -> None:
  def told(one: Member) -> dict[str, Any]:
    looks = [(n, x if np.isfinite(x) else None) for n, x in one.looks]
    return one._asdict() | {"looks": looks}

  record = result._asdict()
  record["members"] = [told(one) for one in result.members]
  if result.stopped_by:
    record["stopped_by"] = result.stopped_by.name
  run_folder.write_json(folder / run_folder.RESULT, record)


def table(members: list[Member]) -> Table:
  """Return a row for each member."""
  result = Table(box=SIMPLE_HEAD, pad_edge=False)
  for name in ("learning rate", "seed", "best", "at update", "last"):
    result.add_column(name, justify="right", no_wrap=True)
  for one in members:
    update, nats = one.best
    result.add_row(
      f"{one.learning_rate:g}",
      f"{one.seed}",
      f"{nats:.4f}",
      f"{update}",
      f"{one.looks[-1][1]:.4f}",
    )
  return result


def summary(members: list[Member]) -> Table:
  """Return a row for each rate: mean and deviation of the seeds' best."""
  result = Table(box=SIMPLE_HEAD, pad_edge=False)
  for name in ("learning rate", "seeds", "mean of the best", "deviation"):
    result.add_column(name, justify="right", no_wrap=True)
  for rate in dict.fromkeys(one.learning_rate for one in members):
    best = [one.best[1] for one in members if one.learning_rate == rate]
    spread = f"{np.std(best, ddof=1):.4f}" if len(best) > 1 else ""
    mean = f"{np.mean(best):.4f}"
    result.add_row(f"{rate:g}", f"{len(best)}", mean, spread)
  return result


def main() -> int:
  """Read the flags and run."""
  config = TrainConfig(**{flag.name: flag.value for flag in FLAGS})
  result = run(config, NUM_SEEDS.value, RATE.value, plain_console())
  return SIGNALLED + result.stopped_by if result.stopped_by else 0


if __name__ == "__main__":
  FLAGS = define_flags()
  NUM_SEEDS = flags.DEFINE_integer(
    "num_seeds", 1, "Seeds at each rate, from --seed on.", 1
  )
  RATE = flags.DEFINE_multi_float(
    "rate", [], "A learning rate; repeat it. --learning_rate if none."
  )
  launch(main)
