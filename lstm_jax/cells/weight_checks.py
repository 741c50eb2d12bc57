"""Check that the weights of a cell fit each other, and the cell its contract.

Nothing is computed: a step and its backward are traced for their shapes.
"""

import inspect
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp

from lstm_jax.cells.checks import (
  axes_text,
  check_floats,
  check_zero_state,
  types_text,
)
from lstm_jax.cells.precision import upcast

PARTS = (
  "initial_state",
  "project",
  "recur",
  "recur_backward",
  "parameter_gradients",
)
MISFIT = "weights do not fit each other"


def check_params(project: Callable[..., Any], params: Any) -> None:
  """Raise ValueError unless params have the type that the cell takes.

  Args:
    project: the cell's `project`. The type is the annotation of its first
      argument. Any type is accepted if this annotation is missing, `Any`, a
      `Protocol` or not a class, or if it is a string and one of the annotations
      of `project` cannot be evaluated.
    params: the weights.
  """
  try:
    signature = inspect.signature(project, eval_str=True)
  except Exception:  # a string may be any text, or name a typing-only import
    signature = inspect.signature(project)
  expected = next(iter(signature.parameters.values())).annotation
  if expected in (inspect.Parameter.empty, Any):
    return
  if not isinstance(expected, type) or _is_protocol(expected):
    return
  if not isinstance(params, expected):
    raise ValueError(f"params must be {types_text(expected, type(params))}")


def _is_protocol(kind: type) -> bool:
  return getattr(kind, "_is_protocol", False)


def parts_of(cell: Any) -> tuple[Callable | None, ...]:
  """Return the functions PARTS of a cell, with None for each that it lacks."""
  return tuple(getattr(cell, name, None) for name in PARTS)


def check_weights(parts: tuple[Callable | None, ...], params: Any) -> None:
  """Raise ValueError unless params are floats whose shapes fit each other.

  Without this check, a bias of one element would be broadcast to all units.
  Weights fit if they have the shapes of the gradients that the cell itself
  computes. If a part is None, shapes are not checked; if the backward raises
  NotImplementedError, all shapes with which a step runs are accepted.

  Args:
    parts: the functions PARTS of the cell, with None for each that it lacks.
    params: the weights, of the cell's type, without an axis of layers or seeds.

  Raises:
    ValueError: as above; params have no w_x, or a list in place of an array; or
      a step (see `_check_forward`) or its backward fails, or returns other
      shapes than it must.
  """
  if not hasattr(params, "w_x"):
    raise ValueError(
      "params must be a NamedTuple with the input weights w_x [D, ...], got "
      f"{type(params).__name__}"
    )
  for name in getattr(params, "_fields", ()):
    if isinstance(getattr(params, name), list):  # each number would be a leaf
      raise ValueError(f"params.{name} must be an array, got list")
  if not hasattr(params.w_x, "dtype"):
    found = type(params.w_x).__name__
    raise ValueError(f"params.w_x must be an array, got {found}")
  leaves, structure = jax.tree.flatten_with_path(params)
  kinds = []
  for path, x in leaves:
    name, found = jax.tree_util.keystr(path), type(x).__name__
    if not hasattr(x, "dtype") and not isinstance(x, float | int):
      raise ValueError(f"params{name} must be an array, got {found}")
    try:
      dtype = jnp.result_type(x)
    except TypeError:  # such as for a tensor of PyTorch
      raise ValueError(
        f"params{name} must be an array of NumPy or JAX, got {found}"
      ) from None
    if not jnp.issubdtype(dtype, jnp.floating):
      raise ValueError(f"params{name} must be floats, got {dtype}")
    kinds.append((jnp.shape(x), dtype))
  if all(map(callable, parts)):
    _check_step(parts, structure, tuple(kinds))


@lru_cache(maxsize=256)  # else each call outside of `jax.jit` traces a step
def _check_step(parts: tuple[Any, ...], structure: Any, kinds: tuple) -> None:
  """Raise ValueError if a step fails, or a shape is not as it must be."""
  initial_state, project, recur, recur_backward, parameter_gradients = parts
  params = jax.tree.unflatten(
    structure, [jax.ShapeDtypeStruct(*kind) for kind in kinds]
  )

  def forward(params, batch=()):
    x = jnp.zeros((*batch, len(params.w_x)), params.w_x.dtype)
    state = initial_state(params, batch)
    check_zero_state(state)
    ax = project(params, x)
    after, gates, residuals = recur(params, state, ax)
    return x, state, after, ax, gates, residuals

  def states(params):
    return initial_state(params, ()), initial_state(params, (2,))

  def backward(params, batch):
    x, state, _, _, gates, residuals = forward(params, batch)
    # The state stands for the cotangent after the step: it has the same shapes.
    d_state, *das = recur_backward(params, gates, residuals, upcast(state))
    d_params, dx = parameter_gradients(params, x, state.h, residuals, *das)
    return state, d_state, d_params, x, dx

  _check_forward(forward, params)
  _check_batch_axes(states, params)
  _check_backward(backward, params)


def _eval_shape(f: Callable, params: Any) -> Any:
  """Return the shapes of f(params), with JAX set to allow mixed dtypes."""
  with jax.numpy_dtype_promotion("standard"):
    return jax.eval_shape(f, params)


def _wrong(params: Any) -> str:
  """Return the beginning of a message: the weights, or the cell, is wrong."""
  return f"{MISFIT}, or the cell is wrong: {_named(params)}"


def _check_forward(forward: Callable, params: Any) -> None:
  """Raise ValueError if a step fails, or gives other gates or another state.

  A step fails if it raises TypeError, ValueError, IndexError or AttributeError.
  Another exception, such as KeyError, is raised as it is.

  Args:
    forward: (params) -> (x, state, next state, project's result, gates,
      residuals).
    params: the weights.
  """
  error = _wrong(params)
  try:
    _, state, after, ax, gates, _ = _eval_shape(forward, params)
  except (TypeError, ValueError, IndexError, AttributeError) as cause:
    raise ValueError(f"{error}; a step fails: {cause}") from cause
  _check_type(error, "recur must return a state", state, after)
  for name, expected, found in (
    ("gates of project's shape", ax, gates),
    ("a state of initial_state's shapes", state, after),
  ):
    if _shapes(found) != _shapes(expected):
      raise ValueError(
        f"{error}; recur must return {name}, {_named(expected)}, "
        f"got {_named(found)}"
      )


def _check_batch_axes(states: Callable, params: Any) -> None:
  """Raise ValueError unless the zero state is floats with batch axes.

  Args:
    states: (params) -> the zero states of batch_shape () and (2,).
    params: the weights.
  """
  without, batched = _eval_shape(states, params)
  check_floats("state", without)
  structure: Any = jax.tree.structure(without)
  same = structure == jax.tree.structure(batched)

  def fits(shape, with_batch):
    # A number, such as a counter, may be one for the whole batch.
    return with_batch == (2, *shape) or shape == with_batch == ()

  if not (same and all(map(fits, _shapes(without), _shapes(batched)))):
    raise ValueError(
      f"initial_state must put batch_shape before the axes {_named(without)}, "
      f"got {_named(batched)} for (2,)"
    )


def _check_backward(backward: Callable, params: Any) -> None:
  """Raise ValueError if a backward fails, or a gradient has another shape.

  A backward that raises NotImplementedError passes.

  Args:
    backward: (params, batch shape) -> (state, its cotangent, gradients of the
      weights, x, its gradient or None).
    params: the weights.
  """
  error, failure = _wrong(params), None
  for batch in ((), (1,)):  # a backward may need a batch axis, to sum over
    try:
      shapes = _eval_shape(partial(backward, batch=batch), params)
      break
    except NotImplementedError:  # the cell has no backward yet
      return
    except Exception as cause:
      failure = cause
  else:
    raise ValueError(f"{error}; its backward fails: {failure}") from failure
  state, d_state, gradients, x, dx = shapes
  _check_type(error, "recur_backward must return a state", state, d_state)
  if _shapes(d_state) != _shapes(state):
    raise ValueError(
      f"{error}; recur_backward must return cotangents of the state's shapes, "
      f"{_named(state)}, got {_named(d_state)}"
    )
  what = "parameter_gradients must return gradients"
  _check_type(error, what, params, gradients)
  if _shapes(gradients) != _shapes(params):
    raise ValueError(
      f"{MISFIT}: {_named(params)}; their gradients have {_named(gradients)}"
    )
  if dx is not None and _shapes(dx) != _shapes(x):
    raise ValueError(
      f"{error}; parameter_gradients must return dx of x's shape, {_named(x)}, "
      f"got {_named(dx)}"
    )


def _check_type(error: str, what: str, expected: Any, found: Any) -> None:
  """Raise ValueError unless `found` has the tree structure of `expected`."""
  if len({*map(jax.tree.structure, (expected, found))}) > 1:
    kind = "an array" if hasattr(found, "dtype") else type(found).__name__
    raise ValueError(
      f"{error}; {what} of type {type(expected).__name__}, {_named(expected)}, "
      f"got {kind}, {_named(found)}"
    )


def _shapes(tree: Any) -> list[tuple[int, ...]]:
  return [leaf.shape for leaf in jax.tree.leaves(tree)]


def _named(tree: Any) -> str:
  """Return the names and shapes of arrays, such as "w_x [4, 24], b None"."""
  leaves = jax.tree.leaves_with_path(tree, is_leaf=lambda x: x is None)
  return ", ".join(
    f"{jax.tree_util.keystr(path)} "
    f"{None if leaf is None else axes_text(leaf.shape)}".lstrip(". ")
    for path, leaf in leaves
  )
