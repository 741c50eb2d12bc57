"""The configuration of `experiments.policy`: task, networks, PPO."""

from collections.abc import Callable
from dataclasses import dataclass

from experiments.policies.environments import (
  Environment,
  repeat_previous,
  tmaze,
)
from experiments.policies.networks import FEED_FORWARD, find_cell
from experiments.trainer.config import LARGEST, JobConfig
from experiments.trainer.records import only
from lstm_jax.language.options import check_options, option

# By name: the function that makes a task, and its title. Both take the size of
# the task, a number of time steps.
TASKS: dict[str, tuple[Callable[[int], Environment], str]] = {
  "tmaze": (tmaze, "T-maze, a corridor of length {}"),
  "repeat_previous": (
    repeat_previous,
    "Repeat the symbol shown before, delay {}",
  ),
}

RACING = "gru", "lstm"  # networks to time against the same ones in Flax


@dataclass(frozen=True)
class PPOConfig:
  """The settings of PPO."""

  num_envs: int = option(
    128, "B, environments in which a seed acts at once.", bounds="[1, inf)"
  )
  rollout_steps: int = option(
    128,
    "T, time steps of a rollout in each environment, and how far back the "
    "gradient goes.",
    bounds="[1, inf)",
  )
  num_updates: int = option(
    100,
    "Updates, each a rollout and epochs of training on it.",
    bounds="[1, inf)",
  )
  num_epochs: int = option(4, "Passes over each rollout.", bounds="[1, inf)")
  num_minibatches: int = option(
    4,
    "Training steps of an epoch, each on all time steps of a share of the "
    "environments.",
    bounds="[1, inf)",
  )
  burn_in: int = option(
    0,
    "K, time steps before each rollout that are replayed without a gradient, "
    "to recompute the state with the current weights.",
    bounds="[0, inf)",
  )
  learning_rate: float = option(
    1e-2, "Adam's initial rate; it falls to 0 linearly.", bounds="(0, inf)"
  )
  max_grad_norm: float = option(
    0.5, "Norm to which a longer gradient is scaled.", bounds="(0, inf)"
  )
  discount: float = option(
    0.995, "γ, the weight of a reward one step later.", bounds="[0, 1]"
  )
  gae_lambda: float = option(
    0.95, "λ of generalized advantage estimation.", bounds="[0, 1]"
  )
  clip: float = option(
    0.2,
    "ε: the gradient is 0 where the ratio of probabilities has moved beyond "
    "1 ± ε in the direction that the advantage rewards.",
    bounds="(0, 1)",
  )
  value_coef: float = option(
    0.5, "Weight of the value loss.", bounds="[0, inf)"
  )
  entropy_coef: float = option(
    0.01, "Weight of the entropy bonus.", bounds="[0, inf)"
  )

  def __post_init__(self):
    check_options(self)
    if self.num_envs % self.num_minibatches:
      raise ValueError(
        f"num_envs must be a multiple of num_minibatches, got {self.num_envs} "
        f"and {self.num_minibatches}"
      )
    steps = self.num_updates * self.num_epochs * self.num_minibatches
    if steps > LARGEST:  # optax counts them in int32
      raise ValueError(
        "num_updates × num_epochs × num_minibatches must be at most "
        f"{LARGEST:,}, got {steps:,}"
      )
    if self.burn_in > self.rollout_steps:
      raise ValueError(
        f"burn_in must be at most rollout_steps, {self.rollout_steps}, got "
        f"{self.burn_in}"
      )


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
    # The longest episode, 4 (size + 2) steps in a T-maze, is counted in int32.
    bounds=f"[1, {LARGEST // 4 - 2}]",
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
  ppo: PPOConfig = PPOConfig()

  def __post_init__(self):
    check_options(self)
    if len({*self.network}) < len(self.network):
      raise ValueError(
        f"--network must be distinct, got {', '.join(self.network)}"
      )
    for name in self.network:
      if name != FEED_FORWARD:
        find_cell(name)
    if self.timing_rounds and not {*RACING} & {*self.network}:
      raise ValueError(
        f"--timing_rounds needs --network={' or '.join(RACING)}, got "
        + ", ".join(self.network)
      )


def make_environment(config: PolicyConfig) -> tuple[Environment, str]:
  """Return the task of a configuration, and its title."""
  make, title = TASKS[config.task]
  return make(config.size), title.format(config.size)
