"""A whole sequence as one scan that returns no gates and no residuals.

`scan_steps` scans over whole time steps; with `Step` and `Autodiff`, JAX
differentiates it. `scan_outputs` computes the input product of all steps before
the scan. `Explicit` uses it where its gradient saves states instead of gates,
and either of them where nothing is differentiated.
"""

from collections.abc import Callable
from operator import attrgetter
from typing import Any, NamedTuple

import jax
from jax import lax

from lstm_jax.cells.affine import is_token
from lstm_jax.cells.cell import Cell, Params, State
from lstm_jax.cells.precision import cast_matrices
from lstm_jax.sequence import linear
from lstm_jax.sequence.linear import is_linear


class ScanOptions(NamedTuple):
  """Static options of a scan over time."""

  compute_dtype: Any = None  # of the operands of products; None: the weights'
  reverse: bool = False  # from the last step to the first


def scan_steps(
  step: Callable,
  options: ScanOptions,
  params: Params,
  state: State,
  xs: jax.Array,
  extras: tuple,
) -> tuple[State, jax.Array]:
  """Scan a step over time; JAX differentiates the scan.

  Args:
    step: (params, state, x, *extras) -> state.
    options: the compute dtype and the direction.
    params: the weights.
    state: the state before the first step.
    xs: inputs [T, ..., D] or tokens [T, ...].
    extras: further arguments of a wrapped cell's steps, each [T, ...].

  Returns:
    (state, hs): the last state, and the outputs [T, ..., H].
  """
  operands = cast_operands(params, xs, options)

  def body(state, inputs):
    x, extra = inputs
    state = step(operands, state, x, *extra)
    return state, state.h

  return lax.scan(body, state, (xs, extras), reverse=options.reverse)


def scan_outputs(
  cell: Cell,
  options: ScanOptions,
  params: Params,
  state: State,
  xs: jax.Array,
  extras: tuple,
  like: State | None = None,
  *,
  output: Callable = attrgetter("h"),
  unroll: int = 2,
) -> tuple[State, Any]:
  """Return (state, hs), with the input product of all steps before the scan.

  An iteration of the loop takes two time steps by default, except in a linear
  recurrence, which computes all steps at once. With one time step, XLA computes
  the LSTM's gates of H 256, B 32 on one of two cores; the other core goes idle,
  and each product waits for the gates: 9.4 ms for 64 time steps instead of 6.3
  (Zen 5, jax 0.12.0.1). With two, the gates are divided between the cores.

  Args:
    cell: the cell.
    options: the compute dtype and the direction.
    params: the weights.
    state: the state before the first step. The last state gets its dtypes.
    xs: inputs [T, ..., D] or tokens [T, ...].
    extras: further arguments of a wrapped cell's steps, each [T, ...].
    like: for a linear recurrence, a state whose dtypes hs get; None for those
      of `state`. So `state` can be wider than hs, and a chunk of time steps can
      start from a state that was not rounded to bfloat16.
    output: state -> what is returned of every state, [T, ...]; by default hs.
    unroll: time steps per iteration of the loop.
  """
  operands = cast_operands(params, xs, options)
  axs = cell.project(operands, xs)
  if is_linear(cell):
    last, states = linear.all_states(
      cell, operands, state, axs, extras, options.reverse, like or state
    )
    return last, output(states)

  def body(state, inputs):
    ax, extra = inputs
    state, _, _ = cell.recur(operands, state, ax, *extra)
    return state, output(state)

  return lax.scan(
    body, state, (axs, extras), reverse=options.reverse, unroll=unroll
  )


def forward_step(cell: Cell) -> Callable:
  """Return the cell's step without its explicit gradient, for autodiff."""
  return lambda *args: cell.forward(*args)[0]


def step_of_parts(cell: Cell) -> Callable:
  """Return a step from `project` and `recur` alone, without `forward`."""

  def step(params, state, x, *extras):
    return cell.recur(params, state, cell.project(params, x), *extras)[0]

  return step


def cast_operands(
  params: Params, xs: jax.Array, options: ScanOptions
) -> Params:
  """Return params with the matrices of products cast to the compute dtype.

  With tokens, w_x is a table to gather rows from, and is not cast.
  """
  cast = cast_matrices(params, options.compute_dtype)
  return cast._replace(w_x=params.w_x) if is_token(xs) else cast
