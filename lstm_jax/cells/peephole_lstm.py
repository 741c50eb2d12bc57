"""LSTM with peepholes: one step, forward and backward.

Forward                              Local gradients
  a  = x W_x + h W_h + b               ∂c'/∂aᵢ  = g ⊙ i ⊙ (1 − i)
  i  = σ(aᵢ  + wᵢ ⊙ c)                 ∂c'/∂a_f = c ⊙ f ⊙ (1 − f)
  f  = σ(a_f + w_f ⊙ c)                ∂c'/∂a_g = i ⊙ (1 − g²)
  g  = tanh(a_g)                       ∂h'/∂aₒ  = tanh c' ⊙ o ⊙ (1 − o)
  c' = f ⊙ c + i ⊙ g                   ∂h'/∂c'  = o ⊙ (1 − tanh² c')
  o  = σ(aₒ  + wₒ ⊙ c')                ∂c'/∂c   = f
  h' = o ⊙ tanh c'

Backward, from dh' and dc'
  daₒ  = dh' ⊙ ∂h'/∂aₒ                            dh   = da W_hᵀ
  dc₊  = dc' + dh' ⊙ ∂h'/∂c' + daₒ ⊙ wₒ           dx   = da W_xᵀ
  daᵢ  = dc₊ ⊙ ∂c'/∂aᵢ                            dW_x = Σ xᵀ da
  da_f = dc₊ ⊙ ∂c'/∂a_f                           dW_h = Σ hᵀ da
  da_g = dc₊ ⊙ ∂c'/∂a_g                           db   = Σ da
  dc   = dc₊ ⊙ f + daᵢ ⊙ wᵢ + da_f ⊙ w_f          dwᵢ  = Σ daᵢ ⊙ c
                                                  dw_f = Σ da_f ⊙ c
                                                  dwₒ  = Σ daₒ ⊙ c'

Each of the gates i, f and o also reads the cell state of its own unit: i and f
read c, o reads c'. The local gradients leave out these paths, which dc₊ and dc
add. The notation is that of `lstm`; dc₊ is all of the gradient with respect to
c'.

  >>> import jax, jax.numpy as jnp
  >>> params = init(jax.random.key(0), input_size=3, hidden_size=5)
  >>> state = initial_state(params, batch_shape=(2,))
  >>> step(params, state, jnp.ones((2, 3))).h.shape
  (2, 5)

References: Gers and Schmidhuber (2000), Recurrent nets that time and count;
Graves (2013), Generating sequences with recurrent neural networks, equations 7
to 11.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from lstm_jax.cells import lstm
from lstm_jax.cells.activations import sigmoid, tanh
from lstm_jax.cells.affine import (
  affine_backward,
  as_row,
  outer,
  product,
  product_transposed,
  select_or_multiply,
  total,
)
from lstm_jax.cells.cell import one_step
from lstm_jax.cells.lstm import LSTMState, local_gradients
from lstm_jax.cells.platform import computed_once
from lstm_jax.cells.precision import cast_like, upcast
from lstm_jax.cells.serialization import serializable


@serializable
class PeepholeLSTMParams(NamedTuple):
  """Weights of an LSTM with peepholes; 4H is [i, f, g, o], each H wide."""

  w_x: jax.Array  # [D, 4H]
  w_h: jax.Array  # [H, 4H]
  b: jax.Array  # [4H]
  w_c: jax.Array  # [3H], the peepholes of i, f and o


@serializable
class PeepholeLSTMResiduals(NamedTuple):
  """What `recur` saves for the backward, besides the gates."""

  c: jax.Array  # [..., H], before the step
  c_next: jax.Array  # [..., H], after it


takes_tokens = True  # x is used in x W_x alone: it may be integer tokens


def project(params: PeepholeLSTMParams, x: jax.Array) -> jax.Array:
  """Return x W_x, [..., 4H]: the input's part of the pre-activations."""
  return select_or_multiply(x, params.w_x)


def recur(
  params: PeepholeLSTMParams, state: LSTMState, ax: jax.Array
) -> tuple[LSTMState, jax.Array, PeepholeLSTMResiduals]:
  """Return the next state, given the projected input ax [..., 4H].

  Returns:
    (state, gates, residuals): the next state; i, f, g, o, [..., 4H]; and c,
    before and after the step.
  """
  a = ax + product(state.h, params.w_h) + as_row(params.b, ax)
  # On a CPU, XLA would compute this again in each of its consumers.
  ai, af, ag, ao = jnp.split(computed_once(a), 4, axis=-1)
  c = upcast(state.c)
  w_i, w_f, w_o = _peepholes(params, c)
  i = sigmoid(ai + w_i * c)
  f = sigmoid(af + w_f * c)
  g = tanh(ag)
  c_next = f * c + i * g
  o = sigmoid(ao + w_o * c_next)
  h_next = o * tanh(c_next)
  state_next = cast_like(LSTMState(h_next, c_next), state)
  gates = jnp.concatenate([i, f, g, o], axis=-1)
  return state_next, gates, PeepholeLSTMResiduals(c, c_next)


def recur_backward(
  params: PeepholeLSTMParams,
  gates: jax.Array,
  residuals: PeepholeLSTMResiduals,
  d_state: LSTMState,
) -> tuple[LSTMState, jax.Array]:
  """Return (d_state before the step, da [..., 4H]) from d_state after it."""
  tanh_c = tanh(residuals.c_next)
  local_grads, h_wrt_c_next = local_gradients(gates, residuals.c, tanh_c)
  c_wrt_ai, c_wrt_af, c_wrt_ag, h_wrt_ao = jnp.split(local_grads, 4, axis=-1)
  _, f, _, _ = jnp.split(gates, 4, axis=-1)
  dh_next, dc_next = d_state
  w_i, w_f, w_o = _peepholes(params, dc_next)
  dao = dh_next * h_wrt_ao
  dc_sum = dc_next + dh_next * h_wrt_c_next + dao * w_o
  dai, daf, dag = dc_sum * c_wrt_ai, dc_sum * c_wrt_af, dc_sum * c_wrt_ag
  # On a CPU, XLA would compute da again in each of its consumers.
  da = computed_once(jnp.concatenate([dai, daf, dag, dao], axis=-1))
  dh = product_transposed(da, params.w_h)
  dc = dc_sum * f + dai * w_i + daf * w_f
  return LSTMState(dh, dc), da


def parameter_gradients(
  params: PeepholeLSTMParams,
  x: jax.Array,
  h: jax.Array,
  residuals: PeepholeLSTMResiduals,
  da: jax.Array,
) -> tuple[PeepholeLSTMParams, jax.Array | None]:
  """Return (d_params, dx); d_params are sums over the rows of da [..., 4H]."""
  dx, dw_x, db = affine_backward(x, params.w_x, da)
  dw_h = outer(h, da, params.w_h.dtype)
  dai, daf, _, dao = jnp.split(da, 4, axis=-1)
  dw_i, dw_f = total(dai * residuals.c), total(daf * residuals.c)
  dw_o = total(dao * residuals.c_next)
  dw_c = jnp.concatenate([dw_i, dw_f, dw_o])
  return PeepholeLSTMParams(dw_x, dw_h, db, dw_c), dx


def _peepholes(params: PeepholeLSTMParams, like: jax.Array) -> list[jax.Array]:
  return jnp.split(as_row(params.w_c, like), 3, axis=-1)


def init(
  key: jax.Array,
  input_size: int,
  hidden_size: int,
  dtype: DTypeLike = jnp.float32,
) -> PeepholeLSTMParams:
  """Return the LSTM's initial weights, and peepholes of 0.

  Args:
    key: a typed PRNG key.
    input_size: D.
    hidden_size: H.
    dtype: the dtype of every parameter.

  Raises:
    ValueError: a size is not an integer ≥ 1, or dtype is not a float dtype.
  """
  w_x, w_h, b = lstm.init(key, input_size, hidden_size, dtype)
  return PeepholeLSTMParams(w_x, w_h, b, jnp.zeros(3 * len(w_h), dtype))


initial_state = lstm.initial_state

forward, backward, step = one_step(
  initial_state, project, recur, recur_backward, parameter_gradients
)
