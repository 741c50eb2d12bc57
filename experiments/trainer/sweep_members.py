"""The members of a sweep: their train state, losses and checkpoints."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from experiments.trainer import run_dir
from experiments.trainer.checkpoint import (
  carried_batch_size,
  read_best,
  read_newest,
  read_progress,
  read_resized_state,
)
from experiments.trainer.config import LARGEST, TrainConfig
from experiments.trainer.setup import TrainSetup, make_keys
from lstm_jax.language.options import option
from lstm_jax.training import (
  CheckpointWriter,
  TrainState,
  TrainStep,
  eval_params,
  init_ensemble,
  make_ensemble_train_step,
  member,
)


@dataclasses.dataclass(frozen=True)
class SweepConfig(TrainConfig):
  """What the members share, and the seeds and learning rates they differ in."""

  num_seeds: int = option(
    1, "Seeds at each learning rate, from --seed on.", bounds="[1, inf)"
  )
  rate: tuple[float, ...] = option(
    (),
    "A learning rate; may be repeated. If not given, --learning_rate alone.",
    bounds="(0, inf)",
  )


class Member(NamedTuple):
  """A member of the sweep: one seed at one learning rate, and its losses."""

  seed: int
  learning_rate: float
  val_losses: list[tuple[int, float]]  # (step, nats); not finite if it diverged

  @property
  def best(self) -> tuple[int, float]:
    """The (step, validation loss) of the lowest loss; there must be a loss."""
    return min(
      self.val_losses, key=lambda pair: np.nan_to_num(pair[1], nan=np.inf)
    )

  def to_json(self) -> dict[str, Any]:
    """Return it as JSON, with None for losses that are not finite."""
    losses = [(s, x if np.isfinite(x) else None) for s, x in self.val_losses]
    return self._asdict() | {"val_losses": losses}


class Progress(NamedTuple):
  """Where a sweep stands after a training step, beside its train state."""

  batch_size: int  # of the recurrent state that one step leaves to the next
  val_losses: list[list[tuple[int, float | None]]]  # of each member
  best: tuple[float, int] | None  # (loss, step) of the lowest loss of all
  seconds: float  # of the training steps


def num_members(config: SweepConfig) -> int:
  """Return how many members `make_members` returns."""
  return max(1, len(set(config.rate))) * config.num_seeds


def make_members(config: SweepConfig) -> list[Member]:
  """Return the members of a sweep: every seed at every learning rate.

  Raises:
    ValueError: the last seed is larger than a seed may be.
  """
  last = config.seed + config.num_seeds - 1
  if last > LARGEST:
    raise ValueError(f"the last seed must be at most {LARGEST}, got {last}")
  rates = [*dict.fromkeys(config.rate)] or [config.optimizer.learning_rate]
  seeds = range(config.seed, config.seed + config.num_seeds)
  pairs = itertools.product(rates, seeds)
  return [Member(seed, rate, []) for rate, seed in pairs]


def make_state(setup: TrainSetup, members: list[Member]) -> TrainState:
  """Return the state of all members before the first training step."""
  keys = jnp.stack([make_keys(one.seed).init for one in members])
  return init_ensemble(
    setup.model,
    setup.optimizer,
    jax.vmap(setup.model.init)(keys),
    setup.config.batching.batch_size,
    averaged=setup.config.averaging.enabled,
  )


def make_train_step(
  setup: TrainSetup, members: list[Member], mesh: Mesh | None = None
) -> TrainStep:
  """Return the training step of all members; a mesh's devices share them.

  The setup must have a learning rate of 1: each member multiplies its updates
  by its own rate.
  """
  noise = jnp.stack([make_keys(one.seed).noise for one in members])
  rates = jnp.array([one.learning_rate for one in members], jnp.float32)
  step_all = make_ensemble_train_step(
    setup.model,
    setup.optimizer,
    ema_decay=setup.config.averaging.ema_decay,
    mesh=mesh,
  )

  def train_step(state, tokens, targets, key=None):
    del key  # every member has its own
    return step_all(state, tokens, targets, noise, rates)

  return train_step


def best_member(members: list[Member]) -> Member | None:
  """Return the member of the lowest loss, if any loss is finite."""
  evaluated = [
    one for one in members if one.val_losses and np.isfinite(one.best[1])
  ]
  return min(evaluated, key=lambda one: one.best[1], default=None)


def save(
  writer: CheckpointWriter,
  description: dict[str, Any],
  members: list[Member],
  state: TrainState,
  seconds: float,
) -> None:
  """Save the state of all members, and the present weights of the best one.

  The best member is that of the lowest loss so far, at this step or before it,
  or the first member if no loss is finite.
  """
  leader, step = best_member(members), int(state.step)
  # (loss, step), as in `Progress`; `Member.best` is (step, loss).
  best = (leader.best[1], leader.best[0]) if leader else None
  progress = Progress(
    carried_batch_size(state),
    [one.to_json()["val_losses"] for one in members],
    best,
    seconds,
  )
  description = description | {
    "val_loss": best[0] if best and best[1] == step else None,
    "progress": progress._asdict(),
  }
  index = members.index(leader) if leader else 0
  params = eval_params(member(state, index))
  best_step = best[1] if best else None
  writer.save(step, params, description, state=state, best=best_step)


def restore(
  directory: Path, members: list[Member], state: TrainState, console: Console
) -> tuple[TrainState, float] | None:
  """Return the state and the seconds of an unfinished sweep.

  Args:
    directory: of the sweep.
    members: of the sweep; their losses are filled in.
    state: a state with the expected shapes and dtypes.
    console: prints which checkpoints are damaged.

  Returns:
    None before the first checkpoint.

  Raises:
    CheckpointError: there are checkpoints, and none can be used.
  """
  checkpoints = directory / run_dir.CHECKPOINTS
  params = jax.eval_shape(lambda state: eval_params(member(state, 0)), state)

  def read(step: int) -> tuple[TrainState, Progress]:
    progress = read_progress(checkpoints, step, Progress)
    batch_size = progress.batch_size
    # The carried state may have another batch size than that of `state`.
    restored = read_resized_state(checkpoints, step, state, batch_size)
    consequence = "and only those of a lower loss replace them"
    # This call only prints a message, which ends with `consequence`, if the
    # best weights are damaged: the training does not need them.
    read_best(checkpoints, progress.best, params, consequence, console)
    return restored, progress

  found = read_newest(checkpoints, read, console)
  if found is None:
    return None
  restored, progress = found
  for one, losses in zip(members, progress.val_losses, strict=True):
    one.val_losses.extend((s, np.nan if x is None else x) for s, x in losses)
  return restored, progress.seconds
