"""Check that the arguments of a step or sequence fit a cell and each other."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lstm_jax.cells.affine import is_token


def check_params(project: Callable[..., Any], params: Any) -> None:
  """Raise ValueError unless params have the type that the cell takes.

  Args:
    project: the cell's. The type is the annotation of its first argument; if
      there is none, any type is accepted.
    params: the weights.
  """
  parameters = inspect.signature(project).parameters.values()
  expected = next(iter(parameters)).annotation
  if expected in (inspect.Parameter.empty, Any):
    return
  if isinstance(expected, type) and not isinstance(params, expected):
    found = type(params).__name__
    raise ValueError(f"params must be {expected.__name__}, got {found}")


def check_inputs(
  name: str,
  initial_state: Callable[..., Any],
  params: Any,
  state: Any,
  x: jax.Array,
  leading: tuple[int, ...] = (),
) -> None:
  """Raise ValueError unless the state and x fit the weights and each other.

  Args:
    name: the name of x in the error message.
    initial_state: the cell's.
    params: the weights.
    state: must have the type and the shapes of the initial state for the batch
      axes B of state.h.
    x: must be floats [*leading, *B, D] or integer tokens [*leading, *B].
    leading: the axes of x that the state does not have: (T,), or none.
  """
  batch = state.h.shape[:-1] if hasattr(state, "h") else ()
  initial = jax.eval_shape(lambda: initial_state(params, batch))
  if type(state) is not type(initial):
    found = type(state).__name__
    raise ValueError(f"state must be a {type(initial).__name__}, got {found}")
  for field, leaf, like in zip(state._fields, state, initial, strict=True):
    if leaf.shape != like.shape:
      shape = _axes(like.shape)
      raise ValueError(f"state.{field} must be {shape}, got {leaf.shape}")
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
      raise ValueError(f"state.{field} must be floats, got {leaf.dtype}")
  size = params.w_x.shape[0]
  if is_token(x):
    kind, expected = "integer tokens", (*leading, *batch)
  else:
    kind, expected = "inputs", (*leading, *batch, size)
  if x.shape != expected:
    raise ValueError(
      f"{name} must be {kind} {_axes(expected)}, got {x.shape}"
      + time_major_hint(bool(leading) and x.shape[:1] == batch)
    )


def time_major_hint(exchanged: bool) -> str:
  """Return what to add to an error message if T and B are exchanged."""
  hint = "; inputs [B, T, D] need time_major=False, and [T, B, D] need True"
  return hint if exchanged else ""


def _axes(shape: tuple[int, ...]) -> str:
  return f"[{', '.join(map(str, shape))}]"
