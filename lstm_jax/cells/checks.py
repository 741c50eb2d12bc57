"""Check that the arguments of a step or sequence fit a cell and each other."""

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp

from lstm_jax.cells.affine import is_token
from lstm_jax.cells.precision import upcast


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


PARTS = (
  "initial_state",
  "project",
  "recur",
  "recur_backward",
  "parameter_gradients",
)


def parts_of(cell: Any) -> tuple[Callable | None, ...]:
  """Return the functions that `check_weights` takes; None for one missing."""
  return tuple(getattr(cell, name, None) for name in PARTS)


def check_weights(parts: tuple[Callable | None, ...], params: Any) -> None:
  """Raise ValueError unless params are floats whose shapes fit each other.

  Without this check, a bias of one element would be broadcast to all units. The
  shapes that fit are those of the gradients that the cell itself computes; a
  cell without a backward is not checked.

  Args:
    parts: the functions PARTS of the cell.
    params: the weights, of its type and without further axes.
  """
  leaves, structure = jax.tree.flatten_with_path(params)
  kinds = tuple((jnp.shape(x), jnp.result_type(x)) for _, x in leaves)
  for (path, _), (_, dtype) in zip(leaves, kinds, strict=True):
    if not jnp.issubdtype(dtype, jnp.floating):
      name = jax.tree_util.keystr(path)
      raise ValueError(f"params{name} must be floats, got {dtype}")
  if not _fit(parts, structure, kinds):
    shapes = [
      f"{jax.tree_util.keystr(path).lstrip('.')} {_axes(shape)}"
      for (path, _), (shape, _) in zip(leaves, kinds, strict=True)
    ]
    raise ValueError(f"weights do not fit each other: {', '.join(shapes)}")


@lru_cache(maxsize=256)  # `unroll` may be called outside of `jax.jit`
def _fit(parts: tuple[Any, ...], structure: Any, kinds: tuple) -> bool:
  """Return whether a step runs, and its gradients have the weights' shapes."""
  if not all(map(callable, parts)):
    return True
  initial_state, project, recur, recur_backward, parameter_gradients = parts
  params = jax.tree.unflatten(
    structure, [jax.ShapeDtypeStruct(*kind) for kind in kinds]
  )

  def forward(params):
    x = jnp.zeros(params.w_x.shape[:1], params.w_x.dtype)
    state = initial_state(params, ())
    ax = project(params, x)
    after, gates, residuals = recur(params, state, ax)
    return x, state, after, ax, gates, residuals

  def backward(params):
    x, state, _, _, gates, residuals = forward(params)
    _, *das = recur_backward(params, gates, residuals, upcast(state))
    return parameter_gradients(params, x, state.h, residuals, *das)[0]

  # Mixed dtypes are not the question, and may be refused elsewhere.
  eval_shape = jax.numpy_dtype_promotion("standard")(jax.eval_shape)
  try:
    _, state, after, ax, gates, _ = eval_shape(forward, params)
  except (TypeError, ValueError, IndexError):
    return False
  if (_shapes(after), ax.shape) != (_shapes(state), gates.shape):
    return False
  try:
    gradients = eval_shape(backward, params)
  except Exception:  # the cell has no backward yet
    return True
  return _shapes(gradients) == [shape for shape, _ in kinds]


def _shapes(tree: Any) -> list[tuple[int, ...]]:
  return [leaf.shape for leaf in jax.tree.leaves(tree)]


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
    x: must be real, [*leading, *B, D], or integer tokens [*leading, *B].
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
  if jnp.issubdtype(x.dtype, jnp.complexfloating):
    raise ValueError(f"{name} must be real, got {x.dtype}")
  if is_token(x):
    kind, expected = "integer tokens", (*leading, *batch)
  else:
    kind, expected = "inputs", (*leading, *batch, size)
  if x.shape != expected:
    batch_first = bool(leading) and x.shape[:1] == batch
    raise ValueError(
      f"{name} must be {kind} {_axes(expected)}, got {x.shape}"
      + time_major_hint(batch_first and x.shape[2:] == expected[2:])
    )


def time_major_hint(exchanged: bool) -> str:
  """Return what to add to an error message if T and B are exchanged."""
  hint = "; inputs [B, T, D] need time_major=False, and [T, B, D] need True"
  return hint if exchanged else ""


def _axes(shape: tuple[int, ...]) -> str:
  return f"[{', '.join(map(str, shape))}]"
