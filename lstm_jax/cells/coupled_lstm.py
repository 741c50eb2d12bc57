"""LSTM with coupled input and forget gates: one step, forward and backward.

Forward                              Local gradients
  a  = x W_x + h W_h + b               ∂c'/∂a_f = (c − g) ⊙ f ⊙ (1 − f)
  f  = σ(a_f)                          ∂c'/∂a_g = (1 − f) ⊙ (1 − g²)
  g  = tanh(a_g)                       ∂h'/∂aₒ  = tanh c' ⊙ o ⊙ (1 − o)
  o  = σ(aₒ)                           ∂h'/∂c'  = o ⊙ (1 − tanh² c')
  c' = f ⊙ c + (1 − f) ⊙ g             ∂c'/∂c   = f
  h' = o ⊙ tanh c'

Backward, from dh' and dc'
  dc₊  = dc' + dh' ⊙ ∂h'/∂c'           dh   = da W_hᵀ
  da_f = dc₊ ⊙ ∂c'/∂a_f                dc   = dc₊ ⊙ f
  da_g = dc₊ ⊙ ∂c'/∂a_g                dx   = da W_xᵀ
  daₒ  = dh' ⊙ ∂h'/∂aₒ                 dW_x = Σ xᵀ da
                                       dW_h = Σ hᵀ da
                                       db   = Σ da

with a = [a_f, a_g, aₒ] along its last axis, and dc₊ the whole cotangent of c'
(see `lstm`). The input gate is i = 1 − f: c' is a weighted mean of c and g, and
stays within ±1 if it starts there. There are a quarter fewer weights than in an
LSTM.

  >>> import jax, jax.numpy as jnp
  >>> params = init(jax.random.key(0), input_size=3, hidden_size=5)
  >>> state = initial_state(params, batch_shape=(2,))
  >>> step(params, state, jnp.ones((2, 3))).h.shape
  (2, 5)

Reference: Greff et al. (2017), LSTM: a search space odyssey, the variant CIFG.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from lstm_jax.cells import lstm
from lstm_jax.cells.activations import dsigmoid, dtanh, sigmoid, tanh
from lstm_jax.cells.affine import (
  affine_backward,
  as_row,
  outer,
  product,
  product_transposed,
  select_or_multiply,
)
from lstm_jax.cells.cell import one_step
from lstm_jax.cells.initializers import gate_weights
from lstm_jax.cells.lstm import LSTMResiduals, LSTMState
from lstm_jax.cells.platform import computed_once
from lstm_jax.cells.precision import cast_like, upcast
from lstm_jax.cells.serialization import serializable


@serializable
class CoupledLSTMParams(NamedTuple):
  """Weights of a coupled LSTM; 3H is [f, g, o], each H wide."""

  w_x: jax.Array  # [D, 3H]
  w_h: jax.Array  # [H, 3H]
  b: jax.Array  # [3H]


takes_tokens = True  # x is used in x W_x alone: it may be integer tokens


def project(params: CoupledLSTMParams, x: jax.Array) -> jax.Array:
  """Return x W_x, [..., 3H]: the input's part of the pre-activations."""
  return select_or_multiply(x, params.w_x)


def recur(
  params: CoupledLSTMParams, state: LSTMState, ax: jax.Array
) -> tuple[LSTMState, jax.Array, LSTMResiduals]:
  """Return the next state, given the projected input ax [..., 3H].

  Returns:
    (state, gates, residuals): the next state; f, g, o, [..., 3H]; and c.
  """
  a = ax + product(state.h, params.w_h) + as_row(params.b, ax)
  # On a CPU, XLA would compute this again in each of its consumers.
  af, ag, ao = jnp.split(computed_once(a), 3, axis=-1)
  gates = jnp.concatenate([sigmoid(af), tanh(ag), sigmoid(ao)], axis=-1)
  gates = computed_once(gates)
  f, g, o = jnp.split(gates, 3, axis=-1)
  c = upcast(state.c)
  c_next, tanh_c = _next_c(f, g, c)
  h_next = o * tanh_c
  state_next = cast_like(LSTMState(h_next, c_next), state)
  return state_next, gates, LSTMResiduals(c)


def _next_c(
  f: jax.Array, g: jax.Array, c: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Return c' and tanh c'."""
  c_next = f * c + (1 - f) * g
  return c_next, tanh(c_next)


def recur_backward(
  params: CoupledLSTMParams,
  gates: jax.Array,
  residuals: LSTMResiduals,
  d_state: LSTMState,
) -> tuple[LSTMState, jax.Array]:
  """Return (d_state before the step, da [..., 3H]) from d_state after it."""
  f, g, o = jnp.split(gates, 3, axis=-1)
  _, tanh_c = _next_c(f, g, residuals.c)
  dh_next, dc_next = d_state
  dc_sum = dc_next + dh_next * o * dtanh(tanh_c)
  daf = dc_sum * (residuals.c - g) * dsigmoid(f)
  dag = dc_sum * (1 - f) * dtanh(g)
  dao = dh_next * tanh_c * dsigmoid(o)
  # On a CPU, XLA would compute da again in each of its consumers.
  da = computed_once(jnp.concatenate([daf, dag, dao], axis=-1))
  dh = product_transposed(da, params.w_h)
  dc = dc_sum * f
  return LSTMState(dh, dc), da


def parameter_gradients(
  params: CoupledLSTMParams,
  x: jax.Array,
  h: jax.Array,
  residuals: LSTMResiduals,
  da: jax.Array,
) -> tuple[CoupledLSTMParams, jax.Array | None]:
  """Return (d_params, dx); d_params are sums over the rows of da [..., 3H]."""
  del residuals  # not needed: x W_x and h W_h have the same cotangent
  dx, dw_x, db = affine_backward(x, params.w_x, da)
  dw_h = outer(h, da, params.w_h.dtype)
  return CoupledLSTMParams(dw_x, dw_h, db), dx


def init(
  key: jax.Array,
  input_size: int,
  hidden_size: int,
  dtype: DTypeLike = jnp.float32,
) -> CoupledLSTMParams:
  """Return initial weights, as in `initializers`; biases 0, forget bias 1.

  Args:
    key: a typed PRNG key.
    input_size: D.
    hidden_size: H.
    dtype: the dtype of every parameter.

  Raises:
    ValueError: a size is not an integer ≥ 1, or dtype is not a float dtype.
  """
  return CoupledLSTMParams(
    # `forget` is the index of the gate f among [f, g, o], whose bias is 1.
    *gate_weights(key, input_size, hidden_size, 3, dtype, forget=0)
  )


initial_state = lstm.initial_state

forward, backward, step = one_step(
  initial_state, project, recur, recur_backward, parameter_gradients
)
