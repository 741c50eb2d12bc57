"""Check the arguments of `unroll`, and bring them to the shape [T, ...]."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax.cells.affine import is_token
from lstm_jax.cells.caching import check_hashable
from lstm_jax.cells.cell import Cell, Params, State
from lstm_jax.cells.checks import (
  axes_text,
  broadcastable,
  check_inputs,
  check_leaves,
  check_same_type,
  is_integer,
  time_major_hint,
)
from lstm_jax.cells.precision import as_array, as_arrays
from lstm_jax.cells.properties import cell_name
from lstm_jax.cells.weight_checks import check_params, check_weights, parts_of
from lstm_jax.sequence.wrappers import Wrapped

NEEDED = "initial_state", "project"  # functions that these checks call
# JAX's error where a scan's body changes the type of the carry.
CHANGED = "carry input and carry output must have equal types"


def as_inputs(xs: Any) -> jax.Array:
  """Return xs as a JAX array; raise ValueError if they cannot be one."""
  return as_array("xs must be inputs [T, ..., D] or tokens [T, ...]", xs)


def exchange_axes(xs: Any, mask: Any, reset: Any) -> Any:
  """Return (xs, mask, reset), each with its first two axes exchanged.

  A mask or a reset of None stays None. Mask and reset are checked here, so that
  errors about them give shapes in the order of the caller. Later errors about
  xs give the exchanged shape, [T, B, ...].

  Raises:
    ValueError: xs, inputs or tokens, is not an array, or has no batch axis or
      no time step; mask or reset is not bool [B, T, ...].
  """
  xs = as_inputs(xs)
  if xs.ndim < (2 if is_token(xs) else 3):
    raise ValueError(
      "time_major=False needs xs with a batch axis, [B, T, D] or tokens "
      f"[B, T], got {xs.shape}"
    )
  check_steps(xs.shape, xs.shape[1])
  step_shape = xs.shape if is_token(xs) else xs.shape[:-1]

  def exchanged(name, x):
    if x is None:
      return None
    return jnp.swapaxes(bool_array(name, x, step_shape), 0, 1)

  xs = jnp.swapaxes(xs, 0, 1)
  return xs, exchanged("mask", mask), exchanged("reset", reset)


def check_steps(shape: tuple[int, ...], steps: int, name: str = "xs") -> None:
  """Raise ValueError if inputs of this shape have no time step."""
  if steps == 0:
    raise ValueError(f"{name} must have at least one step (T ≥ 1), got {shape}")


def check_cell(cell: Any) -> None:
  """Raise ValueError unless this is a cell, not wrapped, and hashable."""
  missing = [f for f in NEEDED if not callable(getattr(cell, f, None))]
  if missing:
    raise ValueError(
      "cell must be lstm, gru or another with the functions of `Cell`, got "
      f"{cell_name(cell)}, which has no {', '.join(missing)}"
    )
  if isinstance(cell, Wrapped):
    raise ValueError(
      "cell must not be wrapped, got one of sequence.wrappers: call its `step` "
      "in a loop, or pass mask, reset, zoneout or state_dropout to `unroll`"
    )
  check_hashable(cell)


def check_functions(
  cell: Cell, names: tuple[str, ...], instead: str = ""
) -> None:
  """Raise ValueError if the cell lacks one of these functions.

  Args:
    cell: the cell.
    names: the functions that it must have.
    instead: the end of the message, which says what to do.
  """
  missing = [name for name in names if getattr(cell, name, None) is None]
  if missing:
    raise ValueError(
      f"the cell {cell_name(cell)} has no {', '.join(missing)}{instead}"
    )


@contextmanager
def naming_a_changed_state(cell: Cell) -> Iterator[None]:
  """Raise ValueError if a step within this context changes the state's type.

  The type is the shapes and dtypes. JAX's error does not name the cell.
  """
  try:
    yield
  except TypeError as cause:
    if CHANGED not in str(cause):
      raise
    raise ValueError(
      f"a step of {cell_name(cell)} must keep the shapes and dtypes of the "
      "state (`cast_like` keeps dtypes)"
    ) from cause


def check_sequence(
  cell: Cell, params: Params, state: State | None, xs: jax.Array
) -> State:
  """Return the state, zero if it is None, after a check of all shapes.

  Raises:
    ValueError: cell is not a cell; xs has no time step, or holds tokens that
      the cell does not take; params are of another cell; or the shapes do not
      fit each other.
  """
  check_cell(cell)
  check_steps(xs.shape, xs.shape[0] if xs.ndim else 0)
  check_params(cell.project, params)
  check_weights(parts_of(cell), params)
  check_leaves(params=params, state=state)
  params = as_arrays(params)
  if is_token(xs) and not getattr(cell, "takes_tokens", False):
    raise ValueError(
      f"xs must be floats, since this cell takes no tokens, got {xs.dtype}"
    )
  if state is None:
    batch_shape = xs.shape[1:] if is_token(xs) else xs.shape[1:-1]
    state = cell.initial_state(params, batch_shape)
  state = as_arrays(state)
  check_inputs("xs", cell.initial_state, params, state, xs, xs.shape[:1])
  return state


def combined_mask(
  mask: Any, lengths: Any, step_shape: tuple[int, ...]
) -> jax.Array | None:
  """Return mask and lengths as one mask [T, ...]; None if both are None.

  Args:
    mask: bool [T, ...], or None.
    lengths: integers [...], or None.
    step_shape: the shape [T, ...].

  Raises:
    ValueError: mask or lengths has another shape or dtype.
  """
  if mask is not None:
    mask = bool_array("mask", mask, step_shape)
  if lengths is None:
    return mask
  shape = step_shape[1:]
  expected = f"lengths must be integers {list(shape)}"
  lengths = as_array(expected, _within_int32(lengths))
  if lengths.shape != shape or not is_token(lengths):
    raise ValueError(  # with the hint if they are [T] in place of [B]
      f"{expected}, got {lengths.dtype} {lengths.shape}"
      + time_major_hint(lengths.shape == step_shape[:1] != shape)
    )
  if lengths.dtype.itemsize < 4:  # T may not fit the caller's dtype
    lengths = lengths.astype(jnp.int32)
  steps = jnp.arange(step_shape[0], dtype=lengths.dtype)
  steps = steps.reshape(-1, *(1 for _ in step_shape[1:]))
  within = steps < lengths[None]
  return within if mask is None else mask & within


def _within_int32(lengths: Any) -> Any:
  """Return integers of NumPy or Python clipped to int32, others unchanged.

  Without `jax_enable_x64`, JAX would take an array of NumPy modulo 2³², and
  raise OverflowError for Python's integers.
  """
  least, most = np.iinfo(np.int32).min, np.iinfo(np.int32).max
  if type(lengths) is np.ndarray and lengths.dtype.kind in "iu":
    if lengths.dtype.itemsize < 4:
      return lengths
    return lengths.clip(least if lengths.dtype.kind == "i" else 0, most)
  if isinstance(lengths, list | tuple) and not lengths:  # JAX makes floats
    return np.zeros(0, np.int32)
  if not all(map(is_integer, jax.tree.leaves(lengths))):
    return lengths
  return jax.tree.map(lambda n: min(max(int(n), least), most), lengths)


def bool_array(
  name: str, values: Any, step_shape: tuple[int, ...]
) -> jax.Array:
  """Return values as a JAX array, bool [T, ...].

  Args:
    name: what the error message calls them.
    values: any array.
    step_shape: the shape [T, ...].

  Raises:
    ValueError: they have another shape or dtype.
  """
  expected = f"{name} must be bool {list(step_shape)}"
  values = as_array(expected, values)
  if values.shape != step_shape or values.dtype != bool:
    exchanged = *step_shape[1::-1], *step_shape[2:]  # [B, T, ...]
    raise ValueError(
      f"{expected}, got {values.dtype} {values.shape}"
      + time_major_hint(values.shape == exchanged != step_shape)
    )
  return values


def zoneout_rates(
  rates: State, state: State, step_shape: tuple[int, ...]
) -> State:
  """Return zoneout's shares with a time axis, [T, ...], for every field.

  They may be bool, as `regularize.zoneout` draws them: True where a unit keeps
  its value.

  Raises:
    ValueError: they are not of the state's type, or of another shape.
  """
  check_same_type("zoneout", rates, state)
  return type(rates)(
    *(
      with_time_axis(f"zoneout.{name}", rate, field, step_shape)
      for name, rate, field in zip(rates._fields, rates, state, strict=True)
    )
  )


def dropout_factors(
  factors: Any, h: jax.Array, step_shape: tuple[int, ...]
) -> jax.Array:
  """Return state dropout's factors of h with a time axis, [T, ...].

  Raises:
    ValueError: they are one number, such as a rate, or of another shape.
  """
  shape = axes_text((step_shape[0], *h.shape))
  factors = as_array(f"state_dropout must broadcast to {shape}", factors)
  if not factors.ndim:
    raise ValueError(
      "state_dropout must be an array of factors, such as regularize.factors "
      "returns, got one number; a rate is not a factor"
    )
  return with_time_axis("state_dropout", factors, h, step_shape)


def with_time_axis(
  name: str, x: Any, field: jax.Array, step_shape: tuple[int, ...]
) -> jax.Array:
  """Return x with the rank of [T, ..., K], repeated along T for a scan.

  Args:
    name: what the error message calls x.
    x: any array that broadcasts to [T, ..., K].
    field: the array of the state that x is applied to, [..., K]; K stands for
      any axes after those of the batch.
    step_shape: the shape [T, ...].

  Raises:
    ValueError: x is complex, or does not broadcast to that shape.
  """
  shape = step_shape[0], *field.shape
  x = broadcastable(name, x, shape)
  padded = (1,) * (len(shape) - x.ndim) + x.shape
  return jnp.broadcast_to(x.reshape(padded), (step_shape[0], *padded[1:]))


def zero_masked(mask: jax.Array, x: jax.Array) -> jax.Array:
  """Return x [T, ...] or [T, ..., K] with zeros where the mask is False."""
  mask = mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim))
  return jnp.where(mask, x, jnp.zeros((), x.dtype))
