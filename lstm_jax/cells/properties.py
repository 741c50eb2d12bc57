"""Properties of a cell: its name, the size of its output, its zero state."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from lstm_jax.cells.cell import Cell, Params, State, StateT
from lstm_jax.cells.checks import check_zero_state


def cell_name(cell: Cell) -> str:
  """Return the name of a cell, such as "lstm", for a message."""
  name = getattr(cell, "__name__", type(cell).__name__)
  return name.rpartition(".")[2] if isinstance(cell, ModuleType) else name


def output_size(cell: Cell, params: Params) -> int:
  """Return the size of the output h: H, or P where it is projected."""
  state = jax.eval_shape(lambda: cell.initial_state(params, ()))
  check_zero_state(state)
  return state.h.shape[-1]


def zero_state(
  cell: Cell, batch_shape: tuple[int, ...], hidden_size: int
) -> State:
  """Return the float32 zero state of a cell of H units, without its weights.

  A cell may compute the state from its weights. They are traced, not drawn, and
  have D = H, since a cell of your own may take no other D.
  """

  def state(key):
    params = cell.init(key, hidden_size, hidden_size, jnp.float32)
    return cell.initial_state(params, batch_shape)

  return zeros_like_traced(state, jax.random.key(0))


def zeros_like_traced(f: Callable[..., StateT], *args: Any) -> StateT:
  """Return zeros like f(*args), which is only traced: args may be shapes."""
  shapes = jax.eval_shape(f, *args)
  return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
