"""Layers on top of each other: the outputs of one are the inputs of the next.

  h⁰ₜ = xₜ,   hˡₜ = cell(θˡ, sˡₜ₋₁, hˡ⁻¹ₜ)   for l = 1 … L

Layer by layer, each over the whole sequence, so that every layer keeps the one
large input product of `unroll`. A layer whose weights are `Directions` is read
in both, and hands on both outputs.
"""

from typing import Any

import jax
import jax.numpy as jnp

from lstm_jax.cells.affine import is_token
from lstm_jax.cells.cell import Cell, Params, State
from lstm_jax.sequence import regularize
from lstm_jax.sequence._unroll import Rule, exchange_axes, unroll
from lstm_jax.sequence.bidirectional import NEITHER, Directions, unroll_both
from lstm_jax.sequence.checkpointing import Policy


def unroll_stack(
  cell: Cell,
  params: tuple[Params | Directions, ...],
  states: tuple[State | Directions, ...],
  xs: jax.Array,
  *,
  dropout: float = 0.0,
  locked: bool = False,
  key: jax.Array | None = None,
  skip: bool = False,
  mask: jax.Array | None = None,
  lengths: jax.Array | None = None,
  reset: jax.Array | None = None,
  zoneout: tuple | None = None,
  state_dropout: tuple | None = None,
  time_major: bool = True,
  residuals: Policy = "gates",
  chunk: int | None = None,
  vjp: Rule = "explicit",
  compute_dtype: jnp.dtype | None = None,
) -> tuple[tuple[State | Directions, ...], jax.Array]:
  """Unroll one layer for each of `params`, the lowest first.

  Args:
    cell: the cell of every layer.
    params: the layers' weights; sizes may differ from layer to layer. Those of
      a bidirectional layer are `Directions`, and the next has D = 2H.
    states: the layers' states before the first step.
    xs: inputs of the lowest layer, [T, ..., D], or tokens [T, ...].
    dropout: rate at which units between layers are dropped.
    locked: drop the same units at every step (variational dropout).
    key: draws the dropout; needed where its rate is not 0.
    skip: add a layer's inputs to its outputs, wherever both have one size.
    mask: as in `unroll`, for every layer; so are all that follow.
    lengths: of each row.
    reset: before a step.
    zoneout: what each layer's steps keep, one for each layer, `Directions` for
      a bidirectional one; None for a layer that keeps nothing.
    state_dropout: a factor of each layer's h, likewise.
    time_major: False for the axes T and B exchanged.
    residuals: what is kept for the backward.
    chunk: steps a chunk.
    vjp: whose gradient.
    compute_dtype: of the products' operands.

  Returns:
    (states, hs): every layer's last state, and the top layer's outputs.

  Raises:
    ValueError: there is no layer, or not one state, zoneout or state dropout a
      layer; dropout lacks a key, or its rate is not in [0, 1); or `unroll`
      refuses a layer.
  """
  if not params or len(params) != len(states):
    raise ValueError(
      "a stack needs at least one layer and one state a layer, "
      f"got {len(params)} layers and {len(states)} states"
    )
  kept = _a_layer("zoneout", zoneout, params)
  dropped = _a_layer("state_dropout", state_dropout, params)
  if dropout and key is None:
    raise ValueError(f"dropout needs a key, got a rate of {dropout} and None")
  if not time_major:
    xs, mask, reset = exchange_axes(xs, mask, reset)
  options: dict[str, Any] = {
    "mask": mask,
    "lengths": lengths,
    "reset": reset,
    "residuals": residuals,
    "chunk": chunk,
    "vjp": vjp,
    "compute_dtype": compute_dtype,
  }
  keys: Any = () if key is None else jax.random.split(key, len(params))
  drop = regularize.locked_dropout if locked else regularize.dropout
  last: list[State | Directions] = []
  for layer in zip(params, states, kept, dropped, strict=True):
    weights, state, zoned, factor = layer
    inputs = xs
    if last and dropout:
      inputs = drop(keys[len(last)], xs, dropout)
    read = unroll_both if isinstance(weights, Directions) else unroll
    state, hs = read(
      cell,
      weights,
      state,
      inputs,
      zoneout=zoned,
      state_dropout=factor,
      **options,
    )
    last.append(state)
    joins = skip and not is_token(xs) and hs.shape == xs.shape
    xs = hs + xs if joins else hs
  return tuple(last), xs if time_major else jnp.swapaxes(xs, 0, 1)


def _a_layer(name: str, each: tuple | None, params: tuple) -> tuple:
  """Return one of each for each layer, `NEITHER` of both directions' none."""
  each = (None,) * len(params) if each is None else tuple(each)
  if len(each) != len(params):
    raise ValueError(
      f"{name} must have one element a layer, "
      f"got {len(each)} for {len(params)} layers"
    )
  return tuple(
    NEITHER if x is None and isinstance(weights, Directions) else x
    for x, weights in zip(each, params, strict=True)
  )


def init_stack(
  cell: Cell,
  key: jax.Array,
  input_size: int,
  hidden_sizes: tuple[int, ...],
  *,
  bidirectional: bool = False,
  dtype=jnp.float32,
) -> tuple[Params | Directions, ...]:
  """Return the initial weights of a stack, the lowest layer first.

  Args:
    cell: the cell of every layer.
    key: a typed PRNG key.
    input_size: D of the lowest layer.
    hidden_sizes: H of each layer.
    bidirectional: whether every layer is read in both directions.
    dtype: of every parameter.

  Raises:
    ValueError: there is no layer, or a size is below 1.
  """
  if not hidden_sizes:
    raise ValueError("a stack needs at least one layer, got none")
  layers: list[Params | Directions] = []
  for layer_key, size in zip(
    jax.random.split(key, len(hidden_sizes)), hidden_sizes, strict=True
  ):
    keys = jax.random.split(layer_key) if bidirectional else layer_key[None]
    both = [cell.init(k, input_size, size, dtype) for k in keys]
    layers.append(Directions(*both) if bidirectional else both[0])
    input_size = sum(params.w_h.shape[0] for params in both)
  return tuple(layers)


def initial_stack_state(
  cell: Cell,
  params: tuple[Params | Directions, ...],
  batch_shape: tuple[int, ...] = (),
) -> tuple[State | Directions, ...]:
  """Return the zero states of a stack."""

  def of(weights):
    if isinstance(weights, Directions):
      return Directions(*(cell.initial_state(w, batch_shape) for w in weights))
    return cell.initial_state(weights, batch_shape)

  return tuple(of(weights) for weights in params)
