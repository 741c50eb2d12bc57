"""A whole sequence as one scan, with its gradient derived by hand.

Forward, for t = 1 … T               Backward, for t = T … 1
  axₜ = project(xₜ)  (all t at once)   dhₜ ← dhₜ + (cotangent of the output hₜ)
  sₜ, rₜ = recur(sₜ₋₁, axₜ)             dsₜ₋₁, daₜ = recur_backward(rₜ, dsₜ)
                                       dW, db, dx from all daₜ at once

with sₜ the state after step t, of which hₜ is a part, dsₜ and dhₜ their
cotangents, axₜ the projected input (xₜ W_x, for most cells), rₜ the gates and
residuals of step t, and daₜ the cotangent of the pre-activations aₜ, which is
also that of axₜ. In place of gates, a cell may save local gradients, the
derivatives of sₜ with respect to aₜ. The forward scan computes only what
depends on the state, and the backward scan carries only the cotangent of the
state. The input product, each weight gradient and the cotangent of the inputs
are one product each, over all T·B rows. Autodiff of a scan computes all of
these at every step, and accumulates the weight gradients in the carry of the
scan. Two cells differ: mogrifier_lstm multiplies the inputs and computes their
cotangent at every step, so that xₜ takes the place of axₜ and of the gates, and
dxₜ that of daₜ; and layernorm_lstm computes the input product a second time in
the backward.

Array elements saved for the backward: all rₜ and hs, which is T·B·H times

  rnn 2              lstm 6             projected_lstm 6 + P/H
  coupled_lstm 5     gru 6              peephole_lstm 7
  slstm 7            min_lstm 4         layernorm_lstm 11 + 2/H
  min_gru 3          lru 3              gru_reset_before 6
  mogrifier_lstm 9 + 4 D/H

with P the size of the projection, and 5 rounds of a Mogrifier. Resets or state
dropout add 1 (P/H for projected_lstm), the h that enters each step. With a
mask, hs is an array of its own beside the outputs of `unroll`, which are 0 at
masked steps; without a mask, hs is those outputs. Inputs of the scan (xs,
masks, factors) are not counted. The largest array exists only once: at every
step, the gates (or local gradients) overwrite axₜ, and later daₜ overwrites
them (not in sequences of a few steps, nor where several gradients share the
forward: `in_place`). The three linear recurrences (min_gru, min_lstm, lru) have
no such loop, and allocate new arrays instead.

The backward allocates more, again times T·B·H: 1 for a copy of hs, shifted by
one step (P/H in projected_lstm); P/H for dh' in projected_lstm; 3 for the
cotangent of h W_h in the GRU, where it is not daₜ; 1 for r ⊙ h in
gru_reset_before; up to 17 for the normalised products and their cotangents in
the layer-normalised LSTM, not all at the same time; and 8 + 6 D/H for the
operands and the cotangents of all products in the Mogrifier.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax

from lstm_jax.cells.affine import is_token
from lstm_jax.cells.cell import Cell, Params, State
from lstm_jax.cells.platform import compiled, is_cpu
from lstm_jax.cells.precision import cast_like, upcast
from lstm_jax.sequence import linear
from lstm_jax.sequence.batch_axes import aligned
from lstm_jax.sequence.in_place import scan_in_place
from lstm_jax.sequence.joined import separate
from lstm_jax.sequence.linear import is_linear, states_before
from lstm_jax.sequence.primal import (
  ScanOptions,
  cast_operands,
  scan_outputs,
  scan_steps,
  step_of_parts,
)

# With more rows T·B, x W_x of all rows does not fit into a CPU's cache: a chunk
# of time steps at a time was faster with H 128 to 512 (`sequence.chunk_size`).
MANY_ROWS = 8192


class SequenceResiduals(NamedTuple):
  """What the forward of a sequence saves for its backward."""

  params: Params
  state: State  # before the first step
  xs: jax.Array  # [T, ..., D] or tokens [T, ...]
  extras: tuple  # further arguments of a wrapped cell's steps, each [T, ...]
  gates: jax.Array  # [T, ..., G·H], or local gradients
  hs_and_residuals: Any  # (hs, residuals of `recur`), [T, ...], or a `Joined`


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def scan_sequence(
  cell: Cell,
  options: ScanOptions,
  params: Params,
  state: State,
  xs: jax.Array,
  extras: tuple,
) -> tuple[State, jax.Array]:
  """Return (state, hs) of a sequence, with the gradient of this module.

  Args:
    cell: the cell.
    options: the compute dtype and the direction.
    params: the weights.
    state: the state before the first step.
    xs: inputs [T, ..., D] or tokens [T, ...], T ≥ 1.
    extras: further arguments of a wrapped cell's steps, each [T, ...].

  Returns:
    (the last state, hs [T, ..., H]).
  """
  # This body runs where nothing is differentiated; else `forward` does.
  inputs = params, state, xs, extras
  if projects_first(state, xs) or is_linear(cell):
    last, hs = scan_outputs(cell, options, *inputs)
  else:
    last, hs = scan_steps(step_of_parts(cell), options, *inputs)
  # Under `vmap`, its axis comes first in the state, and after time in hs.
  return aligned(last, 0, inputs), aligned(hs, 1, inputs)


def num_rows(state: State, xs: jax.Array) -> int | None:
  """Return T·B, the rows of a sequence; None if T or B is symbolic."""
  steps, rows = xs.shape[0], math.prod(state.h.shape[:-1])
  static = isinstance(steps, int) and isinstance(rows, int)
  return steps * rows if static else None


def projects_first(state: State, xs: jax.Array) -> bool:
  """Return whether x W_x should come before the loop if nothing is saved.

  Outputs without gradients are then faster on a CPU, with jax 0.12 or later,
  vector inputs and few rows (more than MANY_ROWS exceed the cache). With
  tokens, to read a row of W_x at each step is faster than to read all rows
  first. In jax 0.10, XLA fuses a GRU's time step to one loop that is not
  vectorized if it also reads x W_x from an array of all steps: with H 128 it
  takes 4.8 ms instead of 2.3.
  """
  rows = num_rows(state, xs)
  few = rows is not None and rows <= MANY_ROWS
  new = jax.__version_info__ >= (0, 12)
  return is_cpu() and few and not is_token(xs) and new


def forward(
  cell: Cell,
  options: ScanOptions,
  params: Params,
  state: State,
  xs: jax.Array,
  extras: tuple,
  like: State | None = None,
) -> tuple[tuple[State, jax.Array], SequenceResiduals]:
  """Return (state, hs), and the residuals for the backward.

  Its arguments are those of `scan_outputs`. In a linear recurrence, hs and the
  states from which `recur` computes the residuals get the dtypes of `like`.
  """
  operands = cast_operands(params, xs, options)

  def body(operands, state, ax, extra):
    state, gates, residuals = cell.recur(operands, state, ax, *extra)
    return state, gates, (state.h, residuals)

  axs = cell.project(operands, xs)
  if is_linear(cell):
    last, gates, hs_and_residuals = linear.forward(
      cell, operands, state, axs, extras, options.reverse, like or state
    )
  else:
    last, gates, hs_and_residuals = scan_in_place(
      body, operands, state, axs, extras, options.reverse
    )
  hs = separate(hs_and_residuals[0])
  inputs = params, state, xs, extras
  saved = SequenceResiduals(*inputs, gates, hs_and_residuals)
  return (aligned(last, 0, inputs), aligned(hs, 1, inputs)), saved


def backward(
  cell: Cell,
  options: ScanOptions,
  saved: SequenceResiduals,
  cotangents: tuple[State, jax.Array],
) -> tuple[Params, State, Any, None]:
  """Return the cotangents of params, the initial state and xs, and None.

  The None is for the extras, which are constants.
  """
  d_params, d_state, dxs = backward_sums(cell, options, saved, cotangents)
  like = saved.params, saved.state
  return *cast_like((d_params, d_state), like), dxs, None


def backward_sums(
  cell: Cell,
  options: ScanOptions,
  saved: SequenceResiduals,
  cotangents: tuple[State, jax.Array],
) -> tuple[Params, State, jax.Array | None]:
  """Return the cotangents of params, the initial state, and xs.

  The first two are still in the accumulation dtype.
  """
  params, state, xs, extras, gates, hs_and_residuals = saved
  residuals = hs_and_residuals[1]
  operands = cast_operands(params, xs, options)
  d_last, dhs = cotangents

  def body(operands, d_state, gates, inputs):
    residuals, dh, extra = inputs
    residuals = separate(residuals)
    d_after = d_state._replace(h=d_state.h + dh.astype(d_state.h.dtype))
    d_before, da, *extra_cotangents = cell.recur_backward(
      operands, gates, residuals, d_after, *extra
    )
    return cast_like(d_before, d_state), da, extra_cotangents

  # The carry is upcast: in bfloat16, T roundings of it would add up.
  d_last = upcast(d_last)
  if is_linear(cell):
    d_state, das, ys = linear.backward(
      cell, operands, d_last, gates, residuals, dhs, extras, options.reverse
    )
  else:
    inputs = residuals, dhs, extras
    d_state, das, ys = scan_in_place(
      body,
      operands,
      d_last,
      gates,
      inputs,
      not options.reverse,
      may_share=True,  # the gates, by the rows of a Jacobian (`jacrev`)
    )
  hs = separate(hs_and_residuals[0])
  hs_before = states_before(state.h, hs, options.reverse)
  # ys are the extra cotangents, of all time steps.
  d_params, dxs = cell.parameter_gradients(
    operands, xs, hs_before, separate(residuals), das, *separate(ys)
  )
  return d_params, d_state, None if dxs is None else dxs.astype(xs.dtype)


scan_sequence.defvjp(forward, compiled(backward, num_static=2))
