"""Two tasks that need memory, as pure functions: T-maze, repeat-previous.

`reset` starts an episode, and `step` takes one time step of it. Both act on one
environment: a program maps them over a batch. The last step of an episode also
starts the next: `step` then returns the state and the observation of a new
episode, with the reward and done = True of the one that ended (auto-reset).
So the observation that comes with done[t] is the first of the next episode.

  >>> import jax
  >>> maze = tmaze(3)
  >>> key = jax.random.key(0)
  >>> state, observation = maze.reset(key)
  >>> for action in (FORWARD, FORWARD, FORWARD, LEFT):
  ...   state, observation, reward, done = maze.step(key, state, action)
  >>> abs(float(reward)), bool(done), int(state.position)
  (1.0, True, 0)

References: Bakker (2001), Reinforcement learning with long short-term memory,
section 4, has the T-maze; Morad et al. (2023), POPGym, have repeat-previous.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

FORWARD, LEFT, RIGHT = 0, 1, 2  # actions in the T-maze
BUMP = -0.1  # reward of an action that does not move
SYMBOLS = 4  # that repeat-previous may show
ANSWERS = 32  # rewarded steps in an episode of repeat-previous


class Environment(NamedTuple):
  """A task; observations are vectors, actions integers."""

  observation_size: int
  num_actions: int
  reset: Callable[[jax.Array], tuple]  # (key) -> (state, observation)
  # (key, state, action) -> (state, observation, reward, done)
  step: Callable[[jax.Array, Any, jax.Array | int], tuple]
  guessing: float  # the best mean return without memory
  title: str


def auto_reset(reset: Callable, step: Callable) -> Callable:
  """Return a step that also starts the next episode where it ends one."""

  def step_or_reset(key, state, action):
    step_key, reset_key = jax.random.split(key)
    *old, reward, done = step(step_key, state, action)
    state, observation = jax.tree.map(
      lambda new, old: jnp.where(done, new, old), reset(reset_key), (*old,)
    )
    return state, observation, jnp.asarray(reward, jnp.float32), done

  return step_or_reset


class TMazeState(NamedTuple):
  """Where the agent is, and where the goal."""

  position: jax.Array  # steps from the start, 0 … length
  goal: jax.Array  # the action that finds it, LEFT or RIGHT
  time: jax.Array  # steps taken in the episode


def tmaze(length: int) -> Environment:
  """Return a corridor with a junction at its end, where one must turn.

  Only the first position shows on which side the goal is. At the junction, a
  turn to that side is rewarded by 1 and a turn to the other side by −1; both
  end the episode. An action that does not move costs 0.1: a turn within the
  corridor, or a step forward at the junction. Without memory the goal can only
  be guessed: the mean return is then 0 at best, and 1 with memory.

  An episode also ends after 4 (length + 2) steps without a turn at the
  junction, so that an agent that never turns has a return. length + 1 steps
  find the goal.

  Args:
    length: of the corridor, in steps.
  """
  limit = 4 * (length + 2)

  def observe(state):  # one of: left, right, corridor, junction
    ahead = jnp.where(state.position == length, 3, 2)
    seen = jnp.where(state.position == 0, state.goal - LEFT, ahead)
    return jax.nn.one_hot(seen, 4, dtype=jnp.float32)

  def reset(key):
    goal = jax.random.randint(key, (), LEFT, RIGHT + 1)
    state = TMazeState(jnp.zeros_like(goal), goal, jnp.zeros_like(goal))
    return state, observe(state)

  def step(key, state, action):
    del key
    at_junction = state.position == length
    walks = jnp.asarray(action) == FORWARD  # an array, as ~ needs, not a bool
    moves = ~at_junction & walks
    turns = at_junction & ~walks
    turned = jnp.where(action == state.goal, 1.0, -1.0)
    reward = jnp.where(turns, turned, jnp.where(moves, 0.0, BUMP))
    position = jnp.where(moves, 1, 0) + state.position
    state = TMazeState(position, state.goal, state.time + 1)
    done = turns | (state.time == limit)
    return state, observe(state), reward, done

  title = f"T-maze, a corridor of length {length}"
  return Environment(4, 3, reset, auto_reset(reset, step), 0.0, title)


class RepeatState(NamedTuple):
  """The symbols to remember."""

  time: jax.Array  # steps taken in the episode
  symbols: jax.Array  # [delay + 1], the newest first


def repeat_previous(delay: int) -> Environment:
  """Return the task of naming, at each step, the symbol shown `delay` before.

  Each observation is one of SYMBOLS symbols, drawn at random. An episode has
  ANSWERS steps at which a symbol can be known, each rewarded by 1 / ANSWERS if
  the action names it, else by −1 / ANSWERS; `delay` steps without reward come
  before. The return is 1 with memory, and −0.5 on average by guessing.

  Args:
    delay: in steps.
  """

  def observe(state):
    return jax.nn.one_hot(state.symbols[0], SYMBOLS, dtype=jnp.float32)

  def reset(key):
    symbols = jax.random.randint(key, (delay + 1,), 0, SYMBOLS)
    state = RepeatState(jnp.zeros_like(symbols[0]), symbols)
    return state, observe(state)

  def step(key, state, action):
    named = jnp.where(action == state.symbols[-1], 1 / ANSWERS, -1 / ANSWERS)
    reward = jnp.where(state.time < delay, 0.0, named)
    time = state.time + 1
    symbol = jax.random.randint(key, (1,), 0, SYMBOLS)
    symbols = jnp.concatenate([symbol, state.symbols[:-1]])
    state = RepeatState(time, symbols)
    return state, observe(state), reward, time == delay + ANSWERS

  guessing = (2 - SYMBOLS) / SYMBOLS  # 1 in one of SYMBOLS cases, else −1
  title = f"Repeat the symbol shown before, delay {delay}"
  step = auto_reset(reset, step)
  return Environment(SYMBOLS, SYMBOLS, reset, step, guessing, title)


# By name: the function of a size, in time steps, that makes a task.
TASKS: dict[str, Callable[[int], Environment]] = {
  "tmaze": tmaze,
  "repeat_previous": repeat_previous,
}
