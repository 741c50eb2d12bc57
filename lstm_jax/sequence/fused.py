"""A whole sequence in one GPU kernel for each pass, forward and backward.

This is `sequence.scan`, with its two scans over time as kernels of
`mosaic_gpu`. The input product of all time steps is computed before the forward
kernel, and the gradients of the weights and of the inputs after the backward
kernel, in one product each.

The kernels take an H that is a multiple of 64, and a B that is a multiple of
`plan.rows`: 8, 16 or 32. Other sizes are padded with zeros here. A padded unit
has weights and biases of zero and starts from zero, so that it remains zero in
all three cells. A padded sequence is cut off, and its cotangents are zero.

The kernels apply masks and resets. States, outputs and sums are float32 in the
kernels; `scan_fused` returns states and outputs in the dtypes of the state.

The modules of `mosaic_gpu` are imported in the functions that use them, so that
Pallas is imported only where a kernel is asked for. (`limits` needs no Pallas.)
"""

import importlib
import math
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lstm_jax.cells.cell import Cell, Params, State
from lstm_jax.cells.precision import cast_like, upcast
from lstm_jax.cells.properties import cell_name
from lstm_jax.mosaic_gpu.limits import Plan
from lstm_jax.sequence.linear import states_before
from lstm_jax.sequence.primal import ScanOptions, cast_operands


class FusedResiduals(NamedTuple):
  """What the forward saves for the backward."""

  params: Params
  state: State  # before the first step
  xs: jax.Array  # [T, B, D] or tokens [T, B]
  flags: jax.Array | None  # those of `step_flags`, [T, B]
  hs: jax.Array  # [T, B, H]
  saved: Any  # what the forward kernel returns for the backward kernel


def scan_fused(
  cell: Cell,
  options: ScanOptions,
  plan: Plan,
  params: Params,
  state: State,
  xs: jax.Array,
  flags: jax.Array | None,
) -> tuple[State, jax.Array]:
  """Return (state, hs) as `scan_sequence` does, by kernels.

  Args:
    cell: lstm, gru or rnn.
    options: the compute dtype and the direction.
    plan: how the kernels divide the layer.
    params: the weights.
    state: the state before the first step, arrays [..., H].
    xs: inputs [T, ..., D] or tokens [T, ...].
    flags: those of `step_flags`, [T, ...], or None.

  Returns:
    (state, hs): the last state, and the outputs [T, ..., H]. A masked step
    repeats the h before it.
  """
  *batch, size = state.h.shape
  count = math.prod(batch)
  padded_count = max(1, math.ceil(count / plan.rows)) * plan.rows
  wide = jax.tree.map(partial(_pad_units, size, plan.units), params)
  wide = wide._replace(w_h=_pad_axis(wide.w_h, 0, plan.units))

  def pad_batch(x, axis):
    x = x.reshape(*x.shape[:axis], count, *x.shape[axis + len(batch) :])
    return _pad_axis(x, axis, padded_count)

  first = jax.tree.map(
    lambda x: _pad_axis(pad_batch(x, 0), 1, plan.units), upcast(state)
  )
  xs = pad_batch(xs, 1)
  flags = None if flags is None else pad_batch(flags, 1)
  last, hs = _scan(cell, options, plan, wide, first, xs, flags)

  def cut(x):
    return x[..., :count, :size].reshape(*x.shape[:-2], *batch, size)

  last = cast_like(jax.tree.map(cut, last), state)
  return last, cut(hs).astype(state.h.dtype)


def step_flags(
  mask: jax.Array | None, reset: jax.Array | None
) -> jax.Array | None:
  """Return MASKED, RESET or STEP of `states` for each step, float32 [T, ...].

  Without a mask and resets, return None.

  Args:
    mask: bool [T, ...], or None.
    reset: bool [T, ...], or None.
  """
  if mask is None and reset is None:
    return None
  from lstm_jax.mosaic_gpu.states import MASKED, RESET, STEP

  flags = jnp.float32(STEP)
  if reset is not None:
    flags = jnp.where(reset, RESET, flags)
  if mask is not None:
    flags = jnp.where(mask, flags, MASKED)
  return flags.astype(jnp.float32)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _scan(cell, options, plan, *arguments):
  """Return (state, hs), for sizes that the kernels take."""
  outputs, _ = _run(cell, options, plan, False, *arguments)
  return outputs


def _forward(cell, options, plan, *arguments):
  return _run(cell, options, plan, True, *arguments)


def _run(cell, options, plan, save, params, state, xs, flags):
  """Return ((state, hs), residuals); without `save`, their `saved` is None."""
  from lstm_jax.mosaic_gpu.forward import forward_kernel

  time_step = _time_step(cell)
  operands = cast_operands(params, xs, options)
  axs = cell.project(operands, xs)
  axs = axs.reshape(*axs.shape[:2], -1, plan.units)
  hs, last, saved = forward_kernel(
    time_step,
    plan,
    options.reverse,
    save,
    _by_gate(operands, plan).transpose(1, 2, 0),  # W_hᵀ of each gate
    upcast(time_step.biases(params)),
    axs,
    state,
    flags,
  )
  return (last, hs), FusedResiduals(params, state, xs, flags, hs, saved)


def _backward(cell, options, plan, residuals, cotangents):
  """Return the cotangents of params, state, xs and flags."""
  from lstm_jax.mosaic_gpu.backward import backward_kernel
  from lstm_jax.mosaic_gpu.states import RESET

  params, state, xs, flags, hs, saved = residuals
  d_last, d_hs = cotangents
  time_step = _time_step(cell)
  operands = cast_operands(params, xs, options)
  das, d_state = backward_kernel(
    time_step,
    plan,
    options.reverse,
    _by_gate(operands, plan).transpose(1, 0, 2),  # W_h of each gate
    saved,
    d_hs,
    d_last,
    flags,
  )
  hs_before = states_before(state.h, hs, options.reverse)
  if flags is not None:
    hs_before = jnp.where(flags[..., None] == RESET, 0, hs_before)
  d_params, dxs = time_step.parameter_gradients(
    operands, xs, hs_before, das.reshape(*das.shape[:2], -1)
  )
  dxs = None if dxs is None else dxs.astype(xs.dtype)
  return cast_like(d_params, params), d_state, dxs, None


_scan.defvjp(_forward, _backward)


def _time_step(cell: Cell) -> ModuleType:
  """Return the module of a cell's time step in a kernel."""
  return importlib.import_module(f"lstm_jax.mosaic_gpu.{cell_name(cell)}")


def _by_gate(params: Params, plan: Plan) -> jax.Array:
  """Return W_h as [H, G, H]: from h, to the units of each gate."""
  return params.w_h.reshape(plan.units, -1, plan.units)


def _pad_units(size: int, units: int, weights: jax.Array) -> jax.Array:
  """Return weights [..., G·size] as [..., G·units], with zeros."""
  by_gate = weights.reshape(*weights.shape[:-1], -1, size)
  padded = _pad_axis(by_gate, by_gate.ndim - 1, units)
  return padded.reshape(*weights.shape[:-1], -1)


def _pad_axis(x: jax.Array, axis: int, size: int) -> jax.Array:
  """Return an array padded to a size, with zeros at the end of one axis."""
  widths = [(0, 0)] * x.ndim
  widths[axis] = 0, size - x.shape[axis]
  return jnp.pad(x, widths)
