"""Train a network once for each seed, all together, and record its returns."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from experiments.policies.config import PolicyConfig, PPOConfig
from experiments.policies.environments import Environment
from experiments.policies.networks import Network, make_network
from experiments.policies.ppo import Learner, make_learner, make_update
from experiments.trainer.distributed import members_mesh
from experiments.trainer.errors import Diverged
from lstm_jax.training import over_members, place_members
from lstm_jax.training.ensemble import DIVIDED


def start(
  network: Network,
  environment: Environment,
  config: PPOConfig,
  keys: jax.Array,
) -> Learner:
  """Return the learners of S seeds, from keys [S], with an axis S in front."""

  def start_one(key):
    init_key, key = jax.random.split(key)
    params = network.init(init_key)
    return make_learner(network, environment, config, params, key)

  return jax.jit(jax.vmap(start_one))(keys)


def train(
  name: str,
  environment: Environment,
  config: PolicyConfig,
  keys: jax.Array,
  on_update: Callable[[int, float | None], None],
) -> dict[str, Any]:
  """Train a network once for each of S seeds.

  Args:
    name: feed_forward, or a cell, as `make_network` takes it.
    environment: the task.
    config: the settings.
    keys: a PRNG key for each seed, [S].
    on_update: called after each update with its number, from 1, and the mean
      return over the seeds in which an episode ended; None if none ended.

  Returns:
    A record: `num_parameters` of one network; `compile_s`, the seconds to
    compile an update, and `seconds`, those of all updates; `returns`, for each
    update the mean return of each seed's episodes that ended in it, None where
    none did; and `episodes`, how many did.

  Raises:
    ValueError: as `make_network`, or --devices is more than there are.
    Diverged: a loss is NaN or infinite.
  """
  network = make_network(
    name,
    environment.observation_size,
    config.hidden_size,
    environment.num_actions,
  )
  learners = start(network, environment, config.ppo, keys)
  mesh = members_mesh(config.job.devices, len(keys))
  if mesh:
    learners = place_members(learners, mesh)
  update_one = make_update(network, environment, config.ppo)
  update = jax.jit(
    # The second argument, None, is what the members share: nothing.
    over_members(lambda learner, _: update_one(learner), mesh),
    # Otherwise arrays of no elements would come back on all devices.
    out_shardings=NamedSharding(mesh, DIVIDED) if mesh else None,
  )
  compile_start = time.monotonic()
  program = update.lower(learners, None).compile()
  train_start, returns, episodes = time.monotonic(), [], []
  for number in range(1, config.ppo.num_updates + 1):
    learners, metrics = program(learners, None)
    if not np.isfinite(metrics.loss).all():
      raise Diverged(f"{name}: the loss is not finite at update {number}")
    returns.append(rounded(metrics.mean_return))
    episodes.append(metrics.num_episodes.tolist())
    on_update(number, mean(returns[-1]))
  return {
    "num_parameters": sum(
      leaf.size for leaf in jax.tree.leaves(learners.params)
    )
    // len(keys),
    "compile_s": train_start - compile_start,
    "seconds": time.monotonic() - train_start,
    "returns": returns,
    "episodes": episodes,
  }


def rounded(values: Any) -> list[float | None]:
  """Return numbers rounded to four decimals, and None for NaN."""
  return [None if np.isnan(x) else round(float(x), 4) for x in values]


def mean(
  values: Sequence[float | None], weights: Sequence[int] | None = None
) -> float | None:
  """Return the weighted mean of the known numbers; None if there are none."""
  weights = [1] * len(values) if weights is None else weights
  known = [x is not None for x in values]
  if not any(known):
    return None
  numbers, shares = (np.array(v, float)[known] for v in (values, weights))
  return float(np.average(numbers, weights=shares))
