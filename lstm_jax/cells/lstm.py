"""Long short-term memory: one step, forward and backward.

Forward                              Its derivatives, element by element
  a  = x W_x + h W_h + b               ∂c'/∂aᵢ  = g ⊙ i ⊙ (1 − i)
  i  = σ(aᵢ)                           ∂c'/∂a_f = c ⊙ f ⊙ (1 − f)
  f  = σ(a_f)                          ∂c'/∂a_g = i ⊙ (1 − g²)
  g  = tanh(a_g)                       ∂h'/∂aₒ  = tanh c' ⊙ o ⊙ (1 − o)
  o  = σ(aₒ)                           ∂h'/∂c'  = o ⊙ (1 − tanh² c')
  c' = f ⊙ c + i ⊙ g                   ∂c'/∂c   = f
  h' = o ⊙ tanh c'

Backward, from dh' and dc'
  dc₊  = dc' + dh' ⊙ ∂h'/∂c'           dh   = da W_hᵀ
  daᵢ  = dc₊ ⊙ ∂c'/∂aᵢ                 dc   = dc₊ ⊙ f
  da_f = dc₊ ⊙ ∂c'/∂a_f                dx   = da W_xᵀ
  da_g = dc₊ ⊙ ∂c'/∂a_g                dW_x = Σ xᵀ da
  daₒ  = dh' ⊙ ∂h'/∂aₒ                 dW_h = Σ hᵀ da
                                       db   = Σ da

with a = [aᵢ, a_f, a_g, aₒ] along its last axis. c' reaches the loss twice,
through h' and through the next step, hence the sum dc₊. The forward keeps the
six derivatives and nothing else: they are ready when the step is, and leave
the loop backward one multiplication for each element of da.

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

from lstm_jax.cells.activations import dtanh, tanh
from lstm_jax.cells.affine import (
  affine_backward,
  as_row,
  once,
  outer,
  product,
  product_transposed,
  select_or_multiply,
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
  """The derivatives that the recurrence keeps, besides those by a."""

  h_by_c: jax.Array  # [..., H], of h' by c'
  c_by_c: jax.Array  # [..., H], of c' by c


def project(params: LSTMParams, x: jax.Array) -> jax.Array:
  """Return x W_x, [..., 4H]: the part of a step that has no memory."""
  return select_or_multiply(x, params.w_x)


def recur(
  params: LSTMParams, state: LSTMState, ax: jax.Array
) -> tuple[LSTMState, jax.Array, LSTMTape]:
  """Advance the state, given the projected input ax [..., 4H].

  Returns:
    (state, by_a, tape): the next state, and the derivatives. by_a [..., 4H]
    holds those of c' by aᵢ, a_f and a_g, and of h' by aₒ.
  """
  # b is added here, in passing: to all x W_x at once it would be one more
  # array of T·B·4H, and a pass over it.
  a = ax + product(state.h, params.w_h) + as_row(params.b, ax)
  gates = once(activate(a))
  i, f, g, o = jnp.split(gates, 4, axis=-1)
  c = wide(state.c)
  c_next = f * c + i * g
  tanh_c = tanh(c_next)
  h_next = o * tanh_c
  state_next = cast_like(LSTMState(h_next, c_next), state)
  by_a, tape = _derivatives(gates, c, tanh_c)
  return state_next, by_a, tape


def activate(a: jax.Array) -> jax.Array:
  """Return the gates i, f, g, o, by one tanh: σ(a) = ½ + ½ tanh(a/2)."""
  k = _per_gate([0.5, 0.5, 1, 0.5], a)
  return (1 - k) + k * tanh(k * a)


def _derivatives(
  gates: jax.Array, c: jax.Array, tanh_c: jax.Array
) -> tuple[jax.Array, LSTMTape]:
  """Return the derivatives of c' = f ⊙ c + i ⊙ g and h' = o ⊙ tanh c'."""
  _, f, _, o = jnp.split(gates, 4, axis=-1)
  dh_dc = o * dtanh(tanh_c)
  return gate_derivatives(gates, c, tanh_c), LSTMTape(dh_dc, f)


def gate_derivatives(
  gates: jax.Array, c: jax.Array, tanh_c: jax.Array
) -> jax.Array:
  """Return the derivatives of c' and h' by the gates' pre-activations."""
  i, _, g, _ = jnp.split(gates, 4, axis=-1)
  # y (1 − y) of σ and (1 + y) (1 − y) of tanh, times what the gate multiplies
  dgates = (_per_gate([0, 0, 1, 0], gates) + gates) * (1 - gates)
  dby_a = jnp.concatenate([g, c, i, tanh_c], axis=-1) * dgates
  return dby_a


def _per_gate(values: list[float], a: jax.Array) -> jax.Array:
  """Return a vector that holds each gate's value H times, for a [..., 4H]."""
  vector = np.repeat(values, a.shape[-1] // 4).astype(a.dtype)
  return jnp.asarray(vector.reshape((1,) * (a.ndim - 1) + vector.shape))


def recur_backward(
  params: LSTMParams, by_a: jax.Array, tape: LSTMTape, d_state: LSTMState
) -> tuple[LSTMState, jax.Array]:
  """Return (d_state before the step, da [..., 4H]) from d_state after it."""
  dh_next, dc_next = d_state
  dc_sum = dc_next + dh_next * tape.h_by_c
  da = jnp.concatenate([dc_sum, dc_sum, dc_sum, dh_next], axis=-1) * by_a
  dh = product_transposed(da, params.w_h)
  dc = dc_sum * tape.c_by_c
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
    w_h=recurrent_weights(key_h, hidden_size, hidden_size, 4, dtype),
    b=b.reshape(4 * hidden_size),
  )


def initial_state(
  params: LSTMParams, batch_shape: tuple[int, ...] = ()
) -> LSTMState:
  """Return the zero state: h in the weights' dtype, c in float32 or wider."""
  shape = (*batch_shape, params.w_h.shape[0])
  dtype = params.w_h.dtype
  return LSTMState(jnp.zeros(shape, dtype), jnp.zeros(shape, wider(dtype)))


forward, backward, step = one_step(
  initial_state, project, recur, recur_backward, parameter_gradients
)
