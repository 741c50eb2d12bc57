"""The members of a sweep: their state, their looks, and both in checkpoints."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from experiments.trainer import run_dir
from experiments.trainer.checkpoint import (
  carried_streams,
  newest,
  read_progress,
)
from experiments.trainer.config import TrainConfig, optimizer_config
from experiments.trainer.setup import TrainSetup, keys_of
from lstm_jax.training import (
  CheckpointWriter,
  TrainState,
  TrainStep,
  init_ensemble,
  learnt,
  make_ensemble_train_step,
  make_optimizer,
  member,
  read_state,
  zero_carry,
)


@dataclasses.dataclass(frozen=True)
class SweepConfig(TrainConfig):
  """What all members have in common, and what sets them apart."""

  num_seeds: int = 1  # from `seed` on, at each rate
  rate: list[float] = dataclasses.field(default_factory=list)  # else the one


class Member(NamedTuple):
  """A run of the sweep."""

  seed: int
  learning_rate: float
  looks: list[tuple[int, float]]  # updates, and the watched loss; NaN diverged

  @property
  def best(self) -> tuple[int, float]:
    """The look of the lowest loss; of a run that diverged, before it did."""
    return min(self.looks, key=lambda look: np.nan_to_num(look[1], nan=np.inf))

  def told(self) -> dict[str, Any]:
    """Return it as JSON has it, which knows no NaN."""
    looks = [(n, x if np.isfinite(x) else None) for n, x in self.looks]
    return self._asdict() | {"looks": looks}


class Progress(NamedTuple):
  """Where a sweep stands after an update, beside its state."""

  batch_size: int  # of the carried state
  looks: list[list[tuple[int, float | None]]]  # of each member; None diverged
  best: tuple[float, int] | None  # the lowest loss of all, after which update
  seconds: float  # of the updates


def members_of(config: SweepConfig) -> list[Member]:
  """Return the members of a sweep, without looks: each rate's seeds."""
  rates = [*dict.fromkeys(config.rate)] or [config.learning_rate]
  seeds = range(config.seed, config.seed + config.num_seeds)
  pairs = itertools.product(rates, seeds)
  return [Member(seed, rate, []) for rate, seed in pairs]


def ensemble(
  config: TrainConfig, parts: TrainSetup, members: list[Member]
) -> tuple[TrainState, TrainStep]:
  """Return the members' state and update; config has a learning rate of 1."""
  keys = [keys_of(one.seed) for one in members]
  init, noise = (jnp.stack([key[i] for key in keys]) for i in (0, 2))
  model = parts.model
  rule = make_optimizer(optimizer_config(config), parts.num_steps)
  factors = jnp.array([one.learning_rate for one in members], jnp.float32)
  averaged = config.ema_decay > 0
  params = jax.block_until_ready(jax.vmap(model.init)(init))
  return (
    init_ensemble(model, rule, params, config.batch_size, averaged=averaged),
    make_ensemble_train_step(
      model, rule, noise, decay=config.ema_decay, factors=factors
    ),
  )


def leader(members: list[Member]) -> Member | None:
  """Return the member of the lowest loss, if any has a finite one."""
  looked = [one for one in members if one.looks and np.isfinite(one.best[1])]
  return min(looked, key=lambda one: one.best[1], default=None)


def save(
  writer: CheckpointWriter,
  description: dict[str, Any],
  members: list[Member],
  state: TrainState,
  seconds: float,
) -> None:
  """Save the state of all members, and the weights of the best one.

  Args:
    writer: of the sweep's checkpoints.
    description: of the model.
    members: with their looks up to now.
    state: of all.
    seconds: of the updates up to now.
  """
  first = leader(members)
  best = (first.best[1], first.best[0]) if first else None
  progress = Progress(
    carried_streams(state),
    [one.told()["looks"] for one in members],
    best,
    seconds,
  )
  step = int(state.step)
  description = description | {
    "held_out": best[0] if best and best[1] == step else None,
    "progress": progress._asdict(),
  }
  params = learnt(member(state, members.index(first) if first else 0))
  kept = best[1] if best else None
  writer.save(step, params, description, state=state, best=kept)


def restore(
  directory: Path, members: list[Member], state: TrainState, console: Console
) -> tuple[TrainState, float] | None:
  """Return the state and the seconds of an unfinished sweep; fill the looks.

  Args:
    directory: of the sweep.
    members: of the sweep, without looks.
    state: like the one to be read.
    console: where damaged checkpoints are named.

  Returns:
    None before the first checkpoint.

  Raises:
    CheckpointError: there are checkpoints, and all are damaged.
  """
  checkpoints = directory / run_dir.CHECKPOINTS

  def read(step: int) -> tuple[TrainState, Progress]:
    progress = read_progress(checkpoints, step, Progress)
    carry = zero_carry(state.carry, progress.batch_size)
    like = state._replace(carry=carry)
    return read_state(checkpoints, step, like), progress

  found = newest(checkpoints, read, console)
  if found is None:
    return None
  after, progress = found
  for one, looks in zip(members, progress.looks, strict=True):
    one.looks.extend((n, np.nan if x is None else x) for n, x in looks)
  return after, progress.seconds
