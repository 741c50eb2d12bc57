"""Checks of arguments: inputs and states of a cell, counts and shapes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax.cells.affine import is_token
from lstm_jax.cells.precision import as_array


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
    initial_state: the cell's `initial_state`.
    params: the weights.
    state: the state. Its batch axes are those of state.h, [*B, H]. It must have
      the type and the shapes of the initial state for them, and hold floats.
    x: the inputs. They must be real, [*leading, *B, D], or integer tokens,
      [*leading, *B].
    leading: the sizes of the axes of x before the batch: (T,), or ().
  """
  h: Any = getattr(state, "h", None)
  batch = h.shape[:-1] if hasattr(h, "shape") else ()
  initial = jax.eval_shape(lambda: initial_state(params, batch))
  check_zero_state(initial)
  check_like("state", state, initial)
  size = params.w_x.shape[0]
  if jnp.issubdtype(x.dtype, jnp.complexfloating):
    raise ValueError(f"{name} must be real, got {x.dtype}")
  if is_token(x):
    kind, expected = "integer tokens", (*leading, *batch)
  else:
    kind, expected = "inputs", (*leading, *batch, size)
  if x.shape != expected:
    batch_first = bool(leading) and x.shape[:1] == batch  # as in [B, T, D]
    vectors = is_token(x) and x.shape == (*expected, size)  # integers [..., D]
    raise ValueError(
      f"{name} must be {kind} {axes_text(expected)}, got {x.shape}"
      + time_major_hint(batch_first and x.shape[2:] == expected[2:])
      + (f"; inputs must be floats, not {x.dtype}" if vectors else "")
    )


def check_zero_state(state: Any) -> None:
  """Raise ValueError unless what `initial_state` returned may be a state."""
  h = getattr(state, "h", None)
  if not hasattr(state, "_fields") or not hasattr(h, "shape"):
    kind = "an array" if hasattr(state, "dtype") else type(state).__name__
    raise ValueError(
      f"initial_state must return a NamedTuple with an array h, got {kind}"
    )


def check_like(name: str, state: Any, like: Any) -> None:
  """Raise ValueError unless a state has another's type and shapes, in floats.

  Args:
    name: of the state, or of its cotangent, in the error message.
    state: of a cell.
    like: a state of the same cell, or only its shapes.
  """
  check_same_type(name, state, like)
  check_arrays(name, state)
  for field, leaf, other in zip(state._fields, state, like, strict=True):
    if leaf.shape != other.shape:
      shape = axes_text(other.shape)
      raise ValueError(f"{name}.{field} must be {shape}, got {leaf.shape}")
  check_floats(name, state)


def check_floats(name: str, state: Any) -> None:
  """Raise ValueError unless every array of a state holds floats."""
  for path, leaf in jax.tree.leaves_with_path(state):
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
      field = jax.tree_util.keystr(path)
      raise ValueError(f"{name}{field} must be floats, got {leaf.dtype}")


def as_number(name: str, value: Any) -> float:
  """Return a value as a float; raise ValueError unless it is a number."""
  try:
    if isinstance(value, str | bytes | bytearray) or np.iscomplexobj(value):
      raise TypeError  # `float` would read text, and drop an imaginary part
    return float(value)
  except jax.errors.JAXTypeError:  # of a tracer
    raise
  except (TypeError, ValueError, OverflowError):
    raise ValueError(f"{name} must be a number, got {value!r}") from None


def check_rows(what: str, state: Any) -> None:
  """Raise ValueError unless every array of a state has the batch axes of h.

  A mask, a reset or recomputation (`what`) needs these axes. Otherwise an array
  of the state may be one number for all rows, such as a counter.
  """
  batch = jnp.shape(state.h)[:-1]
  for path, leaf in jax.tree.leaves_with_path(state):
    found = jnp.shape(leaf)
    if found[: len(batch)] != batch:
      name = jax.tree_util.keystr(path)
      raise ValueError(
        f"{what} needs a state whose arrays have the batch axes "
        f"{axes_text(batch)}, got state{name} {axes_text(found)}"
      )


def check_same_type(name: str, value: Any, like: Any) -> None:
  """Raise ValueError unless a value has the type of another."""
  if type(value) is not type(like):
    types = types_text(type(like), type(value))
    raise ValueError(f"{name} must be of type {types}")


def types_text(wanted: type, found: type) -> str:
  """Return "WANTED, got FOUND" for an error message."""
  text = f"{wanted.__name__}, got {found.__name__}"
  if wanted.__name__ == found.__name__:
    text += " of another definition, as from before or after a reload"
  return text


def check_arrays(name: str, state: Any) -> None:
  """Raise ValueError unless each field of a state is an array."""
  for field, leaf in zip(state._fields, state, strict=True):
    if not hasattr(leaf, "shape"):
      found = type(leaf).__name__
      raise ValueError(f"{name}.{field} must be an array, got {found}")


def check_leaves(**trees: Any) -> None:
  """Raise ValueError unless each leaf of trees is an array or a number.

  A shape that `jax.eval_shape` returned is neither.
  """
  for name, tree in trees.items():
    for path, x in jax.tree.leaves_with_path(tree):
      if not _is_value(x):
        place, found = jax.tree_util.keystr(path), type(x).__name__
        kind = "an array" if path else "a NamedTuple of arrays"
        raise ValueError(f"{name}{place} must be {kind}, got {found}")


def _is_value(x: Any) -> bool:
  if isinstance(x, jax.ShapeDtypeStruct):
    return False
  try:
    jnp.result_type(x)
  except TypeError:  # such as for a tensor of PyTorch
    return False
  return hasattr(x, "dtype") or isinstance(x, float | int)


def broadcastable(name: str, x: Any, shape: tuple[int, ...]) -> jax.Array:
  """Return x as a JAX array, real, that broadcasts to a shape.

  Raises:
    ValueError: x is no such array.
  """
  expected = f"{name} must broadcast to {axes_text(shape)}"
  if x is None:
    raise ValueError(f"{expected}, got None")
  x = as_array(expected, x)
  found = x.shape
  padded = (1,) * (len(shape) - len(found)) + found
  if len(padded) > len(shape) or any(
    n not in (1, m) for n, m in zip(padded, shape, strict=True)
  ):
    raise ValueError(f"{expected}, got {found}")
  if jnp.iscomplexobj(x):
    raise ValueError(f"{name} must be real, got {x.dtype}")
  return x


def is_integer(value: Any) -> bool:
  """Return whether a value is an integer of Python or NumPy, and no bool."""
  wrong = isinstance(value, bool | np.timedelta64)  # subclasses of integers
  return isinstance(value, int | np.integer) and not wrong


def check_count(name: str, value: int, least: int = 1) -> int:
  """Return a count as a Python int, since a NumPy integer may overflow.

  Raises:
    ValueError: the count is not an integer, or it is below `least`.
  """
  if not is_integer(value) or value < least:
    raise ValueError(f"{name} must be an integer ≥ {least}, got {value!r}")
  return int(value)


def state_shape(batch_shape: Any, size: int) -> tuple[int, ...]:
  """Return (*batch_shape, size), the shape of one array of a state.

  Raises:
    ValueError: batch_shape is not iterable, for example a batch size.
  """
  try:
    return (*batch_shape, size)
  except TypeError:
    raise ValueError(
      f"batch_shape must be a tuple of sizes, such as (4,), got {batch_shape}"
    ) from None


def time_major_hint(exchanged: bool) -> str:
  """Return what to add to an error message if T and B are exchanged."""
  hint = "; inputs [B, T, D] need time_major=False, and [T, B, D] need True"
  return hint if exchanged else ""


def check_shape(name: str, x: Any, *expected: int | str) -> Any:
  """Return x, after a check of its shape.

  Args:
    name: the name of x in an error.
    x: an array.
    *expected: its shape, with a word, such as "any", for any size.

  Raises:
    ValueError: x has another shape, or is no array.
  """
  found = getattr(x, "shape", None)
  if found is None:
    found = type(x).__name__
  elif len(found) == len(expected):
    pairs = zip(expected, found, strict=True)
    if all(isinstance(n, str) or n == m for n, m in pairs):
      return x
  raise ValueError(f"{name} must be {axes_text(expected)}, got {found}")


def axes_text(shape: tuple[int | str, ...]) -> str:
  """Return a shape as the documentation writes it, such as "[4, 24]"."""
  return f"[{', '.join(map(str, shape))}]"
