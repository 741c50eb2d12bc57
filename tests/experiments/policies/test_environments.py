"""The tasks are what their docstrings say."""

from functools import partial

import jax
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from experiments.policies.environments import (
  ANSWERS,
  BUMP,
  FORWARD,
  LEFT,
  RIGHT,
  SYMBOLS,
  repeat_previous,
  tmaze,
)

LENGTH, DELAY = 3, 2
LIMIT = 20  # 4 (LENGTH + 2), the most steps of an episode in the maze
MAZE, REPEAT = tmaze(LENGTH), repeat_previous(DELAY)
STEPS = 80
SEEDS = st.integers(0, 2**31 - 1).map(jax.random.key)
ACTIONS = st.lists(st.integers(0, 2), min_size=STEPS, max_size=STEPS)


def play(environment, key, actions):
  """Return (observations, rewards, dones) of fixed actions [STEPS].

  As in a rollout, each observation is the one before the action.
  """
  found = map(np.asarray, _play(environment, key, np.array(actions)))
  observations, rewards, dones = found
  assert observations.shape == (STEPS, environment.observation_size)
  assert (np.sort(observations, axis=1)[:, :-1] == 0).all()
  assert (observations.sum(1) == 1).all()  # one-hot
  return observations.argmax(1), rewards, dones


@partial(jax.jit, static_argnums=0)
def _play(environment, key, actions):
  reset_key, key = jax.random.split(key)

  def body(carry, inputs):
    state, observation = carry
    *carry, reward, done = environment.step(inputs[0], state, inputs[1])
    return (*carry,), (observation, reward, done)

  inputs = jax.random.split(key, len(actions)), actions
  return jax.lax.scan(body, environment.reset(reset_key), inputs)[1]


@given(key=SEEDS, actions=ACTIONS)
# Never a turn at the junction; and a turn there in the last step.
@example(key=jax.random.key(0), actions=[LEFT] * STEPS)
@example(key=jax.random.key(0), actions=[FORWARD] * STEPS)
@example(key=jax.random.key(0), actions=([FORWARD] * (LIMIT - 1) + [LEFT]) * 4)
def test_the_maze_is_what_its_docstring_says(key, actions):
  seen, rewards, dones = play(MAZE, key, actions)
  position, goal, begun = 0, None, 0
  for t, action in enumerate(actions):
    if position == 0:
      assert seen[t] in (0, 1)
      goal = goal or (LEFT, RIGHT)[seen[t]]
      assert (LEFT, RIGHT)[seen[t]] == goal  # the same in all of the episode
    else:
      assert seen[t] == (3 if position == LENGTH else 2)
    if position == LENGTH and action != FORWARD:
      assert rewards[t] == (1 if action == goal else -1) and dones[t]
      position, goal, begun = 0, None, t + 1
      continue
    moves = position < LENGTH and action == FORWARD
    assert rewards[t] == np.float32(0 if moves else BUMP)
    position += moves
    assert dones[t] == (t + 1 == begun + LIMIT)
    if dones[t]:
      position, goal, begun = 0, None, t + 1


def test_an_action_may_be_an_int(key):
  state, _ = MAZE.reset(key)
  for action in (LEFT, FORWARD):
    found, expected = (
      MAZE.step(key, state, a)[2:] for a in (action, np.asarray(action))
    )
    assert found == expected and found[1].dtype == bool


@given(key=SEEDS)
def test_repeat_previous_rewards_the_symbol_shown_a_delay_ago(key):
  shown, _, dones = play(REPEAT, key, [0] * STEPS)
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


@pytest.mark.parametrize(
  ("environment", "drawn"),
  [(MAZE, {0, 1}), (REPEAT, set(range(SYMBOLS)))],
  ids=["tmaze", "repeat_previous"],
)
def test_each_episode_is_drawn_anew(environment, drawn, key):
  keys, actions = jax.random.split(key, 32), np.full((32, STEPS), LEFT)
  run = jax.vmap(partial(_play, environment))
  observations, _, dones = map(np.asarray, run(keys, actions))
  second = dones[0].argmax() + 1  # the first step of the second episode
  assert dones[:, second - 1].all()  # all end at once
  before, after = (
    observations[:, 0].argmax(1),
    observations[:, second].argmax(1),
  )
  assert {*before} == {*after} == drawn and (before != after).any()
  later = observations[:, DELAY + 1].argmax(1)
  assert {*later} == drawn
