"""Unroll a cell over time: masked, reset, reversed, in chunks.

`unroll` checks what it is given, wraps the cell in what is asked for
(`wrappers`), and hands it on (`whole`, `chunks`). What is not asked for is not
there: the compiled program is that of the plain cell.

  >>> import jax, jax.numpy as jnp
  >>> from lstm_jax.cells import lstm
  >>> params = lstm.init(jax.random.key(0), input_size=3, hidden_size=5)
  >>> state = lstm.initial_state(params, batch_shape=(2,))
  >>> xs = jnp.ones((7, 2, 3))
  >>> state, hs = unroll(lstm, params, state, xs, lengths=jnp.array([7, 4]))
  >>> hs.shape, bool((hs[4:, 1] == 0).all())
  ((7, 2, 5), True)
"""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp

from lstm_jax.cells.affine import is_token
from lstm_jax.cells.cell import Cell, Params, State, check_inputs
from lstm_jax.cells.reverse_only import reverse_only
from lstm_jax.sequence import wrappers
from lstm_jax.sequence.checkpointing import Policy, in_chunks
from lstm_jax.sequence.scan import Way, by_steps, plain, whole

Rule = Literal["explicit", "step", "autodiff"]
ROWS = 1024  # of a product that fills the machine
NO_FORWARD_MODE = (
  "unroll has its gradient by hand, and no forward mode (jvp, linearize, "
  "jacfwd): pass vjp='autodiff' for it"
)


def unroll(
  cell: Cell,
  params: Params,
  state: State,
  xs: jax.Array,
  *,
  mask: jax.Array | None = None,
  lengths: jax.Array | None = None,
  reset: jax.Array | None = None,
  zoneout: State | None = None,
  state_dropout: jax.Array | None = None,
  time_major: bool = True,
  reverse: bool = False,
  residuals: Policy = "gates",
  chunk: int | None = None,
  vjp: Rule = "explicit",
  compute_dtype: jnp.dtype | None = None,
) -> tuple[State, jax.Array]:
  """Apply `cell` to each of xs in turn.

  Computes what this loop does, as one `lax.scan`:

    hs = []
    for x in xs:
      state = cell.step(params, state, x)
      hs.append(state.h)
    return state, stack(hs)

  Args:
    cell: `lstm`, `gru`, `rnn`, or anything with the same functions.
    params: the cell's weights.
    state: the state before the first step, as `initial_state` makes it.
    xs: inputs [T, ..., D], or integer tokens [T, ...] in [0, D), which stand
      for one-hot rows; the axes between are those of the state.
    mask: bool [T, ...]. Where it is False there is no step: the state goes
      through as it is, the output is 0, and whatever stands in xs there, NaN
      included, reaches no output and no gradient.
    lengths: integers [...] in [0, T]: row b has `lengths[b]` steps, the first.
      The same as a mask, and together with one both must hold.
    reset: bool [T, ...]. Where it is True the state is replaced by zeros before
      the step, as at the start of an episode; a masked step resets nothing.
    zoneout: what each step keeps of the state before it: a state of arrays
      [T, ..., H], or what broadcasts to them. True keeps a unit; a number is a
      mixture. `regularize.zoneout` draws it. It gets no gradient.
    state_dropout: a factor of the h that enters each step, which broadcasts to
      [T, ..., H]. `regularize.factors` draws it. It gets no gradient.
    time_major: False for xs, mask, reset and outputs with the axes T and B (the
      first two) exchanged; they are exchanged once, outside the loop.
    reverse: go from the last step to the first; outputs stay at their inputs'
      places, and rows with lengths begin at their own last step.
    residuals: what is kept for the backward, as `chunks` says in numbers.
      "gates": the gates and more at every step, or with a chunk the state
      of every C-th step, from which its loop runs again. "recompute": the state
      at every step; what else a chunk needs is rebuilt at once.
    chunk: C, the steps that the backward has at hand; None for all T of them,
      or with "recompute" for so many that their products have 1,024 rows.
    vjp: whose gradient. "explicit": the derivation in `whole`. "step": the
      cell's own, scanned by JAX. "autodiff": JAX's, of the same forward; the
      only one that also has a forward mode (`jvp`, `linearize`).
    compute_dtype: of the products' operands, such as `jnp.bfloat16`; None for
      that of the weights. Sums, states and gradients keep their dtypes. Under
      another rule than "explicit" JAX adds up the weights' gradients in it.

  Returns:
    (state, hs): the state after the last step, and the outputs [T, ..., H].

  Raises:
    ValueError: xs is empty or does not fit the state or the weights; a mask,
      lengths, resets or zoneout do not fit xs; chunk is below 1; chunk or
      residuals go with another rule than "explicit"; or `vjp` or `residuals` is
      none of those named.
    TypeError: forward mode meets another rule than "autodiff".
  """
  if not time_major:
    xs, mask, reset = exchange_axes(xs, mask, reset)
  state, xs = jax.tree.map(jnp.asarray, (state, xs))
  _check(cell, params, state, xs, vjp, residuals, chunk)
  times = xs.shape[0], *state.h.shape[:-1]  # [T, ...]
  mask = _mask(mask, lengths, times)
  extras: tuple = ()
  if not (mask is None and reset is None and state_dropout is None):
    cell = wrappers.keeping_its_input(cell)
  if state_dropout is not None:
    cell = wrappers.state_dropout(cell)
    factor = _every_step("state_dropout", state_dropout, state.h, times)
    extras = factor, *extras
  if zoneout is not None:
    cell = wrappers.zoneout(cell)
    extras = _keeps(zoneout, state, times), *extras
  if reset is not None:
    cell = wrappers.resettable(cell)
    extras = _flags("reset", reset, times), *extras
  if mask is not None:
    cell = wrappers.masked(cell)
    extras = mask, *extras
    xs = _where(mask, xs)  # 0 · NaN is not 0: nothing masked may go further
  way = Way(compute_dtype, reverse)
  inputs = params, state, xs
  if vjp != "autodiff":
    inputs = reverse_only(inputs, NO_FORWARD_MODE)
  last, hs = _run(cell, way, residuals, chunk, vjp, *inputs, extras)
  hs = hs if mask is None else _where(mask, hs)
  return last, hs if time_major else jnp.swapaxes(hs, 0, 1)


def exchange_axes(*arrays: Any) -> Any:
  """Return each array with its first two axes exchanged, and None as it is."""
  return tuple(None if x is None else jnp.swapaxes(x, 0, 1) for x in arrays)


def _run(cell, way, residuals, chunk, vjp, params, state, xs, extras):
  """Return (state, hs) under the rule, in one piece or in chunks."""
  if vjp != "explicit":
    step = cell.step if vjp == "step" else plain(cell)
    return by_steps(step, way, params, state, xs, extras)
  if chunk is None and residuals == "recompute":
    chunk = -(-ROWS // max(1, math.prod(state.h.shape[:-1])))
  if chunk is None or (chunk >= len(xs) and residuals == "gates"):
    return whole(cell, way, params, state, xs, extras)
  chunk = min(chunk, len(xs))
  cut = len(xs) - len(xs) % chunk  # the rest is a sequence of its own

  def most(state):
    part = jax.tree.map(lambda x: x[:cut], (xs, extras))
    return in_chunks(cell, way, chunk, residuals, params, state, *part)

  def rest(state):
    part = jax.tree.map(lambda x: x[cut:], (xs, extras))
    return whole(cell, way, params, state, *part)

  if cut == len(xs):
    return most(state)
  if way.reverse:
    state, after = rest(state)
    state, before = most(state)
  else:
    state, before = most(state)
    state, after = rest(state)
  return state, jnp.concatenate([before, after])


def _where(mask: jax.Array, x: jax.Array) -> jax.Array:
  """Return x [T, ...] or [T, ..., K] where the mask holds, 0 elsewhere."""
  mask = mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim))
  return jnp.where(mask, x, jnp.zeros((), x.dtype))


def _mask(mask: Any, lengths: Any, times: tuple[int, ...]) -> jax.Array | None:
  """Return the mask [T, ...] that both ask for, or None for every step."""
  if mask is not None:
    mask = _flags("mask", mask, times)
  if lengths is None:
    return mask
  lengths = jnp.asarray(lengths)
  if lengths.shape != times[1:] or not is_token(lengths):
    raise ValueError(
      f"lengths must be integers {list(times[1:])}, "
      f"got {lengths.dtype} {lengths.shape}"
    )
  steps = jnp.arange(times[0], dtype=lengths.dtype)
  steps = steps.reshape(-1, *(1 for _ in times[1:]))
  within = steps < lengths[None]
  return within if mask is None else mask & within


def _flags(name: str, flags: Any, times: tuple[int, ...]) -> jax.Array:
  flags = jnp.asarray(flags)
  if flags.shape != times or flags.dtype != bool:
    raise ValueError(
      f"{name} must be bool {list(times)}, got {flags.dtype} {flags.shape}"
    )
  return flags


def _keeps(keep: State, state: State, times: tuple[int, ...]) -> State:
  """Return what zoneout keeps at every step."""
  if type(keep) is not type(state):
    raise ValueError(
      f"zoneout must be a {type(state).__name__}, got {type(keep).__name__}"
    )
  return jax.tree.map(
    lambda k, s: _every_step("zoneout", k, s, times), keep, state
  )


def _every_step(
  name: str, x: Any, like: jax.Array, times: tuple[int, ...]
) -> jax.Array:
  """Return x, which broadcasts to [T, ..., H], with its axis T there."""
  x, shape = jnp.asarray(x), (*times, like.shape[-1])
  full = (1,) * (len(shape) - x.ndim) + x.shape
  if len(full) > len(shape) or any(
    n not in (1, m) for n, m in zip(full, shape, strict=True)
  ):
    raise ValueError(f"{name} must broadcast to {list(shape)}, got {x.shape}")
  return jnp.broadcast_to(x.reshape(full), (times[0], *full[1:]))


def _check(
  cell: Cell,
  params: Params,
  state: State,
  xs: jax.Array,
  vjp: str,
  residuals: str,
  chunk: int | None,
) -> None:
  if vjp not in ("explicit", "step", "autodiff"):
    raise ValueError(f"vjp must be explicit, step or autodiff, got {vjp!r}")
  if residuals not in ("gates", "recompute"):
    raise ValueError(f"residuals must be gates or recompute, got {residuals!r}")
  if chunk is not None and chunk < 1:
    raise ValueError(f"chunk must be at least 1, got {chunk}")
  if vjp != "explicit" and (chunk is not None or residuals != "gates"):
    raise ValueError(
      "chunk and residuals go with vjp='explicit', "
      f"got {chunk}, {residuals!r} and {vjp!r}"
    )
  if xs.ndim == 0 or xs.shape[0] == 0:
    raise ValueError(f"xs must have at least one step (T ≥ 1), got {xs.shape}")
  check_inputs("xs", cell.initial_state, params, state, xs, xs.shape[:1])
