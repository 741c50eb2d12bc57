"""Properties of the tasks, and their returns with perfect memory or none."""

from functools import partial

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.policies.config import PolicyConfig
from experiments.policies.environments import (
  ANSWERS,
  BUMP,
  FORWARD,
  LEFT,
  RIGHT,
  SYMBOLS,
  auto_reset,
  repeat_previous,
  tmaze,
)

LENGTH, DELAY = 3, 2
LIMIT = 20  # 4 (LENGTH + 2), the most steps of an episode in the maze
MAZE, REPEAT = tmaze(LENGTH), repeat_previous(DELAY)
ENVIRONMENTS = pytest.mark.parametrize(
  "environment", [MAZE, REPEAT], ids=["tmaze", "repeat_previous"]
)


@partial(jax.jit, static_argnums=0)
def play(environment, key, actions):
  """Return (observations, rewards, dones) of fixed actions [T].

  As in a rollout, each observation is the one before the action.
  """
  reset_key, key = jax.random.split(key)

  def body(carry, inputs):
    state, observation = carry
    key, action = inputs
    *carry, reward, done = environment.step(key, state, action)
    return (*carry,), (observation, reward, done)

  inputs = jax.random.split(key, len(actions)), actions
  return jax.lax.scan(body, environment.reset(reset_key), inputs)[1]


SEEDS = st.integers(0, 2**31 - 1).map(jax.random.key)
STEPS = 80
ACTIONS = st.lists(st.integers(0, 2), min_size=STEPS, max_size=STEPS).map(
  np.array
)


@ENVIRONMENTS
@given(key=SEEDS, actions=ACTIONS)
def test_an_observation_is_one_hot_and_a_reward_at_most_1(
  environment, key, actions
):
  observations, rewards, _ = play(environment, key, actions)
  assert observations.shape == (STEPS, environment.observation_size)
  assert (np.sort(observations, axis=1)[:, :-1] == 0).all()
  assert (observations.sum(1) == 1).all() and np.abs(rewards).max() <= 1


@pytest.mark.exhaustive
@given(key=SEEDS, actions=ACTIONS)
def test_the_maze_is_what_its_docstring_says(key, actions):
  observations, rewards, dones = play(MAZE, key, actions)
  position, goal, begun = 0, None, 0
  for t, action in enumerate(actions):
    seen = int(observations[t].argmax())
    if position == 0:
      assert seen in (0, 1)
      goal = goal or (LEFT, RIGHT)[seen]
      assert (LEFT, RIGHT)[seen] == goal  # the same in all of the episode
    else:
      assert seen == (3 if position == LENGTH else 2)
    if position == LENGTH and action != FORWARD:
      expected, position = (1 if action == goal else -1), 0
      assert rewards[t] == expected and dones[t]
      goal, begun = None, t + 1
      continue
    moves = position < LENGTH and action == FORWARD
    assert rewards[t] == (0 if moves else BUMP)
    position += moves
    assert dones[t] == (t + 1 == begun + LIMIT)
    if dones[t]:
      position, goal, begun = 0, None, t + 1


@pytest.mark.parametrize(
  ("action", "bumps"), [(LEFT, LIMIT), (FORWARD, LIMIT - LENGTH)]
)
def test_an_episode_without_a_turn_ends_at_the_limit(action, bumps, key):
  """Its return is the sum of the costs of actions that did not move.

  FORWARD moves LENGTH times, to the junction. LEFT never moves, and only at the
  junction would it be a turn that ends the episode.
  """
  _, rewards, dones = play(MAZE, key, np.full(2 * LIMIT, action))
  assert np.flatnonzero(dones).tolist() == [LIMIT - 1, 2 * LIMIT - 1]
  assert np.abs(rewards[:LIMIT].sum() - bumps * BUMP) < 1e-5  # float32


@pytest.mark.parametrize("action", [LEFT, FORWARD])
def test_an_action_may_be_an_int(action, key):
  state, _ = MAZE.reset(key)
  found, expected = (
    MAZE.step(key, state, a)[2:] for a in (action, np.asarray(action))
  )
  assert found == expected and found[1].dtype == bool


@pytest.mark.parametrize("done", [False, True])
def test_the_reward_and_done_of_a_task_may_be_constants(done, key):
  def step(key, state, action):
    return state + 1, state, 2, done

  found = auto_reset(lambda key: (0, 7), step)(key, 4, FORWARD)
  assert found == ((0, 7, 2, True) if done else (5, 4, 2, False))
  assert found[2].dtype == np.float32 and found[3].dtype == bool


def test_a_turn_in_the_last_step_of_an_episode_counts(key):
  actions = np.array([FORWARD] * (LIMIT - 1) + [LEFT])
  _, rewards, dones = play(MAZE, key, actions)
  assert np.abs(rewards[-1]) == 1 and np.flatnonzero(dones) == [LIMIT - 1]


@given(key=SEEDS)
def test_repeat_previous_rewards_the_symbol_shown_a_delay_ago(key):
  observations, _, dones = play(REPEAT, key, np.zeros(STEPS, int))
  shown = np.argmax(observations, axis=1)
  length = DELAY + ANSWERS
  assert (np.flatnonzero(dones) + 1 == [length, 2 * length]).all()
  answers = np.concatenate([shown[:DELAY], shown[:-DELAY]])
  _, rewards, _ = play(REPEAT, key, answers)
  early = np.arange(STEPS) % length < DELAY
  assert (rewards[early] == 0).all()
  assert (rewards[~early] == 1 / ANSWERS).all()
  _, rewards, _ = play(REPEAT, key, (answers + 1) % SYMBOLS)
  assert (rewards[~early] == -1 / ANSWERS).all()


def test_guessing_has_the_mean_return_of_a_uniform_answer():
  assert MAZE.guessing == 0  # one side of two
  assert REPEAT.guessing == 1 / SYMBOLS - (SYMBOLS - 1) / SYMBOLS


@pytest.mark.exhaustive
def test_both_goals_and_every_symbol_are_drawn():
  keys = jax.random.split(jax.random.key(0), 100)
  goals = jax.vmap(MAZE.reset)(keys)[0].goal
  symbols = jax.vmap(REPEAT.reset)(keys)[0].symbols
  assert set(map(int, goals)) == {LEFT, RIGHT}
  for column in symbols.T:
    assert set(map(int, column)) == set(range(SYMBOLS))
  shown, _, _ = play(REPEAT, keys[0], np.zeros(DELAY + ANSWERS, int))
  assert shown[1:].any(axis=0).all()  # drawn by `step`


@pytest.mark.exhaustive
@ENVIRONMENTS
def test_the_next_episode_is_drawn_anew(environment, key):
  # Each episode draws anew: in some of 16 environments, but not in all, the
  # second begins with another observation than the first.
  keys = jax.random.split(key, 16)
  actions = np.full((16, STEPS), LEFT)
  actions[:, :LENGTH] = FORWARD
  run = jax.vmap(partial(play, environment))
  observations, _, dones = run(keys, actions)
  first = dones[0].argmax() + 1  # all end at once
  assert dones[:, first - 1].all()
  assert len({o.tobytes() for o in np.asarray(observations[:, first])}) > 1
  different = (observations[:, 0] != observations[:, first]).any(axis=1)
  assert different.any() and not different.all()


def test_the_longest_episode_of_the_largest_size_can_be_counted():
  largest = 2**29 - 3  # with a limit of 4 (largest + 2) < 2**31 time steps
  PolicyConfig(size=largest)
  with pytest.raises(ValueError, match=f"size must be in .1, {largest}.,"):
    PolicyConfig(size=largest + 1)
  state, _ = tmaze(largest).reset(jax.random.key(0))
  done = tmaze(largest).step(jax.random.key(0), state, FORWARD)[-1]
  assert not done
