"""Cells made of cells: steps that are masked, reset, zoned out, dropped out.

Each wraps a cell's `recur` and `recur_backward`, and is told one thing more at
every step, its first extra. With s the state before a step and s' after it,
and ds the cotangent of a state:

  wrapper     forward                          backward
  masked      s⁺ = s' where m, else s          ds' = ds⁺ where m, else 0
                                               ds  = (inner) where m, else ds⁺
  resettable  s  ← 0 where r, else s           ds  ← 0 where r, else ds
  zoneout     s⁺ = k ⊙ s + (1 − k) ⊙ s'        ds' = (1 − k) ⊙ ds⁺
                                               ds  = (inner) + k ⊙ ds⁺
  state dropout  h ← q ⊙ h                     dh ← q ⊙ dh

with m the mask, r the reset flag, k what is kept and q a factor. A masked step
thus does nothing, to its state or to a gradient. What enters it must be finite,
since NaN ⊙ 0 is not 0: `unroll` sees to that.

`unroll` puts them together; in user code, `masked(lstm).step(params, state, x,
mask)` is a step like any other.

References:
  Krueger et al. (2017), Zoneout: regularizing RNNs by randomly preserving
  hidden activations, equations 4 to 6. Gal and Ghahramani (2016), A
  theoretically grounded application of dropout in recurrent neural networks,
  equations 5 to 7.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lstm_jax.cells.cell import Cell, State, Tape, one_step


class Wrapped(NamedTuple):
  """A cell made of a cell: the functions of the `Cell` protocol."""

  init: Callable
  initial_state: Callable
  project: Callable
  recur: Callable
  recur_backward: Callable
  parameter_gradients: Callable
  forward: Callable
  backward: Callable
  step: Callable


class OwnInput(NamedTuple):
  """The tape of a cell that keeps the h which entered its product."""

  h: jax.Array  # [..., H]
  tape: Tape


@cache
def masked(cell: Cell) -> Cell:
  """Return a cell whose step is told a mask, bool [...]: False is no step."""

  def recur(params, state, ax, mask, *extras):
    after, kept, tape = cell.recur(params, state, ax, *extras)
    return _choose(mask, after, state), kept, tape

  def recur_backward(params, kept, tape, d_state, mask, *extras):
    d_after = _choose(mask, d_state, _zeros(d_state))
    d_inner, *das = cell.recur_backward(params, kept, tape, d_after, *extras)
    d_before = _choose(mask, d_inner, d_state)
    return d_before, *das

  return _wrapped(cell, recur, recur_backward)


@cache
def resettable(cell: Cell) -> Cell:
  """Return a cell whose step is told a flag, bool [...]: True starts anew.

  The state before such a step is replaced by zeros, the initial state.
  """

  def recur(params, state, ax, reset, *extras):
    start = _choose(reset, _zeros(state), state)
    return cell.recur(params, start, ax, *extras)

  def recur_backward(params, kept, tape, d_state, reset, *extras):
    d_start, *das = cell.recur_backward(params, kept, tape, d_state, *extras)
    d_before = _choose(reset, _zeros(d_start), d_start)
    return d_before, *das

  return _wrapped(cell, recur, recur_backward)


@cache
def zoneout(cell: Cell) -> Cell:
  """Return a cell whose step is told what it keeps of the state before it.

  That is a state of arrays that broadcast to the cell's state: True or 1 keeps
  a unit as it was, False or 0 lets it go on; between them is a mixture, such as
  the expectation over random choices.
  """

  def recur(params, state, ax, keep, *extras):
    after, kept, tape = cell.recur(params, state, ax, *extras)
    mixed = jax.tree.map(
      lambda k, s, new: _of(k, s) * s + (1 - _of(k, s)) * new,
      keep,
      state,
      after,
    )
    return mixed, kept, tape

  def recur_backward(params, kept, tape, d_state, keep, *extras):
    d_kept = jax.tree.map(lambda k, d: _of(k, d) * d, keep, d_state)
    d_after = jax.tree.map(jnp.subtract, d_state, d_kept)
    d_inner, *das = cell.recur_backward(params, kept, tape, d_after, *extras)
    d_before = jax.tree.map(jnp.add, d_inner, d_kept)
    return d_before, *das

  return _wrapped(cell, recur, recur_backward)


@cache
def state_dropout(cell: Cell) -> Cell:
  """Return a cell whose step is told a factor of the h that enters it.

  The factor broadcasts to h [..., H]: 0 drops a unit. It comes on top of
  `keeping_its_input`. A GRU's h enters the mixture z ⊙ h as well as the gates.
  """

  def recur(params, state, ax, factor, *extras):
    start = state._replace(h=_of(factor, state.h) * state.h)
    return cell.recur(params, start, ax, *extras)

  def recur_backward(params, kept, tape, d_state, factor, *extras):
    d_start, *das = cell.recur_backward(params, kept, tape, d_state, *extras)
    dh = _of(factor, d_start.h) * d_start.h
    return d_start._replace(h=dh), *das

  return _wrapped(cell, recur, recur_backward)


@cache
def keeping_its_input(cell: Cell) -> Cell:
  """Return the cell, with the h that entered its product kept on the tape.

  Needed inside of wrappers that change the state on its way in, or hide the
  output: the weights' gradient Σ hᵀ da can then not take h from the outputs.
  """

  def recur(params, state, ax, *extras):
    after, kept, tape = cell.recur(params, state, ax, *extras)
    return after, kept, OwnInput(state.h, tape)

  def recur_backward(params, kept, tape, d_state, *extras):
    return cell.recur_backward(params, kept, tape.tape, d_state, *extras)

  def parameter_gradients(params, x, h, tape, *das):
    del h
    return cell.parameter_gradients(params, x, tape.h, tape.tape, *das)

  return _wrapped(cell, recur, recur_backward, parameter_gradients)


def _wrapped(
  cell: Cell,
  recur: Callable,
  recur_backward: Callable,
  parameter_gradients: Callable | None = None,
) -> Cell:
  gradients = parameter_gradients or cell.parameter_gradients
  halves = cell.project, recur, recur_backward, gradients
  steps = one_step(cell.initial_state, *halves)
  return Wrapped(cell.init, cell.initial_state, *halves, *steps)


def _choose(condition: jax.Array, yes: Any, no: Any) -> Any:
  """Return yes where the condition holds, leaf by leaf, and no elsewhere."""

  def choose(a, b):
    shape = condition.shape + (1,) * (a.ndim - condition.ndim)
    return jnp.where(condition.reshape(shape), a, b)

  return jax.tree.map(choose, yes, no)


def _zeros(state: State) -> State:
  return jax.tree.map(jnp.zeros_like, state)


def _of(keep: jax.Array, like: jax.Array) -> jax.Array:
  return keep.astype(like.dtype)
