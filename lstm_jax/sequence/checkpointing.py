"""A whole sequence in chunks of time, so that its gradient fits in memory.

What is kept, in numbers, for chunks of C steps, a state of S vectors, and R
numbers a unit and step for the backward of a whole (`whole`):

  residuals    kept         the backward of a chunk
  "gates"      B·H·S·T/C    runs its loop forward again
  "recompute"  B·H·S·T      rebuilds it from its states, without a loop

Both need R·C·B·H more for the chunk at hand, beside the inputs, the outputs and
their cotangents. "gates" is smallest at C = √(S·T/R), where it grows as √T; its
price is one more forward pass, whose products are about a third of all. The
states of "recompute" hold the outputs, which are there anyway. With every state
at hand, C steps are one call,

  k of C steps = recur(the states before them, xs W_x)

whose product h W_h has C·B rows, and is as fast as that of the inputs.

Reference: Chen, Xu, Zhang and Guestrin (2016), Training deep nets with
sublinear memory cost.
"""

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from lstm_jax.cells.cell import Cell, Params, State
from lstm_jax.cells.precision import cast_like, wide
from lstm_jax.sequence.scan import (
  Residuals,
  Way,
  backward,
  before_each,
  by_steps,
  forward,
  operands_of,
  plain,
  states_of,
)

Policy = Literal["gates", "recompute"]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def in_chunks(
  cell: Cell,
  way: Way,
  chunk: int,
  policy: Policy,
  params: Params,
  state: State,
  xs: jax.Array,
  extras: tuple,
) -> tuple[State, jax.Array]:
  """Return what `whole` does; its backward goes from chunk to chunk.

  T must be a multiple of `chunk`.
  """
  return by_steps(plain(cell), way, params, state, xs, extras)


def _chunks_forward(cell, way, chunk, policy, params, state, xs, extras):
  def body(state, inputs):
    last, states = states_of(cell, way, params, state, *inputs)
    return last, (state, states if policy == "recompute" else states.h)

  inputs = _split((xs, extras), chunk)
  last, (starts, after) = lax.scan(body, state, inputs, reverse=way.reverse)
  hs = after.h if policy == "recompute" else after
  return (last, _joined(hs)), (params, starts, after, xs, extras)


def _chunks_backward(cell, way, chunk, policy, residuals, cotangents):
  params, starts, after, xs, extras = residuals
  d_last, dhs = cotangents

  def body(carry, inputs):
    d_params, d_state = carry
    start, after, dhs, xs, extras = inputs
    if policy == "recompute":
      whole = _rebuilt(cell, way, params, start, after, xs, extras)
    else:
      _, whole = forward(cell, way, params, start, xs, extras)
    d_more, d_state, dxs, _ = backward(cell, way, whole, (d_state, dhs))
    return (jax.tree.map(jnp.add, d_params, wide(d_more)), d_state), dxs

  zeros = wide(jax.tree.map(jnp.zeros_like, params))
  inputs = (starts, after, *_split((dhs, xs, extras), chunk))
  (d_params, d_state), dxs = lax.scan(
    body, (zeros, d_last), inputs, reverse=not way.reverse
  )
  dxs = None if dxs is None else _joined(dxs)
  return cast_like(d_params, params), d_state, dxs, None


in_chunks.defvjp(_chunks_forward, _chunks_backward)


def _rebuilt(cell, way, params, start, after, xs, extras) -> Residuals:
  """Return what `forward` keeps of a chunk, from the state after each step."""
  operands = operands_of(params, xs, way)
  before = jax.tree.map(
    lambda first, states: before_each(first, states, way), start, after
  )
  axs = cell.project(operands, xs)
  _, kept, tape = cell.recur(operands, before, axs, *extras)
  return Residuals(params, start, xs, extras, after.h, kept, tape)


def _split(tree: Any, chunk: int) -> Any:
  """Return arrays [T, ...] as [T / chunk, chunk, ...]."""
  return jax.tree.map(lambda x: x.reshape(-1, chunk, *x.shape[1:]), tree)


def _joined(x: jax.Array) -> jax.Array:
  return x.reshape(-1, *x.shape[2:])
