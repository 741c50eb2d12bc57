"""The record of a training of several seeds, whose updates are imitated."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.policies import training
from experiments.policies.config import PolicyConfig, PPOConfig
from experiments.policies.environments import tmaze
from experiments.policies.ppo import Learner, Metrics
from experiments.trainer.errors import Diverged

KEYS = jax.random.split(jax.random.key(0), 2)
CONFIG = PolicyConfig(num_seeds=2, ppo=PPOConfig(num_updates=3))


@pytest.fixture
def train(monkeypatch):
  """Return a function that trains with the given losses, [seeds, updates]."""

  def run(losses, on_update=lambda number, value: None):
    clock = iter((100, 103, 110))  # before compiling, before training, after
    fake_time = SimpleNamespace(monotonic=lambda: next(clock))
    monkeypatch.setattr(training, "time", fake_time)
    learners = Learner(KEYS, jnp.zeros((2, 4)), jnp.array(losses), None)
    monkeypatch.setattr(training, "start", lambda *given: learners)
    return training.train("gru", tmaze(2), CONFIG, KEYS, on_update)

  # The optimizer's state holds the losses to come, and an update reports the
  # first. If that is negative, no episode has ended; otherwise 7 have, with a
  # mean return of a third of the loss.
  def update(learner):
    now, *later = learner.optimizer_state
    later = jnp.stack([*later, now])
    value = jnp.where(now < 0, jnp.nan, now / 3)
    count = jnp.where(now < 0, 0, 7)
    return learner._replace(optimizer_state=later), Metrics(value, count, now)

  monkeypatch.setattr(training, "make_update", lambda *given: update)
  return run


def test_a_record_has_the_updates_of_each_seed(train):
  shown = []
  losses = [[-1.0, 1.0, 2.0], [-1.0, -1.0, 4.0]]
  record = train(losses, lambda *given: shown.append(given))
  assert record == {
    "num_parameters": 4,
    "compile_s": 3,
    "seconds": 7,
    "returns": [[None, None], [0.3333, None], [0.6667, 1.3333]],
    "episodes": [[0, 0], [7, 0], [7, 7]],
  }
  assert [number for number, _ in shown] == [1, 2, 3]
  assert shown[0][1] is None and np.allclose(
    [value for _, value in shown[1:]], [0.3333, 1.0]
  )


def test_one_seed_that_diverges_ends_the_training(train):
  losses = [[1.0, 1.0, 1.0], [1.0, np.inf, 1.0]]
  message = "gru: the loss is not finite at update 2"
  with pytest.raises(Diverged, match=message):
    train(losses)
