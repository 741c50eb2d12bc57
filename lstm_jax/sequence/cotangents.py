"""How a gradient flows back through time: the cotangent of every state.

Forward, for t = 1 … T               Backward, for t = T … 1
  sₜ, kₜ = recur(sₜ₋₁, xₜ W_x)          dsₜ₋₁ = recur_backward(kₜ, dsₜ)

from dsT = ∂ℓ/∂s_T, for a loss ℓ that reads nothing but the last state. Then

  dsₜ = ∂ℓ/∂sₜ = (∂s_T/∂sₜ)ᵀ dsT

is what a change of the state after t steps would do to it: where ‖dsₜ‖ dies out
as T − t grows, the loss has no gradient to learn from what was read so long
ago, and where it grows without bound, no step size suits all (Bengio et al.).
A training step adds these up over the losses of all T, which hides them, and
never keeps them; here each is a row of the result.

The fields of a state are told apart: an LSTM's dh is with c held fixed, and dc
with h.

  >>> import jax, jax.numpy as jnp
  >>> from lstm_jax.cells import lstm
  >>> params = lstm.init(jax.random.key(0), input_size=3, hidden_size=5)
  >>> state = lstm.initial_state(params, batch_shape=(2,))
  >>> d_last = jax.tree.map(jnp.ones_like, state)
  >>> state_cotangents(lstm, params, state, jnp.ones((7, 2, 3)), d_last).c.shape
  (8, 2, 5)

Reference: Bengio, Simard and Frasconi (1994), Learning long-term dependencies
with gradient descent is difficult.
"""

import jax
import jax.numpy as jnp
from jax import lax

from lstm_jax.cells.cell import Cell, Params, State, check_inputs
from lstm_jax.cells.precision import cast_like, wide
from lstm_jax.sequence.scan import Way, forward


def state_cotangents(
  cell: Cell, params: Params, state: State, xs: jax.Array, d_last: State
) -> State:
  """Return the cotangent of every state, from that of the last.

  The gradient is the cell's own backward, step by step; no weight's gradient is
  made.

  Args:
    cell: `lstm`, `gru`, `rnn`, or anything with the same functions.
    params: the cell's weights.
    state: the state before the first step, as `initial_state` makes it.
    xs: inputs [T, ..., D], or integer tokens [T, ...] in [0, D).
    d_last: the cotangent of the state after the last step, a state.

  Returns:
    A state of arrays [T + 1, ..., H]: row t is the cotangent of the state after
    t steps. Row 0 is that of the state given, and row T is d_last.

  Raises:
    ValueError: xs is empty or does not fit the state or the weights, or d_last
      does not fit the state.
  """
  state, xs, d_last = jax.tree.map(jnp.asarray, (state, xs, d_last))
  _check(cell, params, state, xs, d_last)
  _, residuals = forward(cell, Way(), params, state, xs, ())

  def body(d_after, inputs):
    kept, tape = inputs
    d_before, *_ = cell.recur_backward(params, kept, tape, d_after)
    d_before = cast_like(d_before, d_after)
    return d_before, cast_like(d_before, state)

  # Carried in float32 or wider: T roundings to bfloat16 would add up.
  steps = residuals.kept, residuals.tape
  _, d_states = lax.scan(body, wide(d_last), steps, reverse=True)
  return jax.tree.map(
    lambda before, last: jnp.concatenate([before, last[None]]), d_states, d_last
  )


def _check(
  cell: Cell, params: Params, state: State, xs: jax.Array, d_last: State
) -> None:
  if xs.ndim == 0 or xs.shape[0] == 0:
    raise ValueError(f"xs must have at least one step (T ≥ 1), got {xs.shape}")
  check_inputs("xs", cell.initial_state, params, state, xs, xs.shape[:1])
  if type(d_last) is not type(state):
    wanted, found = type(state).__name__, type(d_last).__name__
    raise ValueError(f"d_last must be a {wanted}, got {found}")
  for field, leaf, like in zip(state._fields, d_last, state, strict=True):
    if (leaf.shape, leaf.dtype) != (like.shape, like.dtype):
      raise ValueError(
        f"d_last.{field} must be {like.dtype} {list(like.shape)}, "
        f"got {leaf.dtype} {leaf.shape}"
      )
