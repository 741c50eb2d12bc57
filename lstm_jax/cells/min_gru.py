"""Minimal GRU (minGRU), a linear recurrence: one step, forward and backward.

Forward                              Local gradients
  a  = x W_x + b                       ∂h'/∂a_z = (aₙ − h) ⊙ z ⊙ (1 − z)
  z  = σ(a_z)                          ∂h'/∂aₙ  = z
  h' = (1 − z) ⊙ h + z ⊙ aₙ            ∂h'/∂h   = 1 − z

Backward, from dh'
  da_z = dh' ⊙ ∂h'/∂a_z                dx   = da W_xᵀ
  daₙ  = dh' ⊙ ∂h'/∂aₙ                 dW_x = Σ xᵀ da
  dh   = dh' ⊙ ∂h'/∂h                  db   = Σ da

with a = [a_z, aₙ] along its last axis. A prime marks the value after the step.
Neither z nor the candidate aₙ depends on h, and there is no W_h. The state is a
mean of the initial state and all candidates so far, weighted by the gates. As
its recurrence is linear in h, `unroll` with `Explicit` computes all time steps
at once (`sequence.linear`).

z is the share of the *candidate*, as in the paper; in `gru` it is that of the
state before.

  >>> import jax, jax.numpy as jnp
  >>> params = init(jax.random.key(0), input_size=3, hidden_size=5)
  >>> state = initial_state(params, batch_shape=(2,))
  >>> step(params, state, jnp.ones((2, 3))).h.shape
  (2, 5)

Reference: Feng, Tung, Ahmed, Bengio and Hajimirsadeghi (2024), Were RNNs all we
needed?, section 3.1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from lstm_jax.cells.activations import dsigmoid, sigmoid
from lstm_jax.cells.affine import affine_backward, as_row, select_or_multiply
from lstm_jax.cells.cell import one_step
from lstm_jax.cells.checks import state_shape
from lstm_jax.cells.initializers import check_init, input_weights
from lstm_jax.cells.precision import cast_like, upcast
from lstm_jax.cells.rnn import RNNState
from lstm_jax.cells.serialization import serializable


@serializable
class MinGRUParams(NamedTuple):
  """Weights of a minimal GRU; 2H is [z, n], each H wide."""

  w_x: jax.Array  # [D, 2H]
  b: jax.Array  # [2H]


takes_tokens = True  # x is used in x W_x alone: it may be integer tokens
linear_recurrence = True  # h' is linear in h, unit by unit


def project(params: MinGRUParams, x: jax.Array) -> jax.Array:
  """Return x W_x, [..., 2H]: the pre-activations without their bias."""
  return select_or_multiply(x, params.w_x)


def recur(
  params: MinGRUParams, state: RNNState, ax: jax.Array
) -> tuple[RNNState, jax.Array, tuple[()]]:
  """Return the next state, given the projected input ax [..., 2H].

  Returns:
    (state, local_grads, ()): the next state; ∂h'/∂a_z and ∂h'/∂aₙ, [..., 2H].
  """
  az, an = jnp.split(ax + as_row(params.b, ax), 2, axis=-1)
  h = upcast(state.h)
  z = sigmoid(az)
  h_next = (1 - z) * h + z * an
  state_next = cast_like(RNNState(h_next), state)
  return state_next, *_local_gradients(h, z, an)


def _local_gradients(
  h: jax.Array, z: jax.Array, an: jax.Array
) -> tuple[jax.Array, tuple[()]]:
  """Return ([∂h'/∂a_z, ∂h'/∂aₙ], ()): the cell has no residuals."""
  dh_daz = (an - h) * dsigmoid(z)
  dh_dan = z
  return jnp.concatenate([dh_daz, dh_dan], axis=-1), ()


def recur_backward(
  params: MinGRUParams,
  local_grads: jax.Array,
  residuals: tuple[()],
  d_state: RNNState,
) -> tuple[RNNState, jax.Array]:
  """Return (d_state before the step, da [..., 2H]) from d_state after it."""
  del params, residuals
  (dh_next,) = d_state
  _, z = jnp.split(local_grads, 2, axis=-1)  # ∂h'/∂aₙ = z
  da = jnp.concatenate([dh_next, dh_next], axis=-1) * local_grads
  dh = dh_next * (1 - z)
  return RNNState(dh), da


def parameter_gradients(
  params: MinGRUParams,
  x: jax.Array,
  h: jax.Array,
  residuals: tuple[()],
  da: jax.Array,
) -> tuple[MinGRUParams, jax.Array | None]:
  """Return (d_params, dx); d_params are sums over the rows of da [..., 2H]."""
  del h, residuals
  dx, dw_x, db = affine_backward(x, params.w_x, da)
  return MinGRUParams(dw_x, db), dx


def init(
  key: jax.Array,
  input_size: int,
  hidden_size: int,
  dtype: DTypeLike = jnp.float32,
) -> MinGRUParams:
  """Return initial weights, as in `initializers`; biases 0.

  Args:
    key: a typed PRNG key.
    input_size: D.
    hidden_size: H.
    dtype: the dtype of every parameter.

  Raises:
    ValueError: a size is not an integer ≥ 1, or dtype is not a float dtype.
  """
  input_size, hidden_size = check_init(input_size, hidden_size, dtype)
  w_x = input_weights(key, input_size, hidden_size, 2, dtype)
  return MinGRUParams(w_x, jnp.zeros((2 * hidden_size,), dtype))


def initial_state(
  params: MinGRUParams, batch_shape: tuple[int, ...] = ()
) -> RNNState:
  """Return the zero state, in the weights' dtype."""
  shape = state_shape(batch_shape, params.b.shape[0] // 2)
  return RNNState(jnp.zeros(shape, params.b.dtype))


forward, backward, step = one_step(
  initial_state, project, recur, recur_backward, parameter_gradients
)
