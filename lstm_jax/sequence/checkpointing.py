"""A sequence as chunks of time steps: to save memory, or to stay in the cache.

On a CPU, `scan_in_cache` takes chunks of large sequences (`chunk_size`), and
saves everything as without chunks. The rest is about gradient checkpointing.

Array elements saved for the backward, with chunks of C time steps and a state
of S vectors (2 for the LSTM):

  residuals    saved                      the backward of a chunk
  "gates"      the state before each      runs its steps forward again, and
               chunk, B·H·S·T/C           saves their gates
  "recompute"  the state after each       computes its gates from its states,
               step as well, B·H·S·T      without a loop

The current chunk needs K·C·B·H more: what its steps save (table of `scan`), and
further arrays of its backward. K was measured for the LSTM: about 8, and 16
with "recompute", which has x W_x and h W_h beside the gates. "gates" needs
least memory at C = √(S·T/K), where it grows as √T, and a second forward pass,
about a third of a training step's products. The states of "recompute" include
the outputs, which are in memory anyway. As they are known, one call computes

  gates of C steps = recur(the states before them, xs W_x)

whose product h W_h has C·B rows, and is as fast as the product of the inputs.
Reference: Chen et al. (2016), Training deep nets with sublinear memory cost.

The last chunk may have fewer steps. Then hs and the cotangent of xs are copied
once, to join its part to the others. A function exported with a symbolic T
(`jax.export`) has only whole chunks: the last one is filled with masked steps,
unless T is a multiple of C by its form, such as 32·n.
"""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp

from lstm_jax.cells.cell import Cell, Params, State
from lstm_jax.cells.checks import check_rows
from lstm_jax.cells.platform import compiled
from lstm_jax.cells.precision import cast_like, upcast
from lstm_jax.sequence.adjoint import ResidualPolicy
from lstm_jax.sequence.batch_axes import aligned
from lstm_jax.sequence.chunk_size import default_chunk, even_chunk, is_large
from lstm_jax.sequence.chunks import Chunks, joined, scan_chunks
from lstm_jax.sequence.linear import is_linear, states_before
from lstm_jax.sequence.primal import ScanOptions, cast_operands, scan_outputs
from lstm_jax.sequence.scan import (
  SequenceResiduals,
  backward_sums,
  forward,
  projects_first,
  scan_sequence,
)
from lstm_jax.sequence.wrappers import masked

Policy = ResidualPolicy | Literal["all"]  # "all": nothing is recomputed


def scan_checkpointed(
  cell: Cell,
  options: ScanOptions,
  policy: Policy,
  chunk: int | None,
  params: Params,
  state: State,
  xs: jax.Array,
  extras: tuple,
) -> tuple[State, jax.Array]:
  """Return (state, hs) as `scan_sequence` does, by chunks of time steps.

  Args:
    cell: the cell.
    options: the compute dtype and the direction.
    policy: "gates" saves the state before each chunk, "recompute" the state
      after each step as well, and "all" everything that the backward needs.
    chunk: C, time steps per chunk; None for `default_chunk`.
    params: the weights.
    state: the state before the first step.
    xs: inputs [T, ..., D] or tokens [T, ...].
    extras: further arguments of a wrapped cell's steps, each [T, ...].
  """
  steps = xs.shape[0]
  chunk = chunk or default_chunk(state, xs)
  if not isinstance(steps, int):
    return _scan_filled(cell, options, policy, chunk, params, state, xs, extras)
  if chunk >= steps and policy != "recompute":  # one chunk saves no memory
    return scan_sequence(cell, options, params, state, xs, extras)
  chunk = min(chunk, steps)
  return _scan_chunks(cell, options, policy, chunk, params, state, xs, extras)


def scan_in_cache(
  cell: Cell,
  options: ScanOptions,
  params: Params,
  state: State,
  xs: jax.Array,
  extras: tuple,
) -> tuple[State, jax.Array]:
  """Return (state, hs) as `scan_sequence` does, by chunks if that is faster."""
  inputs = params, state, xs, extras
  if is_large(cell, *inputs):
    chunk = even_chunk(state, xs)
    return scan_checkpointed(cell, options, "all", chunk, *inputs)
  return scan_sequence(cell, options, *inputs)


def _scan_filled(
  cell: Cell,
  options: ScanOptions,
  policy: Policy,
  chunk: int,
  params: Params,
  state: State,
  xs: jax.Array,
  extras: tuple,
) -> tuple[State, jax.Array]:
  """Return (state, hs) for a symbolic T: masked steps fill the last chunk.

  Raises:
    ValueError: an array of the state lacks the batch axes, which a mask needs.
  """
  steps = xs.shape[0]
  missing = ((steps - 1) // chunk + 1) * chunk - steps
  if not (isinstance(missing, int) and missing == 0):

    def filled(x):
      zeros = jnp.zeros((missing, *x.shape[1:]), x.dtype)
      return jnp.concatenate([x, zeros])

    check_rows("a chunk with a symbolic T", state)
    real = jnp.ones((steps, *state.h.shape[:-1]), bool)  # the mask
    cell = masked(cell)
    xs, *extras = jax.tree.map(filled, (xs, real, *extras))
  state, hs = _scan_chunks(
    cell, options, policy, chunk, params, state, xs, tuple(extras)
  )
  return state, hs[:steps]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _scan_chunks(
  cell: Cell,
  options: ScanOptions,
  policy: Policy,
  chunk: int,
  params: Params,
  state: State,
  xs: jax.Array,
  extras: tuple,
) -> tuple[State, jax.Array]:
  """Return (state, hs); the gradient is computed by chunks of `chunk` steps.

  This body runs only where nothing is differentiated. It takes chunks where
  `scan_sequence` would multiply the inputs of all T steps before its loop.
  `vmap` puts its axis first in both results, as in those of `_chunks_forward`.
  """
  inputs = params, state, xs, extras
  if not (is_linear(cell) or projects_first(state, xs)):
    return aligned(scan_sequence(cell, options, *inputs), 0, inputs)

  def run(before, xs, extras):
    return scan_outputs(cell, options, params, before, xs, extras, like=state)

  before, parts = _carried(cell, state), (xs, extras)
  last, hs = scan_chunks(run, before, parts, chunk, reverse=options.reverse)
  return aligned((cast_like(last, state), joined(hs)), 0, inputs)


def _chunks_forward(cell, options, policy, chunk, params, state, xs, extras):
  """Return (state, hs) and what the policy saves of each chunk.

  Of each chunk, this is (hs, the state before it, kept). For "all", kept is the
  gates and residuals, for "recompute" the states without h. For "gates", kept
  and hs are None.
  """

  def run(before, xs, extras):
    arguments = cell, options, params, before, xs, extras
    if policy == "all":
      (last, hs), residuals = forward(*arguments, like=state)
      rest = residuals.hs_and_residuals[1]
      return last, (hs, before, (residuals.gates, rest))
    last, after = scan_outputs(
      *arguments, like=state, output=lambda s: s, unroll=1
    )
    kept = after._replace(h=None) if policy == "recompute" else None
    return last, (after.h, before, kept)

  before, parts = _carried(cell, state), (xs, extras)
  last, ys = scan_chunks(run, before, parts, chunk, reverse=options.reverse)
  outputs = cast_like(last, state), joined(ys.part(0))
  outputs = aligned(outputs, 0, (params, state, xs, extras))
  if policy == "gates":  # drop hs, which the backward computes again
    ys = Chunks(*(y and (None, *y[1:]) for y in ys))
  return outputs, (params, ys, xs, extras)


def _chunks_backward(cell, options, policy, chunk, residuals, cotangents):
  """Return the cotangents, summed over the chunks from the last to the first.

  The weights' cotangents are summed in float32 or wider. `d_last`, that of the
  last state, also gives its dtypes: a saved state may be wider (`_carried`).
  """
  params, saved, xs, extras = residuals
  d_last, dhs = cotangents

  def run(carry, dhs, xs, extras, hs, before, kept):
    d_params, d_state = carry
    inputs = params, before, xs, extras
    if policy == "all":
      gates, rest = kept
      residuals = SequenceResiduals(*inputs, gates, (hs, rest))
    elif policy == "recompute":
      after = kept._replace(h=hs)
      residuals = _recompute(cell, options, *inputs, after)
    else:
      _, residuals = forward(cell, options, *inputs, like=d_last)
    d_params_chunk, d_state, dxs = backward_sums(
      cell, options, residuals, (d_state, dhs)
    )
    d_params_chunk = cast_like(d_params_chunk, d_params)
    d_params = jax.tree.map(jnp.add, d_params, d_params_chunk)
    return (d_params, d_state), dxs

  zeros = upcast(jax.tree.map(jnp.zeros_like, params))
  carry, sequences = (zeros, upcast(d_last)), (dhs, xs, extras)
  carry, dxs = scan_chunks(
    run, carry, sequences, chunk, reverse=not options.reverse, saved=saved
  )
  d_params, d_state = cast_like(carry, (params, d_last))
  return d_params, d_state, joined(dxs), None


_scan_chunks.defvjp(_chunks_forward, compiled(_chunks_backward, num_static=4))


def _recompute(
  cell, options, params, start, xs, extras, after
) -> SequenceResiduals:
  """Return the residuals of a chunk, from the state after each of its steps."""
  operands = cast_operands(params, xs, options)
  before = states_before(start, after, options.reverse)
  axs = cell.project(operands, xs)
  _, gates, residuals = cell.recur(operands, before, axs, *extras)
  return SequenceResiduals(
    params, start, xs, extras, gates, (after.h, residuals)
  )


def _carried(cell: Cell, state: State) -> State:
  """Return the state as it is handed from chunk to chunk.

  The state of a linear recurrence is in the accumulation dtype, as between the
  steps of a chunk.
  """
  return upcast(state) if is_linear(cell) else state
