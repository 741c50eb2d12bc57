"""A comparison of networks: its configuration, record, tables and figure."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from experiments.comparison.results import markdown
from experiments.policies.environments import TASKS, Environment
from experiments.policies.networks import FEED_FORWARD, make_network
from experiments.policies.ppo import PPOConfig, make_learner, make_update
from experiments.trainer.config import LARGEST, JobConfig
from experiments.trainer.distributed import members_mesh
from experiments.trainer.figures import End, label_ends, save, tidy
from experiments.trainer.format import counted, format_milliseconds
from experiments.trainer.loop import Diverged
from experiments.trainer.records import from_name, only
from lstm_jax.language.options import check_options, option
from lstm_jax.training import over_members, place_members
from lstm_jax.training.ensemble import DIVIDED

LAST = 0.1  # the result is the mean return over this last share of the updates
PROGRAMS = {  # that are timed, ours first
  "unroll": "unroll, pure functions",
  "scanned": "Flax, `scanned`",
  "flax": "Flax, ScannedRNN by hand",
}
LOWEST = -1.05  # lower limit of the returns' axis, unless a curve ends below


@dataclass(frozen=True)
class PolicyConfig:
  """The settings of `experiments.policy`."""

  task: str = option(
    "tmaze",
    "What to remember: in which direction the goal of a T-maze is, or the "
    "symbol shown some steps before.",
    choices=tuple(TASKS),
  )
  size: int = option(
    10,
    "Time steps over which to remember: the length of the T-maze's corridor, "
    "or the delay of repeat_previous.",
    bounds="[1, inf)",
  )
  network: tuple[str, ...] = option(
    ("gru", "lstm", "min_gru", FEED_FORWARD),
    "Network to train: feed_forward, or a cell of lstm_jax, or package.module "
    "for a cell of your own. Repeat the flag for several.",
  )
  hidden_size: int = option(
    32, "H, units of the encoder and of the cell.", bounds="[1, inf)"
  )
  num_seeds: int = option(
    3,
    "Seeds of each network, which are trained together.",
    bounds="[1, inf)",
  )
  seed: int = option(
    0,
    "Seed of the key that all random numbers are derived from.",
    bounds=f"[0, {LARGEST}]",
  )
  timing_rounds: int = option(
    0,
    "Rounds in which an update of gru and of lstm, if --network has them, is "
    "timed, in turns with two of the same network in Flax; 0 for no timing.",
    bounds="[0, inf)",
  )
  # Of the flags of JobConfig, this program has only --devices: the devices
  # share the seeds.
  job: JobConfig = only(JobConfig(), "devices")
  ppo: PPOConfig = field(default=PPOConfig())

  def __post_init__(self):
    check_options(self)
    for name in self.network:
      if name != FEED_FORWARD:
        from_name("cell", name)  # before the first network is trained


def train(
  name: str,
  environment: Environment,
  config: PolicyConfig,
  keys: jax.Array,
  on_update: Callable[[int, np.ndarray], None],
) -> dict[str, Any]:
  """Train a network once for each of S seeds.

  Args:
    name: feed_forward, or a cell, as `make_network` takes it.
    environment: the task.
    config: the settings.
    keys: a PRNG key for each seed, [S].
    on_update: called after each update with its number, from 1, and the mean
      return of each seed's episodes that ended in it, [S]; NaN if none did.

  Returns:
    A record: `num_parameters` of one network; `compile_s`, the seconds to
    compile an update, and `seconds`, those of all updates; `returns`, for each
    update what `on_update` got, with None for NaN; and `episodes`, how many
    ended.

  Raises:
    ValueError: as `make_network`, or --devices is more than there are.
    Diverged: a loss is NaN or infinite.
  """
  sizes = environment.observation_size, config.hidden_size
  network = make_network(name, *sizes, environment.num_actions)
  parts = network, environment, config.ppo
  learners = jax.jit(jax.vmap(partial(make_learner, *parts)))(keys)
  mesh = members_mesh(config.job.devices, len(keys))
  if mesh:
    learners = place_members(learners, mesh)
  update_one = make_update(*parts)
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
    found = np.asarray(metrics.mean_return)
    returns.append([None if np.isnan(x) else round(float(x), 4) for x in found])
    episodes.append(metrics.num_episodes.tolist())
    on_update(number, found)
  leaves = jax.tree.leaves(learners.params)
  return {
    "num_parameters": sum(leaf.size for leaf in leaves) // len(keys),
    "compile_s": train_start - compile_start,
    "seconds": time.monotonic() - train_start,
    "returns": returns,
    "episodes": episodes,
  }


def tables(record: dict[str, Any]) -> dict[str, str]:
  """Return the tables of a record, {title: Markdown}."""
  config = record["config"]
  count = max(1, round(LAST * config["num_updates"]))
  found = {
    f"{record['task']}: mean return over the last {count} of "
    f"{counted(config['num_updates'], 'update')}, by seed": (
      _returns(record, count)
    )
  }
  if record["race"]:
    sizes = f"{counted(config['num_seeds'], 'seed')}, B {config['num_envs']}, "
    sizes += f"T {config['rollout_steps']}, H {config['hidden_size']}"
    rounds = counted(config["timing_rounds"], "interleaved round")
    found[f"Time of an update of {sizes}: {rounds}"] = _race(record["race"])
  return found


def _returns(record: dict[str, Any], count: int) -> str:
  steps = record["steps_per_update"] * record["config"]["num_updates"]
  training = f"training of all seeds, s ({steps:,} steps each)"
  header = ["network", "parameters", "return", "mean", training]
  rows = []
  for name, run in record["networks"].items():
    returns = np.array(run["returns"], float)[-count:]  # NaN for None
    # Older records do not say how many episodes ended in an update.
    ended = np.array(run.get("episodes", np.ones(returns.shape)))[-count:]
    weights = np.where(np.isnan(returns), 0, ended)
    with np.errstate(invalid="ignore"):  # NaN for a seed without an episode
      means = np.nansum(returns * weights, 0) / weights.sum(0)
    rows.append(
      [
        name,
        f"{run['num_parameters']:,}",
        ", ".join(map(_format, means)),
        _format(means.mean()),
        f"{run['seconds']:.0f}",
      ]
    )
  return markdown(header, rows)


def _format(value: float) -> str:
  """Return a mean return; "–" where no episode ended."""
  return "–" if np.isnan(value) else f"{value:.2f}"


def _race(race: dict[str, Any]) -> str:
  header = ["network", "median, ms", "quartiles", "ratio", "compiling, s"]
  rows = []
  for name, programs in race.items():
    for row in programs:
      low, high = map(format_milliseconds, row["quartiles_ms"])
      rows.append(
        [
          f"{name}: {PROGRAMS[row['peer']]}",
          format_milliseconds(row["median_ms"]),
          f"{low} – {high}",
          f"{row['ratio_to_ours']:.2f}",
          f"{row['compile_s']:.1f}",
        ]
      )
  return markdown(header, rows)


def draw(record: dict[str, Any], path: Path) -> None:
  """Plot the returns to an image file: the seeds' mean, minimum and maximum.

  An update in which a seed ended no episode is left out.
  """
  from matplotlib.figure import Figure

  figure = Figure(figsize=(7, 3.8), layout="constrained")
  panel, ends, lowest = figure.subplots(), list[End](), LOWEST
  for index, (name, run) in enumerate(record["networks"].items()):
    color = f"C{index}"
    returns = np.array(run["returns"], float)  # [updates, S]; NaN for None
    known = ~np.isnan(returns).any(1)
    if not known.any():
      continue
    steps = record["steps_per_update"] * (np.flatnonzero(known) + 1)
    returns = returns[known]
    low, middle, high = returns.min(1), returns.mean(1), returns.max(1)
    # A line of one point would be invisible.
    marker = "." if len(steps) == 1 else None
    panel.plot(steps, middle, marker=marker, color=color)
    panel.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)
    ends.append(End(middle[-1], name.replace("_", "-"), color))
    lowest = min(lowest, low[-1])
  guessing = record["guessing"]
  panel.axhline(guessing, color="black", linestyle="--", linewidth=0.8)
  ends.append(End(guessing, "best without memory", "black"))
  panel.xaxis.set_major_formatter("{x:,.0f}")
  panel.locator_params(axis="x", nbins=5)
  panel.set_ylim(lowest, 1.05)
  seeds = counted(record["config"]["num_seeds"], "seed")
  shade = f"line: mean of {seeds}; shade: minimum to maximum"
  xlabel = f"environment steps of a seed ({shade})"
  tidy(panel, record["task"], xlabel, "mean return of an episode")
  figure.draw_without_rendering()  # the layout decides where the ends are
  label_ends(panel, ends)
  save(figure, path, dpi=100)
