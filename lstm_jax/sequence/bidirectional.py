"""Two directions: one cell reads a sequence forward, another reads it backward.

  →hₜ = cell(→θ, →sₜ₋₁, xₜ)     ←hₜ = cell(←θ, ←sₜ₊₁, xₜ)     hₜ = [→hₜ, ←hₜ]

With lengths, the backward cell starts at each row's own last step.

References: Schuster and Paliwal (1997), Bidirectional recurrent neural
networks; Graves and Schmidhuber (2005) for LSTMs.
"""

from typing import Any, Literal, NamedTuple, Unpack

import jax
import jax.numpy as jnp

from lstm_jax.cells.cell import Cell
from lstm_jax.cells.serialization import serializable
from lstm_jax.sequence._unroll import UnrollOptions, unroll


@serializable
class Directions(NamedTuple):
  """A pair of weights, states, zoneout or dropout, one per direction."""

  forward: Any
  backward: Any


def unroll_both(
  cell: Cell,
  params: Directions,
  states: Directions | None,
  xs: jax.Array,
  *,
  merge: Literal["concat", "sum"] = "concat",
  zoneout: Directions | None = None,
  state_dropout: Directions | None = None,
  **options: Unpack[UnrollOptions],
) -> tuple[Directions, jax.Array]:
  """Unroll a cell over a sequence in both directions.

  Args:
    cell: the cell of both directions.
    params: the weights of each direction.
    states: the state of each direction before its first step, which for the
      backward direction is the last of the sequence; None for zero states.
    xs: inputs or tokens, as in `unroll`.
    merge: how the two outputs of a time step are merged: "concat" for
      [..., 2H], "sum" for their sum.
    zoneout: as in `unroll`, for each direction; None for none.
    state_dropout: as in `unroll`, for each direction; None for none.
    **options: mask, lengths, reset, time_major, adjoint, compute_dtype and
      implementation, as in `unroll`, for both directions.

  Returns:
    (states, hs): the state of each direction after its last step, and the
    outputs.

  Raises:
    ValueError: `merge` is neither of the two, or `unroll` raises it for a
      direction, such as for zoneout beside implementation="mosaic_gpu".
  """
  if merge not in ("concat", "sum"):
    raise ValueError(f"merge must be concat or sum, got {merge!r}")
  nothing = Directions(None, None)
  arguments = zip(
    params,
    states or nothing,
    zoneout or nothing,
    state_dropout or nothing,
    (False, True),
    strict=True,
  )
  (last, hs), (last_backward, hs_backward) = (
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
    for weights, state, rates, factor, reverse in arguments
  )
  if merge == "sum":
    hs = hs + hs_backward
  else:
    hs = jnp.concatenate([hs, hs_backward], axis=-1)
  return Directions(last, last_backward), hs
