"""A whole sequence in chunks of time, so that its gradient fits in memory.

Only the states between chunks of C steps are kept, T/C of them; the backward
runs each chunk forward again, from the last to the first. Memory, in numbers,
for a state of S vectors and a tape and more of R·B·H a step (`whole`):

  B·H (S·T/C + R·C), smallest at C = √(S·T/R), where it grows as √T

beside the inputs, the outputs and their cotangents, which have T·B·H and T·B·D.
The price is one more forward pass, whose products are about a third of all.

Reference: Chen, Xu, Zhang and Guestrin (2016), Training deep nets with
sublinear memory cost.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lstm_jax.cells.cell import Cell, Params, State
from lstm_jax.cells.precision import cast_like, wide
from lstm_jax.sequence.whole import Way, backward, by_steps, forward, plain


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def in_chunks(
  cell: Cell,
  way: Way,
  chunk: int,
  params: Params,
  state: State,
  xs: jax.Array,
  extras: tuple,
) -> tuple[State, jax.Array]:
  """Return what `whole` does; its backward keeps one state a chunk of steps.

  T must be a multiple of `chunk`.
  """
  return by_steps(plain(cell), way, params, state, xs, extras)


def _chunks_forward(cell, way, chunk, params, state, xs, extras):
  def body(state, inputs):
    last, hs = by_steps(plain(cell), way, params, state, *inputs)
    return last, (state, hs)

  inputs = _split((xs, extras), chunk)
  last, (states, hs) = lax.scan(body, state, inputs, reverse=way.reverse)
  return (last, _joined(hs)), (params, states, xs, extras)


def _chunks_backward(cell, way, chunk, residuals, cotangents):
  params, states, xs, extras = residuals
  d_last, dhs = cotangents

  def body(carry, inputs):
    d_params, d_state = carry
    state, dhs, xs, extras = inputs
    _, kept = forward(cell, way, params, state, xs, extras)
    d_more, d_state, dxs, _ = backward(cell, way, kept, (d_state, dhs))
    return (jax.tree.map(jnp.add, d_params, wide(d_more)), d_state), dxs

  zeros = wide(jax.tree.map(jnp.zeros_like, params))
  inputs = (states, *_split((dhs, xs, extras), chunk))
  (d_params, d_state), dxs = lax.scan(
    body, (zeros, d_last), inputs, reverse=not way.reverse
  )
  dxs = None if dxs is None else _joined(dxs)
  return cast_like(d_params, params), d_state, dxs, None


in_chunks.defvjp(_chunks_forward, _chunks_backward)


def _split(tree: Any, chunk: int) -> Any:
  """Return arrays [T, ...] as [T / chunk, chunk, ...]."""
  return jax.tree.map(lambda x: x.reshape(-1, chunk, *x.shape[1:]), tree)


def _joined(x: jax.Array) -> jax.Array:
  return x.reshape(-1, *x.shape[2:])
