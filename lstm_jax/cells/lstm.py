"""Long short-term memory: one step, forward and backward.

Forward                              Backward, from dh' and dc'
  a  = x W_x + h W_h + b               do  = dh' ⊙ tanh c'
  i  = σ(aᵢ)                           dc₊ = dc' + dh' ⊙ o ⊙ (1 − tanh² c')
  f  = σ(a_f)                          di  = dc₊ ⊙ g
  g  = tanh(a_g)                       df  = dc₊ ⊙ c
  o  = σ(aₒ)                           dg  = dc₊ ⊙ i
  c' = f ⊙ c + i ⊙ g                   daᵢ = di ⊙ i ⊙ (1 − i)
  h' = o ⊙ tanh c'                     da_f = df ⊙ f ⊙ (1 − f)
                                       da_g = dg ⊙ (1 − g²)
                                       daₒ = do ⊙ o ⊙ (1 − o)
                                       dh  = da W_hᵀ
                                       dc  = dc₊ ⊙ f
                                       dx  = da W_xᵀ
                                       dW_x = Σ xᵀ da
                                       dW_h = Σ hᵀ da
                                       db  = Σ da

with a = [aᵢ, a_f, a_g, aₒ] along its last axis. c' reaches the loss twice,
through h' and through the next step, hence the sum dc₊.

  >>> import jax, jax.numpy as jnp
  >>> params = init(jax.random.key(0), input_size=3, hidden_size=5)
  >>> state = initial_state(params, batch_shape=(2,))
  >>> step(params, state, jnp.ones((2, 3))).h.shape
  (2, 5)

References:
  Hochreiter and Schmidhuber (1997), Long short-term memory. Gers, Schmidhuber
  and Cummins (2000), Learning to forget: the forget gate. Jozefowicz, Zaremba
  and Sutskever (2015), An empirical exploration of recurrent network
  architectures: a forget bias of 1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax.cells.activations import dsigmoid, dtanh, tanh
from lstm_jax.cells.affine import (
  affine,
  affine_backward,
  once,
  outer,
  product,
)
from lstm_jax.cells.cell import one_step
from lstm_jax.cells.initializers import (
  check_sizes,
  input_weights,
  recurrent_weights,
)
from lstm_jax.cells.precision import cast_like, wide, wider


class LSTMParams(NamedTuple):
  """Weights of an LSTM, the gates in the order i, f, g, o along 4H."""

  w_x: jax.Array  # [D, 4H]
  w_h: jax.Array  # [H, 4H]
  b: jax.Array  # [4H]


class LSTMState(NamedTuple):
  """What an LSTM carries from step to step; h is its output."""

  h: jax.Array  # [..., H]
  c: jax.Array  # [..., H]


class LSTMTape(NamedTuple):
  """What the recurrence keeps for its backward."""

  gates: jax.Array  # [..., 4H], i, f, g, o
  c: jax.Array  # [..., H], before the step
  tanh_c: jax.Array  # [..., H], after the step


def project(params: LSTMParams, x: jax.Array) -> jax.Array:
  """Return x W_x + b, [..., 4H]: the part of a step that has no memory."""
  return affine(x, params.w_x, params.b)


def recur(
  params: LSTMParams, state: LSTMState, ax: jax.Array
) -> tuple[LSTMState, LSTMTape]:
  """Advance the state, given the projected input ax [..., 4H]."""
  gates = once(_activate(ax + product(state.h, params.w_h)))
  i, f, g, o = jnp.split(gates, 4, axis=-1)
  c = wide(state.c)
  c_next = f * c + i * g
  tanh_c = tanh(c_next)
  h_next = o * tanh_c
  state_next = cast_like(LSTMState(h_next, c_next), state)
  return state_next, LSTMTape(gates, c, tanh_c)


def _activate(a: jax.Array) -> jax.Array:
  """Return σ(aᵢ), σ(a_f), tanh(a_g), σ(aₒ) of a [..., 4H], by one tanh."""
  scales = np.repeat([0.5, 0.5, 1, 0.5], a.shape[-1] // 4)
  k = jnp.expand_dims(jnp.asarray(scales, a.dtype), range(a.ndim - 1))
  return (1 - k) + k * tanh(k * a)  # σ(a) = ½ + ½ tanh(a/2)


def recur_backward(
  params: LSTMParams, tape: LSTMTape, d_state: LSTMState
) -> tuple[LSTMState, jax.Array]:
  """Return (d_state before the step, da [..., 4H]) from d_state after it."""
  gates, c, tanh_c = tape
  i, f, g, o = jnp.split(gates, 4, axis=-1)
  dh_next, dc_next = d_state
  do = dh_next * tanh_c
  dc_sum = dc_next + dh_next * o * dtanh(tanh_c)
  di = dc_sum * g
  df = dc_sum * c
  dg = dc_sum * i
  dai = di * dsigmoid(i)
  daf = df * dsigmoid(f)
  dag = dg * dtanh(g)
  dao = do * dsigmoid(o)
  da = once(jnp.concatenate([dai, daf, dag, dao], axis=-1))
  dh = product(da, params.w_h.T)
  dc = dc_sum * f
  return LSTMState(dh, dc), da


def parameter_gradients(
  params: LSTMParams,
  x: jax.Array,
  h: jax.Array,
  tape: LSTMTape,
  da: jax.Array,
) -> tuple[LSTMParams, jax.Array | None]:
  """Return (d_params, dx), summed over every leading axis of da [..., 4H]."""
  del tape  # the product h W_h enters a as it is
  dx, dw_x, db = affine_backward(x, params.w_x, da)
  dw_h = outer(h, da, params.w_h.dtype)
  return LSTMParams(dw_x, dw_h, db), dx


forward, backward, step = one_step(
  project, recur, recur_backward, parameter_gradients
)


def init(
  key: jax.Array, input_size: int, hidden_size: int, dtype=jnp.float32
) -> LSTMParams:
  """Return initial weights: see `initializers`; biases 0, forget bias 1.

  Args:
    key: a typed PRNG key.
    input_size: D.
    hidden_size: H.
    dtype: of every parameter.

  Raises:
    ValueError: a size is below 1.
  """
  check_sizes(input_size, hidden_size)
  key_x, key_h = jax.random.split(key)
  b = jnp.zeros((4, hidden_size), dtype).at[1].set(1)
  return LSTMParams(
    w_x=input_weights(key_x, input_size, hidden_size, 4, dtype),
    w_h=recurrent_weights(key_h, hidden_size, 4, dtype),
    b=b.reshape(4 * hidden_size),
  )


def initial_state(
  params: LSTMParams, batch_shape: tuple[int, ...] = ()
) -> LSTMState:
  """Return the zero state: h in the weights' dtype, c in float32 or wider."""
  shape = (*batch_shape, params.w_h.shape[0])
  dtype = params.w_h.dtype
  return LSTMState(jnp.zeros(shape, dtype), jnp.zeros(shape, wider(dtype)))
