"""Gradient checkpointing over time: a sequence as chunks of time steps.

Array elements saved for the backward, for chunks of C time steps, a state of S
vectors (2 for the LSTM), and R elements per unit and time step in the backward
of a whole sequence (the table of `scan`):

  residuals    saved        the backward of a chunk
  "gates"      B·H·S·T/C    runs its steps forward again
  "recompute"  B·H·S·T      recomputes its gates from its states, in no loop

Both need R·C·B·H more for the current chunk, besides the inputs, the outputs
and their cotangents. "gates" needs least memory at C = √(S·T/R), where it grows
as √T. It costs a second forward pass, about a third of a training step's
products. The states of "recompute" include the outputs, which are in memory
anyway. As all states of a chunk are known, one call computes all C steps,

  gates of C steps = recur(the states before them, xs W_x)

whose product h W_h has C·B rows, and is as fast as the product of the inputs.

A function exported with a symbolic T (`jax.export`) has whole chunks alone: the
last one is filled with masked steps, unless T is a multiple of C by its form,
such as 32·n.

Reference: Chen, Xu, Zhang and Guestrin (2016), Training deep nets with
sublinear memory cost.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lstm_jax.cells.cell import Cell, Params, State
from lstm_jax.cells.precision import cast_like, upcast
from lstm_jax.sequence.adjoint import ResidualPolicy
from lstm_jax.sequence.scan import (
  ScanOptions,
  SequenceResiduals,
  backward,
  before_steps,
  cast_operands,
  forward,
  forward_step,
  scan_sequence,
  scan_states,
  scan_steps,
)
from lstm_jax.sequence.wrappers import masked

ROWS = 1024  # rows with which a matrix product runs at full speed
SYMBOLIC = 32  # C where T or B is symbolic: 1,024 rows at B 32


def scan_checkpointed(
  cell: Cell,
  options: ScanOptions,
  policy: ResidualPolicy,
  chunk: int | None,
  params: Params,
  state: State,
  xs: jax.Array,
  extras: tuple,
) -> tuple[State, jax.Array]:
  """Return (state, hs) as `scan_sequence`, with less memory in its backward.

  Args:
    cell: the cell.
    options: the compute dtype and the direction.
    policy: what is saved, "gates" or "recompute".
    chunk: C, time steps per chunk; None for products of 1,024 rows, or for 32
      time steps if T or B is symbolic.
    params: the weights.
    state: the state before the first step.
    xs: inputs [T, ..., D] or tokens [T, ...].
    extras: further arguments of a wrapped cell's steps, each [T, ...].
  """
  steps, rows = xs.shape[0], math.prod(state.h.shape[:-1])
  if chunk is None:
    static = isinstance(steps, int) and isinstance(rows, int)
    chunk = -(-ROWS // max(1, rows)) if static else SYMBOLIC
  if not isinstance(steps, int):
    return _scan_filled(cell, options, policy, chunk, params, state, xs, extras)
  if chunk >= steps and policy == "gates":
    return scan_sequence(cell, options, params, state, xs, extras)
  chunk = min(chunk, steps)
  cut = steps - steps % chunk  # the steps after it are less than a chunk

  def full_chunks(state):
    inputs = jax.tree.map(lambda x: x[:cut], (xs, extras))
    return _scan_chunks(cell, options, chunk, policy, params, state, *inputs)

  def rest(state):
    inputs = jax.tree.map(lambda x: x[cut:], (xs, extras))
    return scan_sequence(cell, options, params, state, *inputs)

  if cut == steps:
    return full_chunks(state)
  if options.reverse:
    state, hs_rest = rest(state)
    state, hs = full_chunks(state)
  else:
    state, hs = full_chunks(state)
    state, hs_rest = rest(state)
  return state, jnp.concatenate([hs, hs_rest])


def _scan_filled(
  cell: Cell,
  options: ScanOptions,
  policy: ResidualPolicy,
  chunk: int,
  params: Params,
  state: State,
  xs: jax.Array,
  extras: tuple,
) -> tuple[State, jax.Array]:
  """Return (state, hs), with the last chunk filled by masked steps."""
  steps = xs.shape[0]
  missing = ((steps - 1) // chunk + 1) * chunk - steps
  if not (isinstance(missing, int) and missing == 0):

    def filled(x):
      zeros = jnp.zeros((missing, *x.shape[1:]), x.dtype)
      return jnp.concatenate([x, zeros])

    real = jnp.ones((steps, *state.h.shape[:-1]), bool)
    cell = masked(cell)
    xs, *extras = jax.tree.map(filled, (xs, real, *extras))
  state, hs = _scan_chunks(
    cell, options, chunk, policy, params, state, xs, tuple(extras)
  )
  return state, hs[:steps]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _scan_chunks(
  cell: Cell,
  options: ScanOptions,
  chunk: int,
  policy: ResidualPolicy,
  params: Params,
  state: State,
  xs: jax.Array,
  extras: tuple,
) -> tuple[State, jax.Array]:
  """Return (state, hs) of a sequence whose T is a multiple of `chunk`."""
  return scan_steps(forward_step(cell), options, params, state, xs, extras)


def _chunks_forward(cell, options, chunk, policy, params, state, xs, extras):
  def body(state, inputs):
    last, after = scan_states(cell, options, params, state, *inputs)
    return last, (state, after if policy == "recompute" else after.h)

  inputs = _split((xs, extras), chunk)
  last, (starts, after) = lax.scan(body, state, inputs, reverse=options.reverse)
  hs = after.h if policy == "recompute" else after
  return (last, _joined(hs)), (params, starts, after, xs, extras)


def _chunks_backward(cell, options, chunk, policy, saved, cotangents):
  params, starts, after, xs, extras = saved
  d_last, dhs = cotangents

  def body(carry, inputs):
    d_params, d_state = carry
    start, after, dhs, xs, extras = inputs
    if policy == "recompute":
      residuals = _recompute(cell, options, params, start, after, xs, extras)
    else:
      _, residuals = forward(cell, options, params, start, xs, extras)
    d_params_chunk, d_state, dxs, _ = backward(
      cell, options, residuals, (d_state, dhs)
    )
    d_params = jax.tree.map(jnp.add, d_params, upcast(d_params_chunk))
    return (d_params, d_state), dxs

  zeros = upcast(jax.tree.map(jnp.zeros_like, params))
  inputs = (starts, after, *_split((dhs, xs, extras), chunk))
  (d_params, d_state), dxs = lax.scan(
    body, (zeros, d_last), inputs, reverse=not options.reverse
  )
  dxs = None if dxs is None else _joined(dxs)
  return cast_like(d_params, params), d_state, dxs, None


_scan_chunks.defvjp(_chunks_forward, _chunks_backward)


def _recompute(
  cell, options, params, start, after, xs, extras
) -> SequenceResiduals:
  """Return the residuals of a chunk, from the state after each of its steps."""
  operands = cast_operands(params, xs, options)
  before = jax.tree.map(
    lambda first, states: before_steps(first, states, options), start, after
  )
  axs = cell.project(operands, xs)
  _, gates, residuals = cell.recur(operands, before, axs, *extras)
  return SequenceResiduals(
    params, start, xs, extras, gates, (after.h, residuals)
  )


def _split(tree: Any, chunk: int) -> Any:
  """Return arrays [T, ...] as [T / chunk, chunk, ...]."""
  return jax.tree.map(
    lambda x: x.reshape(x.shape[0] // chunk, chunk, *x.shape[1:]), tree
  )


def _joined(x: jax.Array) -> jax.Array:
  """Return an array [T / chunk, chunk, ...] as [T, ...]."""
  return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])
