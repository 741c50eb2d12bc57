"""Cells with an added feature: masks, resets, zoneout, state dropout.

Each function of the table wraps a cell's `recur` and `recur_backward`, and
returns a cell again. The step of the new cell takes one more argument, after x
and before the further ones of the wrapped cell's step. With s the state before
a step, s' the state after the wrapped cell's step, s⁺ the state that the
wrapper returns, and ds the cotangent of a state:

  wrapper        forward                      backward
  masked         s⁺ = s' where m, else s      ds' = ds⁺ where m, else 0
                                              ds  = (inner) where m, else ds⁺
  resettable     s  ← 0 where r, else s       ds  ← 0 where r, else ds
  zoneout        s⁺ = k ⊙ s + (1 − k) ⊙ s'    ds' = (1 − k) ⊙ ds⁺
                                              ds  = (inner) + k ⊙ ds⁺
  state_dropout  h  ← q ⊙ h                   dh  ← q ⊙ dh

where m is the mask, r the reset flag, k the share of the previous state that a
unit keeps (True, False or between), and q the factor of h; (inner) is the
cotangent that the wrapped cell's backward returns. A masked step (m False)
changes neither the state nor its cotangent. Its input must be finite, since
NaN ⊙ 0 is NaN: `unroll` replaces masked inputs by zeros.

`unroll` combines the wrappers as
`masked(resettable(zoneout(state_dropout(cell))))`: in another order, a reset
acts on a masked step too, or zoneout keeps the state from before a reset. They
can also be used directly:
`masked(lstm).step(params, state, x, mask)` is a step like any other. It raises
ValueError where the added argument is of another shape, dtype or type than the
wrapper's docstring says.

References:
  Krueger et al. (2017), Zoneout: regularizing RNNs by randomly preserving
  hidden activations, equations 4 to 6. Gal and Ghahramani (2016), A
  theoretically grounded application of dropout in recurrent neural networks,
  equations 5 to 7.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from lstm_jax.cells.caching import cached
from lstm_jax.cells.cell import (
  Cell,
  ParamsT,
  Residuals,
  State,
  StateT,
  one_step,
)
from lstm_jax.cells.checks import broadcastable, check_rows, check_same_type
from lstm_jax.cells.precision import as_array
from lstm_jax.cells.serialization import serializable
from lstm_jax.cells.weight_checks import parts_of


class Wrapped(NamedTuple):
  """A wrapped cell: the functions of the `Cell` protocol."""

  init: Callable
  initial_state: Callable
  project: Callable
  recur: Callable
  recur_backward: Callable
  parameter_gradients: Callable
  forward: Callable
  backward: Callable
  step: Callable
  takes_tokens: bool
  linear_recurrence: bool
  saves_h: bool  # whether one of its wrappers is `saving_h`
  # The parts of the cell inside all wrappers, and how many extras they add.
  innermost: tuple[tuple[Callable | None, ...], int]


@serializable
class ResidualsWithH(NamedTuple):
  """Residuals of a cell wrapped by `saving_h`."""

  h: jax.Array  # [..., H], that of h W_h
  residuals: Residuals  # of the wrapped cell


@cached  # so that no program is compiled twice
def masked(cell: Cell[ParamsT, StateT]) -> Cell[ParamsT, StateT]:
  """Return a cell whose step takes a mask, bool [...].

  Where it is False, the step returns the state unchanged, h included. (`unroll`
  sets the output to 0.)
  """

  def recur(params, state, ax, mask, *extras):
    _check_flag("mask", mask, state)
    after, gates, residuals = cell.recur(params, state, ax, *extras)
    return select(mask, after, state), gates, residuals

  def recur_backward(params, gates, residuals, d_state, mask, *extras):
    d_after = select(mask, d_state, _zeros(d_state))
    d_inner, *das = cell.recur_backward(
      params, gates, residuals, d_after, *extras
    )
    d_before = select(mask, d_inner, d_state)
    return d_before, *das

  return _wrapped(cell, recur, recur_backward)


@cached
def resettable(cell: Cell[ParamsT, StateT]) -> Cell[ParamsT, StateT]:
  """Return a cell whose step takes a reset flag, bool [...].

  Where it is True, the step starts from the zero state.
  """
  cell = _made_to_save_h(cell)

  def recur(params, state, ax, reset, *extras):
    _check_flag("reset", reset, state)
    start = select(reset, _zeros(state), state)
    return cell.recur(params, start, ax, *extras)

  def recur_backward(params, gates, residuals, d_state, reset, *extras):
    d_start, *das = cell.recur_backward(
      params, gates, residuals, d_state, *extras
    )
    d_before = select(reset, _zeros(d_start), d_start)
    return d_before, *das

  return _wrapped(cell, recur, recur_backward)


@cached
def zoneout(cell: Cell[ParamsT, StateT]) -> Cell[ParamsT, StateT]:
  """Return a cell whose step takes the share of the state that each unit keeps.

  The shares are a state of arrays or numbers that broadcast to the arrays of
  the cell's state. A unit keeps its previous value where its share is True or
  1, and takes the new value where it is False or 0. A share in between mixes
  the two: at evaluation, the zoneout probability as the share gives the
  expected value.
  """

  def recur(params, state, ax, share, *extras):
    check_same_type("zoneout", share, state)
    for name, k, s in zip(state._fields, share, state, strict=True):
      broadcastable(f"zoneout.{name}", k, s.shape)
    after, gates, residuals = cell.recur(params, state, ax, *extras)
    mixed = jax.tree.map(
      lambda k, s, new: _cast(k, s) * s + (1 - _cast(k, s)) * new,
      share,
      state,
      after,
    )
    return mixed, gates, residuals

  def recur_backward(params, gates, residuals, d_state, share, *extras):
    d_kept = jax.tree.map(lambda k, d: _cast(k, d) * d, share, d_state)
    d_after = jax.tree.map(jnp.subtract, d_state, d_kept)
    d_inner, *das = cell.recur_backward(
      params, gates, residuals, d_after, *extras
    )
    d_before = jax.tree.map(jnp.add, d_inner, d_kept)
    return d_before, *das

  return _wrapped(cell, recur, recur_backward)


@cached
def state_dropout(cell: Cell[ParamsT, StateT]) -> Cell[ParamsT, StateT]:
  """Return a cell whose step multiplies the h that enters it by a factor.

  The factor broadcasts to h [..., H]; 0 drops a unit. In a GRU, it also applies
  to the h of z ⊙ h, the part of the state that the update gate keeps.
  """
  cell = _made_to_save_h(cell)

  def recur(params, state, ax, factor, *extras):
    factor = broadcastable("state_dropout", factor, state.h.shape)
    start = state._replace(h=_cast(factor, state.h) * state.h)
    return cell.recur(params, start, ax, *extras)

  def recur_backward(params, gates, residuals, d_state, factor, *extras):
    d_start, *das = cell.recur_backward(
      params, gates, residuals, d_state, *extras
    )
    dh = _cast(factor, d_start.h) * d_start.h
    return d_start._replace(h=dh), *das

  return _wrapped(cell, recur, recur_backward)


@cached
def saving_h(cell: Cell[ParamsT, StateT]) -> Cell[ParamsT, StateT]:
  """Return a cell that also saves the h that it multiplies by W_h.

  The gradient of W_h is Σ hᵀ da. Without this wrapper, `unroll` takes for h the
  h of the state after the previous step. A reset or state dropout changes
  that h before the cell multiplies it, so the changed h must be saved.
  """

  def recur(params, state, ax, *extras):
    after, gates, residuals = cell.recur(params, state, ax, *extras)
    return after, gates, ResidualsWithH(state.h, residuals)

  def recur_backward(params, gates, residuals, d_state, *extras):
    return cell.recur_backward(
      params, gates, residuals.residuals, d_state, *extras
    )

  def parameter_gradients(params, x, h, residuals, *das):
    del h
    return cell.parameter_gradients(
      params, x, residuals.h, residuals.residuals, *das
    )

  wrapped = _wrapped(
    cell, recur, recur_backward, parameter_gradients, num_extras=0
  )
  return wrapped._replace(saves_h=True)


def _made_to_save_h(cell: Any) -> Any:
  """Return the cell, wrapped by `saving_h` if it is not yet."""
  saves = getattr(cell, "saves_h", False)
  return cell if saves else saving_h(cell)


def _wrapped(
  cell: Cell,
  recur: Callable,
  recur_backward: Callable,
  parameter_gradients: Callable | None = None,
  num_extras: int = 1,
) -> Wrapped:
  """Return a cell with these functions, and the others of the given cell.

  `num_extras` is how many arguments the wrapper adds to a step. Without
  `parameter_gradients`, the cell keeps its own.
  """
  own: Any = getattr(cell, "parameter_gradients", None)
  backward: Any = recur_backward
  gradients = parameter_gradients or own
  if own is None or getattr(cell, "recur_backward", None) is None:
    backward = gradients = None  # a user's cell, without a backward
  parts = cell.project, recur, backward, gradients
  parts_inside, extras_inside = (
    cell.innermost if isinstance(cell, Wrapped) else (parts_of(cell), 0)
  )
  innermost = parts_inside, extras_inside + num_extras
  steps = one_step(cell.initial_state, *parts, innermost=innermost)
  init: Any = getattr(cell, "init", None)  # nothing here calls it
  return Wrapped(
    init,
    cell.initial_state,
    *parts,
    *steps,
    takes_tokens=getattr(cell, "takes_tokens", False),
    linear_recurrence=getattr(cell, "linear_recurrence", False),
    saves_h=getattr(cell, "saves_h", False),
    innermost=innermost,
  )


def _check_flag(name: str, flag: Any, state: State) -> None:
  """Raise ValueError unless a flag is bool, with the shape of the batch."""
  batch = state.h.shape[:-1]
  expected = f"{name} must be bool {list(batch)}"
  if flag is None:
    raise ValueError(f"{expected}, got None")
  flag = as_array(expected, flag)
  if flag.dtype != bool or flag.shape != batch:
    raise ValueError(f"{expected}, got {flag.dtype} {flag.shape}")
  check_rows(f"a {name}", state)


def select(condition: ArrayLike, yes: Any, no: Any) -> Any:
  """Return `yes` where the condition holds and `no` elsewhere, leaf by leaf.

  The axes of the condition, [...], are the first ones of every leaf.
  """
  condition = jnp.asarray(condition)

  def choose(a, b):
    shape = condition.shape + (1,) * (a.ndim - condition.ndim)
    return jnp.where(condition.reshape(shape), a, b)

  return jax.tree.map(choose, yes, no)


def _zeros(state: State) -> State:
  return jax.tree.map(jnp.zeros_like, state)


def _cast(x: ArrayLike, like: jax.Array) -> jax.Array:
  return jnp.asarray(x).astype(like.dtype)
