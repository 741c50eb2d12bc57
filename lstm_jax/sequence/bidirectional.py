"""Two directions: one cell reads a sequence forward, another reads it backward.

  →hₜ = cell(→θ, →sₜ₋₁, xₜ)     ←hₜ = cell(←θ, ←sₜ₊₁, xₜ)     hₜ = [→hₜ, ←hₜ]

With lengths, the backward cell starts at each row's own last step. Resets
divide a row into segments: →sₜ₋₁ is 0 where step t is reset, and ←sₜ₊₁ is 0
where the first unmasked step after t is reset. So nothing passes from one
segment to another in either direction.

References: Schuster and Paliwal (1997), Bidirectional recurrent neural
networks; Graves and Schmidhuber (2005) for LSTMs.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, Generic, Literal, NamedTuple, TypeVar, Unpack

import jax
import jax.numpy as jnp
from jax import lax

from lstm_jax.cells.affine import is_token
from lstm_jax.cells.cell import Cell, ParamsT, StateT
from lstm_jax.cells.mesh import auto_sharded, leading_sharding, vary_alike
from lstm_jax.cells.platform import compiled
from lstm_jax.cells.serialization import serializable
from lstm_jax.sequence._unroll import UnrollOptions, unroll
from lstm_jax.sequence.arguments import (
  as_inputs,
  bool_array,
  check_steps,
  combined_mask,
  exchange_axes,
)

ValueT = TypeVar("ValueT", covariant=True)  # of one direction


@serializable
class Directions(NamedTuple, Generic[ValueT]):
  """A pair, one value per direction: weights, states, zoneout or dropout."""

  forward: ValueT
  backward: ValueT


def unroll_both(
  cell: Cell[ParamsT, StateT],
  params: Directions[ParamsT],
  states: Directions[StateT | None] | None,
  xs: jax.Array,
  *,
  merge: Literal["concat", "sum"] = "concat",
  zoneout: Directions[StateT | None] | None = None,
  state_dropout: Directions[jax.Array | None] | None = None,
  **options: Unpack[UnrollOptions],
) -> tuple[Directions[StateT], jax.Array]:
  """Unroll a cell over a sequence in both directions.

  Args:
    cell: the cell of both directions.
    params: the weights of each direction.
    states: the state of each direction before its first step, which for the
      backward direction is the last step of the sequence; None for zero
      states.
    xs: inputs or tokens, as in `unroll`.
    merge: how the two outputs of a time step are merged: "concat" for
      [..., 2H], "sum" for their sum.
    zoneout: as in `unroll`, for each direction; None for no zoneout.
    state_dropout: as in `unroll`, for each direction; None for no dropout.
    **options: mask, lengths, reset, time_major, adjoint, compute_dtype and
      implementation, as in `unroll`, for both directions. `reset` is True at
      the first step of each segment; the backward direction starts from the
      zero state at each segment's last step.

  Returns:
    (states, hs): the state of each direction after its last step, and the
    outputs, [T, ..., 2H], or [T, ..., H] with merge="sum".

  Raises:
    TypeError: an option is not one of those above, or `unroll` raises it.
    ValueError: `merge` is neither of the two, or "sum" where the outputs differ
      in size; params, states, zoneout or state_dropout are not a pair, one
      for each direction; or `unroll` raises it for a direction, such as for
      zoneout beside implementation="mosaic_gpu".
  """
  check_options("unroll_both", options)
  if merge not in ("concat", "sum"):
    raise ValueError(f"merge must be concat or sum, got {merge!r}")
  time_major = options.pop("time_major", True)
  mask, lengths = options.get("mask"), options.get("lengths")
  reset = options.pop("reset", None)
  if not time_major:
    xs, mask, reset = exchange_axes(xs, mask, reset)
    options["mask"] = mask
  resets: Directions[jax.Array | None] = Directions(None, None)
  if reset is not None:
    xs = as_inputs(xs)
    check_steps(xs.shape, xs.shape[0] if xs.ndim else 0)
    resets = Directions(reset, reset)
    if is_token(xs) or xs.ndim > 1:  # else `unroll` names xs
      step_shape = xs.shape if is_token(xs) else xs.shape[:-1]
      reset = bool_array("reset", reset, step_shape)
      mask = combined_mask(mask, lengths, step_shape)
      resets = Directions(reset, last_steps(reset, mask))
  outputs = []
  for weights, state, rates, factor, starts, reverse in zip(
    _pair("params", params),
    _pair("states", states),
    _pair("zoneout", zoneout),
    _pair("state_dropout", state_dropout),
    resets,
    (False, True),
    strict=True,
  ):
    options["reset"] = starts
    outputs.append(
      unroll(
        cell,
        weights,
        state,
        xs,
        zoneout=rates,
        state_dropout=factor,
        reverse=reverse,
        **options,
      )
    )
  (last, hs), (last_backward, hs_backward) = outputs
  if merge == "sum":
    if hs.shape != hs_backward.shape:
      raise ValueError(
        "merge='sum' needs outputs of one size, "
        f"got {hs.shape[-1]} and {hs_backward.shape[-1]}"
      )
    hs = hs + hs_backward
  else:
    hs = jnp.concatenate([hs, hs_backward], axis=-1)
  hs = hs if time_major else jnp.swapaxes(hs, 0, 1)
  return Directions(last, last_backward), hs


def check_options(function: str, options: Mapping[str, Any]) -> None:
  """Raise TypeError unless all options are those of `UnrollOptions`."""
  for name in sorted(options.keys() - UnrollOptions.__annotations__.keys()):
    raise TypeError(f"{function}() got an unexpected keyword argument {name!r}")


def _pair(name: str, pair: Any) -> tuple[Any, Any]:
  """Return the value of each direction; None for both if the pair is None.

  Raises:
    ValueError: the pair is neither None nor two values; its name begins the
      message.
  """
  if pair is None:
    return None, None
  # A state such as LSTMState(h, c) is a tuple of two as well.
  is_state = hasattr(pair, "_fields") and not isinstance(pair, Directions)
  if not isinstance(pair, tuple) or len(pair) != 2 or is_state:
    fields = f" of {len(pair)}" if isinstance(pair, tuple) else ""
    raise ValueError(
      f"{name} must be Directions(forward, backward), "
      f"got {type(pair).__name__}{fields}"
    )
  return pair


@partial(compiled, num_static=0)
def last_steps(reset: jax.Array, mask: jax.Array | None) -> jax.Array:
  """Return for each step whether the next unmasked step is reset, [T, ...].

  Args:
    reset: bool [T, ...].
    mask: bool [T, ...], False where a step is masked; None if none is.
  """
  if mask is None:
    return jnp.concatenate([reset[1:], jnp.zeros_like(reset[:1])])

  def body(following, step):
    starts, counts = step  # whether it is reset, and whether it is unmasked
    return jnp.where(counts, starts, following), following

  def scan(reset, mask):
    none = jnp.zeros_like(reset[0])
    return lax.scan(body, none, (reset, mask), reverse=True)[1]

  reset, mask = vary_alike((reset, mask))
  # Each may be the only one that is sharded.
  placed = reset if any(jax.typeof(reset).sharding.spec) else mask
  sharding = leading_sharding(placed, placed.ndim)
  return auto_sharded(scan, sharding)(reset, mask)
