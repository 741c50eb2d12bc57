"""Layers on top of each other: the outputs of one are the inputs of the next.

  h⁰ₜ = xₜ,   hˡₜ = cell(θˡ, sˡₜ₋₁, hˡ⁻¹ₜ)   for l = 1 … L

Layer by layer, each over the whole sequence, so that every layer keeps the one
large input product of `unroll`.
"""

import jax
import jax.numpy as jnp

from lstm_jax.cells.cell import Cell, Params, State
from lstm_jax.sequence.unroll import Rule, unroll


def unroll_stack(
  cell: Cell,
  params: tuple[Params, ...],
  states: tuple[State, ...],
  xs: jax.Array,
  *,
  vjp: Rule = "explicit",
  compute_dtype: jnp.dtype | None = None,
) -> tuple[tuple[State, ...], jax.Array]:
  """Unroll one layer for each of `params`, the lowest first.

  Args:
    cell: the cell of every layer.
    params: the layers' weights; sizes may differ from layer to layer.
    states: the layers' states before the first step.
    xs: inputs of the lowest layer, [T, ..., D], or tokens [T, ...].
    vjp: whose gradient, as in `unroll`.
    compute_dtype: of the products' operands, as in `unroll`.

  Returns:
    (states, hs): every layer's last state, and the top layer's outputs.

  Raises:
    ValueError: there is no layer, or not one state a layer, or `unroll`
      refuses a layer.
  """
  if not params or len(params) != len(states):
    raise ValueError(
      "a stack needs at least one layer and one state a layer, "
      f"got {len(params)} layers and {len(states)} states"
    )
  last = []
  for layer, state in zip(params, states, strict=True):
    state, xs = unroll(
      cell, layer, state, xs, vjp=vjp, compute_dtype=compute_dtype
    )
    last.append(state)
  return tuple(last), xs
