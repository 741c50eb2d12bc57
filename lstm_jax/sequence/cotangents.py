"""The gradient with respect to every state of a sequence, backward in time.

Forward, for t = 1 … T               Backward, for t = T … 1
  sₜ, rₜ = recur(sₜ₋₁, project(xₜ))     dsₜ₋₁ = recur_backward(rₜ, dsₜ)

from ds_T = ∂ℓ/∂s_T, for a loss ℓ of the last state alone. Then

  dsₜ = ∂ℓ/∂sₜ = (∂s_T/∂sₜ)ᵀ ds_T

is the sensitivity of the loss to the state after t steps. Where ‖dsₜ‖ vanishes
as T − t grows, the loss has no gradient to learn from inputs so far back; where
it explodes, no learning rate suits all time steps (Bengio et al.). A training
step sums these cotangents over the losses of all T steps, and does not save
them; here each is a row of the result.

Each field of the state has its own cotangent: an LSTM's dh is taken with c held
fixed, and dc with h held fixed.

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

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from lstm_jax.cells.cell import Cell, ParamsT, State, StateT
from lstm_jax.cells.checks import check_arrays, check_leaves, check_same_type
from lstm_jax.cells.mesh import auto_sharded, batch_sharding, vary_alike
from lstm_jax.cells.platform import compiled
from lstm_jax.cells.precision import cast_like, upcast
from lstm_jax.cells.weight_checks import PARTS
from lstm_jax.sequence.arguments import (
  as_inputs,
  check_functions,
  check_sequence,
)
from lstm_jax.sequence.joined import separate
from lstm_jax.sequence.primal import ScanOptions
from lstm_jax.sequence.scan import forward


def state_cotangents(
  cell: Cell[ParamsT, StateT],
  params: ParamsT,
  state: StateT | None,
  xs: jax.Array,
  d_last: StateT,
) -> StateT:
  """Return the cotangent of every state, given that of the last state.

  Scans the cell's own `recur_backward`; no weight gradient is computed. Masks,
  resets and the other options of `unroll` are not supported.

  Args:
    cell: `lstm`, `gru`, `rnn`, or any object with the functions of `Cell`.
    params: the cell's weights.
    state: the state before the first step, as `initial_state` returns it; None
      for the zero state.
    xs: inputs [T, ..., D], or integer tokens [T, ...] in [0, D).
    d_last: ∂ℓ/∂s_T, with the type, shapes and dtypes of the state.

  Returns:
    A state of arrays [T + 1, ..., H]. Row t is the cotangent of the state after
    t steps: row 0 is that of the initial state, and row T is d_last.

  Raises:
    ValueError: cell is not a cell, is wrapped, is not hashable or has no
      backward; xs has no time step, or does not fit the state or the weights;
      params are of another cell; or d_last does not fit the state.
    NotImplementedError: the cell's backward raises it.
  """
  check_leaves(d_last=d_last)
  xs, d_last = as_inputs(xs), jax.tree.map(jnp.asarray, d_last)
  state = check_sequence(cell, params, state, xs)
  check_functions(cell, PARTS)
  _check_like(state, d_last)
  params, state, xs, d_last = vary_alike((params, state, xs, d_last))
  batch = batch_sharding(params, state, xs, start=1)
  sharding = NamedSharding(batch.mesh, PartitionSpec(None, *batch.spec))
  return _apply(cell, sharding, params, state, xs, d_last)


@partial(compiled, num_static=2)
def _apply(cell, sharding, *arguments):
  return auto_sharded(partial(_scan_back, cell), sharding)(*arguments)


def _scan_back(cell, params, state, xs, d_last):
  _, saved = forward(cell, ScanOptions(), params, state, xs, ())

  def body(d_after, inputs):
    gates, residuals = inputs
    residuals = separate(residuals)
    d_before, *_ = cell.recur_backward(params, gates, residuals, d_after)
    d_before = cast_like(d_before, d_after)
    return d_before, cast_like(d_before, state)

  # The carry is upcast: in bfloat16, T roundings of it would add up.
  inputs = saved.gates, saved.hs_and_residuals[1]
  _, d_states = lax.scan(body, upcast(d_last), inputs, reverse=True)
  return jax.tree.map(
    lambda before, last: jnp.concatenate([before, last[None]]), d_states, d_last
  )


def _check_like(state: State, d_last: State) -> None:
  check_same_type("d_last", d_last, state)
  check_arrays("d_last", d_last)
  for field, leaf, like in zip(state._fields, d_last, state, strict=True):
    if (leaf.shape, leaf.dtype) != (like.shape, like.dtype):
      raise ValueError(
        f"d_last.{field} must be {like.dtype} {list(like.shape)}, "
        f"got {leaf.dtype} {leaf.shape}"
      )
