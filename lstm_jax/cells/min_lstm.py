"""Minimal LSTM (minLSTM), a linear recurrence: one step, forward and backward.

Forward                              Local gradients
  a  = x W_x + b                       ∂h'/∂s   = (h − aₙ) ⊙ p ⊙ (1 − p)
  f  = σ(a_f)                          ∂h'/∂a_f = ∂h'/∂s ⊙ (1 − f)
  i  = σ(aᵢ)                           ∂h'/∂aᵢ  = −∂h'/∂s ⊙ (1 − i)
  p  = f / (f + i)                     ∂h'/∂aₙ  = 1 − p
  h' = p ⊙ h + (1 − p) ⊙ aₙ            ∂h'/∂h   = p

Backward, from dh'
  da_f = dh' ⊙ ∂h'/∂a_f                dx   = da W_xᵀ
  daᵢ  = dh' ⊙ ∂h'/∂aᵢ                 dW_x = Σ xᵀ da
  daₙ  = dh' ⊙ ∂h'/∂aₙ                 db   = Σ da
  dh   = dh' ⊙ ∂h'/∂h

with a = [a_f, aᵢ, aₙ] along its last axis. A prime marks the value after the
step. p is the forget gate's share of both gates, so that h is a weighted mean
of the initial state and the candidates aₙ, and does not grow with the length of
the sequence. Where both gates underflow, f / (f + i) would be 0 / 0; so p is
computed as

  p = σ(s),   s = log f − log i = softplus(−aᵢ) − softplus(−a_f)

No gate depends on h, and there is no W_h and no output gate. As the recurrence
is linear in h, `unroll` with `Explicit` computes all time steps at once
(`sequence.linear`).

  >>> import jax, jax.numpy as jnp
  >>> params = init(jax.random.key(0), input_size=3, hidden_size=5)
  >>> state = initial_state(params, batch_shape=(2,))
  >>> step(params, state, jnp.ones((2, 3))).h.shape
  (2, 5)

Reference: Feng, Tung, Ahmed, Bengio and Hajimirsadeghi (2024), Were RNNs all we
needed?, section 3.2.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from lstm_jax.cells.activations import dsigmoid, sigmoid, softplus
from lstm_jax.cells.affine import affine_backward, as_row, select_or_multiply
from lstm_jax.cells.cell import one_step
from lstm_jax.cells.checks import state_shape
from lstm_jax.cells.initializers import (
  check_init,
  gate_biases,
  input_weights,
)
from lstm_jax.cells.precision import cast_like, upcast
from lstm_jax.cells.rnn import RNNState
from lstm_jax.cells.serialization import serializable


@serializable
class MinLSTMParams(NamedTuple):
  """Weights of a minimal LSTM; 3H is [f, i, n], each H wide."""

  w_x: jax.Array  # [D, 3H]
  b: jax.Array  # [3H]


takes_tokens = True  # x is used in x W_x alone: it may be integer tokens
linear_recurrence = True  # h' is linear in h, unit by unit


def project(params: MinLSTMParams, x: jax.Array) -> jax.Array:
  """Return x W_x, [..., 3H]: the pre-activations without their bias."""
  return select_or_multiply(x, params.w_x)


def recur(
  params: MinLSTMParams, state: RNNState, ax: jax.Array
) -> tuple[RNNState, jax.Array, tuple[()]]:
  """Return the next state, given the projected input ax [..., 3H].

  Returns:
    (state, local_grads, ()): the next state; ∂h'/∂a_f, ∂h'/∂aᵢ and ∂h'/∂h,
    [..., 3H].
  """
  af, ai, an = jnp.split(ax + as_row(params.b, ax), 3, axis=-1)
  h = upcast(state.h)
  p = sigmoid(softplus(-ai) - softplus(-af))
  h_next = p * h + (1 - p) * an
  state_next = cast_like(RNNState(h_next), state)
  return state_next, *_local_gradients(h, p, af, ai, an)


def _local_gradients(
  h: jax.Array, p: jax.Array, af: jax.Array, ai: jax.Array, an: jax.Array
) -> tuple[jax.Array, tuple[()]]:
  """Return (the local gradients of h' = p ⊙ h + (1 − p) ⊙ aₙ, ())."""
  dh_ds = (h - an) * dsigmoid(p)
  dh_daf = dh_ds * sigmoid(-af)
  dh_dai = -dh_ds * sigmoid(-ai)
  dh_dh = p  # saved in place of ∂h'/∂aₙ = 1 − p, which rounds a small p away
  return jnp.concatenate([dh_daf, dh_dai, dh_dh], axis=-1), ()


def recur_backward(
  params: MinLSTMParams,
  local_grads: jax.Array,
  residuals: tuple[()],
  d_state: RNNState,
) -> tuple[RNNState, jax.Array]:
  """Return (d_state before the step, da [..., 3H]) from d_state after it."""
  del params, residuals
  (dh_next,) = d_state
  _, _, h_wrt_h = jnp.split(local_grads, 3, axis=-1)
  units = jnp.arange(local_grads.shape[-1])
  is_of_an = as_row(units >= 2 * h_wrt_h.shape[-1], local_grads)
  # The last third holds p = ∂h'/∂h, and ∂h'/∂aₙ is 1 − p. To concatenate three
  # different parts here instead would be slower over a sequence.
  dh_da = jnp.where(is_of_an, 1 - local_grads, local_grads)
  da = jnp.concatenate([dh_next, dh_next, dh_next], axis=-1) * dh_da
  dh = dh_next * h_wrt_h
  return RNNState(dh), da


def parameter_gradients(
  params: MinLSTMParams,
  x: jax.Array,
  h: jax.Array,
  residuals: tuple[()],
  da: jax.Array,
) -> tuple[MinLSTMParams, jax.Array | None]:
  """Return (d_params, dx); d_params are sums over the rows of da [..., 3H]."""
  del h, residuals
  dx, dw_x, db = affine_backward(x, params.w_x, da)
  return MinLSTMParams(dw_x, db), dx


def init(
  key: jax.Array,
  input_size: int,
  hidden_size: int,
  dtype: DTypeLike = jnp.float32,
) -> MinLSTMParams:
  """Return initial weights, as in `initializers`; biases 0, forget bias 1.

  Args:
    key: a typed PRNG key.
    input_size: D.
    hidden_size: H.
    dtype: the dtype of every parameter.

  Raises:
    ValueError: a size is not an integer ≥ 1, or dtype is not a float dtype.
  """
  input_size, hidden_size = check_init(input_size, hidden_size, dtype)
  w_x = input_weights(key, input_size, hidden_size, 3, dtype)
  b = gate_biases(hidden_size, 3, dtype, forget=0)  # 1 for gate 0, which is f
  return MinLSTMParams(w_x, b)


def initial_state(
  params: MinLSTMParams, batch_shape: tuple[int, ...] = ()
) -> RNNState:
  """Return the zero state, in the weights' dtype."""
  shape = state_shape(batch_shape, params.b.shape[0] // 3)
  return RNNState(jnp.zeros(shape, params.b.dtype))


forward, backward, step = one_step(
  initial_state, project, recur, recur_backward, parameter_gradients
)
