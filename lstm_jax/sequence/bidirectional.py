"""Two directions: one cell reads a sequence forward, another backward.

  →hₜ = cell(→θ, →sₜ₋₁, xₜ)     ←hₜ = cell(←θ, ←sₜ₊₁, xₜ)     hₜ = [→hₜ, ←hₜ]

With lengths, the backward cell begins at each row's own last step.

References: Schuster and Paliwal (1997), Bidirectional recurrent neural
networks; Graves and Schmidhuber (2005) for LSTMs.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from lstm_jax.cells.cell import Cell
from lstm_jax.sequence._unroll import Rule, unroll
from lstm_jax.sequence.checkpointing import Policy


class Directions(NamedTuple):
  """What the two directions have: weights, states, or what zoneout keeps."""

  forward: Any
  backward: Any


NEITHER = Directions(None, None)


def unroll_both(
  cell: Cell,
  params: Directions,
  states: Directions,
  xs: jax.Array,
  *,
  merge: Literal["concat", "sum"] = "concat",
  mask: jax.Array | None = None,
  lengths: jax.Array | None = None,
  reset: jax.Array | None = None,
  zoneout: Directions = NEITHER,
  state_dropout: Directions = NEITHER,
  time_major: bool = True,
  residuals: Policy = "gates",
  chunk: int | None = None,
  vjp: Rule = "explicit",
  compute_dtype: jnp.dtype | None = None,
) -> tuple[Directions, jax.Array]:
  """Unroll a cell in both directions.

  Args:
    cell: of both directions.
    params: the weights of each.
    states: the states of each: forward's before the first step, backward's
      after the last.
    xs: inputs or tokens, as in `unroll`.
    merge: how the outputs of a step become one: [..., 2H], or their sum.
    mask: as in `unroll`, for both; so are all that follow.
    lengths: of each row.
    reset: before a step, in the direction of reading.
    zoneout: for each direction.
    state_dropout: for each direction.
    time_major: False for the axes T and B exchanged.
    residuals: what is kept for the backward.
    chunk: steps a chunk.
    vjp: whose gradient.
    compute_dtype: of the products' operands.

  Returns:
    (states, hs): forward's last state and backward's first, and the outputs.

  Raises:
    ValueError: `merge` is neither of the two, or `unroll` refuses something.
  """
  if merge not in ("concat", "sum"):
    raise ValueError(f"merge must be concat or sum, got {merge!r}")

  def read(direction: Callable, reverse: bool) -> Any:
    return unroll(
      cell,
      direction(params),
      direction(states),
      xs,
      mask=mask,
      lengths=lengths,
      reset=reset,
      zoneout=direction(zoneout),
      state_dropout=direction(state_dropout),
      time_major=time_major,
      reverse=reverse,
      residuals=residuals,
      chunk=chunk,
      vjp=vjp,
      compute_dtype=compute_dtype,
    )

  forward, hs = read(lambda both: both.forward, False)
  backward, hs_backward = read(lambda both: both.backward, True)
  if merge == "sum":
    hs = hs + hs_backward
  else:
    hs = jnp.concatenate([hs, hs_backward], axis=-1)
  return Directions(forward, backward), hs
