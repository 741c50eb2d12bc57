"""A whole sequence of a cell whose recurrence is linear: all steps at once.

Some cells (`linear_recurrence` of a `Cell`) have, in every unit,

  sₜ = λₜ ⊙ sₜ₋₁ + uₜ

where neither λₜ nor uₜ depends on the state, and units do not mix. Everything
but this recurrence can then be computed for all time steps at once, from the
projected inputs axₜ = project(xₜ):

Forward                               Backward
  uₜ, _ = recur(0, axₜ)                 λₜ  as in the forward
  λₜ = ∂sₜ/∂sₜ₋₁                        eₜ  = λₜ ⊙ eₜ₊₁ + λₜ ⊙ dhₜ    (scan)
  sₜ = λₜ ⊙ sₜ₋₁ + uₜ    (scan)          dsₜ = eₜ₊₁ + dhₜ
  _, rₜ = recur(sₜ₋₁, axₜ)              daₜ = recur_backward(rₜ, dsₜ)

with rₜ the gates and residuals, dhₜ the cotangent of the output hₜ, and eₜ₊₁
that part of the cotangent of sₜ which comes from all later steps; e_{T+1} is
the cotangent of the last state. `recur` and `recur_backward` are the cell's
(`Cell`). The Jacobian ∂sₜ/∂sₜ₋₁ is diagonal, so that `recur_backward` returns
λₜ for a cotangent of ones. A cell, and the wrappers of masks, resets, zoneout
and dropout, therefore need no function for λₜ.

On a GPU, both scans are a parallel scan over time (Blelloch 1990; Martin and
Cundy 2018, Parallelizing linear recurrent neural nets over sequence length):
about 2 log₂ T kernels, where a loop launches one at each of the T steps. On a
CPU they are loops: there a parallel scan is slower at every size measured, as
it reads and writes the whole sequence several times. Where T is symbolic
(`jax.export`), they are loops on any device. The loop of the backward computes
dsₜ and then eₜ = λₜ ⊙ dsₜ, and stores dsₜ: after a scan of e, dsₜ would need a
copy of e that is shifted by one step.

A parallel scan multiplies the λ of many time steps: if they are above 1, as
state dropout can make them, the product can overflow where the loop does not.
Between the steps of a sequence the state is float32 or wider, also where the
weights are bfloat16.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lstm_jax.cells.cell import Cell, Params, State
from lstm_jax.cells.operation import call, mapped_over, operation
from lstm_jax.cells.platform import is_cpu
from lstm_jax.cells.precision import cast_like, upcast


def is_linear(cell: Cell) -> bool:
  """Return whether the cell says that its recurrence is linear in the state."""
  return getattr(cell, "linear_recurrence", False)


def linear_scan(
  decay: jax.Array, increment: jax.Array, first: jax.Array, *, reverse: bool
) -> jax.Array:
  """Return sₜ = λₜ ⊙ sₜ₋₁ + uₜ for every t.

  Where λₜ is 0, the state before it counts as 0 even if it is not finite.

  Args:
    decay: λ, [T, ...], T ≥ 1.
    increment: u, [T, ...].
    first: the state before the step that is taken first, [...]. λ and u are
      cast to its dtype.
    reverse: from the last step to the first: with sₜ₊₁ in place of sₜ₋₁.

  Returns:
    s, [T, ...], in the dtype of `first`.
  """
  decay, increment = decay.astype(first.dtype), increment.astype(first.dtype)
  if _loops(decay):

    def body(state, inputs):
      decay, increment = inputs
      state = _decayed(decay, state) + increment
      return state, state

    return lax.scan(body, first, (decay, increment), reverse=reverse)[1]

  def combine(earlier, later):
    decay, increment = earlier
    product = _product(decay, later[0])
    return product, _decayed(later[0], increment) + later[1]

  decays, sums = lax.associative_scan(
    combine, (decay, increment), reverse=reverse
  )
  return _decayed(decays, first[None]) + sums


def _cotangents(
  decay: jax.Array, d_output: jax.Array, d_last: jax.Array, *, reverse: bool
) -> tuple[jax.Array, jax.Array]:
  """Return (the cotangent of the first state, [...], every dsₜ, [T, ...]).

  Args:
    decay: λ, [T, ...].
    d_output: dh, [T, ...], in the dtype of `d_last`.
    d_last: e_{T+1}, [...].
    reverse: whether the forward went from the last step to the first.
  """
  decay = decay.astype(d_last.dtype)
  if _loops(decay):

    def body(d_later, inputs):
      decay, d_output = inputs
      d_after = d_later + d_output
      return _decayed(decay, d_after), d_after  # eₜ and dsₜ

    inputs = decay, d_output
    return lax.scan(body, d_last, inputs, reverse=not reverse)

  # d_before is every eₜ, and d_later every eₜ₊₁.
  d_before = linear_scan(
    decay, _decayed(decay, d_output), d_last, reverse=not reverse
  )
  d_later = states_before(d_last, d_before, not reverse)
  return d_before[-1 if reverse else 0], d_later + d_output


def _loops(decay: jax.Array) -> bool:
  """Return whether a scan over λ [T, ...] is a loop; T may be symbolic."""
  return is_cpu() or not isinstance(decay.shape[0], int)


def _decayed(decay: jax.Array, state: jax.Array) -> jax.Array:
  """Return λ ⊙ s, or 0 where λ is 0 (as at a reset) and s is not finite."""
  cleared = (decay == 0) & ~jnp.isfinite(state)
  return decay * jnp.where(cleared, 0, state)


def _product(first: jax.Array, second: jax.Array) -> jax.Array:
  """Return λ ⊙ λ', or 0 where one is 0 and the other has overflowed."""
  cleared = (first == 0) & ~jnp.isfinite(second)
  cleared |= (second == 0) & ~jnp.isfinite(first)
  return jnp.where(cleared, 0, first) * jnp.where(cleared, 0, second)


def all_states(
  cell: Cell,
  params: Params,
  state: State,
  axs: jax.Array,
  extras: tuple,
  reverse: bool,
  like: State,
) -> tuple[State, State]:
  """Return (the last state [...], the state after every step [T, ...]).

  Args:
    cell: a cell with a linear recurrence.
    params: the weights.
    state: the state before the first step, [...]. The last state gets its
      dtypes.
    axs: the projected inputs, [T, ..., K], where K is G·H of `Cell`.
    extras: further arguments of a wrapped cell's steps, each [T, ...].
    reverse: from the last step to the first.
    like: a state whose dtypes the states after every step get.
  """
  steps = axs.shape[0]
  first = upcast(state)
  zeros = jax.tree.map(lambda s: jnp.zeros((steps, *s.shape), s.dtype), first)
  increments, gates, residuals = cell.recur(params, zeros, axs, *extras)
  decays = _decays(cell, params, zeros, gates, residuals, extras)
  states = jax.tree.map(
    partial(linear_scan, reverse=reverse), decays, increments, first
  )
  last = jax.tree.map(lambda s: s[0 if reverse else -1], states)
  return cast_like(last, state), cast_like(states, like)


def forward(
  cell: Cell,
  params: Params,
  state: State,
  axs: jax.Array,
  extras: tuple,
  reverse: bool,
  like: State,
) -> tuple[State, jax.Array, tuple[jax.Array, Any]]:
  """Return (last state, gates, (hs, residuals)).

  Its arguments are those of `all_states`. Gates are [T, ..., K], in the dtype
  of axs, hs [T, ..., H], and residuals [T, ...].
  """
  last, states = all_states(cell, params, state, axs, extras, reverse, like)
  before = states_before(state, states, reverse)
  _, gates, residuals = cell.recur(params, before, axs, *extras)
  return last, gates.astype(axs.dtype), (states.h, residuals)


def backward(
  cell: Cell,
  params: Params,
  d_last: State,
  gates: jax.Array,
  residuals: Any,
  dhs: jax.Array,
  extras: tuple,
  reverse: bool,
) -> tuple[State, jax.Array, list]:
  """Return (d_state before the first step, das [T, ..., K], extra cotangents).

  Args:
    cell: a cell with a linear recurrence.
    params: the weights.
    d_last: the cotangent of the last state, [...], in the accumulation dtype.
    gates: those of `forward`, [T, ..., K].
    residuals: those of `forward`, [T, ...].
    dhs: the cotangents of the outputs, [T, ..., H].
    extras: further arguments of a wrapped cell's steps, each [T, ...].
    reverse: whether the forward went from the last step to the first.
  """
  steps = dhs.shape[0]
  zeros = jax.tree.map(lambda d: jnp.zeros((steps, *d.shape), d.dtype), d_last)
  d_outputs = zeros._replace(h=dhs.astype(d_last.h.dtype))
  decays = _decays(cell, params, zeros, gates, residuals, extras)

  def cotangents(decays, d_outputs, d_last):
    scanned = jax.tree.map(
      partial(_cotangents, reverse=reverse), decays, d_outputs, d_last
    )
    # From a state of pairs to a pair of states.
    return jax.tree.transpose(
      jax.tree.structure(d_last), jax.tree.structure((0, 0)), scanned
    )

  d_first, d_after = call(
    _all_cotangents, cotangents, decays, d_outputs, d_last
  )
  _, das, *extra_cotangents = cell.recur_backward(
    params, gates, residuals, d_after, *extras
  )
  return d_first, das, extra_cotangents


def _batch(axis, leaves, dims, *, run, structure, call_jaxpr):
  """Return the cotangents for mapped leaves, and where `vmap`'s axis is.

  They are computed by such an operation again, which can be transposed.
  """
  count = len(call_jaxpr.out_avals) // 2
  places = [0] * count + [1] * count  # first in d_first, after T in d_after
  mapped = mapped_over(axis, run, structure, dims, places)
  return call(_all_cotangents, mapped, *leaves), places


# An operation, which can be transposed: JAX cannot transpose `_decayed`, which
# asks whether the cotangent is finite. The transpose does not ask: an infinite
# tangent becomes NaN where λ is 0.
_all_cotangents = operation("linear_cotangents", _batch)


def states_before(first: Any, after: Any, reverse: bool) -> Any:
  """Return the arrays before each step, [T, ...], in the dtypes of `after`.

  Args:
    first: a tree of arrays [...], before the step that is taken first.
    after: the same tree of arrays [T, ...], after each step.
    reverse: whether the steps are taken from the last to the first.
  """

  def shifted(first, after):
    first = first.astype(after.dtype)
    if reverse:
      return jnp.concatenate([after[1:], first[None]])
    return jnp.concatenate([first[None], after[:-1]])

  return jax.tree.map(shifted, first, after)


def _decays(
  cell: Cell,
  params: Params,
  like: State,
  gates: jax.Array,
  residuals: Any,
  extras: tuple,
) -> State:
  """Return λₜ = ∂sₜ/∂sₜ₋₁ for every time step."""
  ones = jax.tree.map(jnp.ones_like, like)
  return cell.recur_backward(params, gates, residuals, ones, *extras)[0]
