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
gates and c; the backward finds tanh c' from them, and the derivatives from all
three. To keep the derivatives instead is one array more, and no faster.

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
  """What the recurrence keeps, besides the gates."""

  c: jax.Array  # [..., H], before the step


def project(params: LSTMParams, x: jax.Array) -> jax.Array:
  """Return x W_x, [..., 4H]: the part of a step that has no memory."""
  return select_or_multiply(x, params.w_x)


def recur(
  params: LSTMParams, state: LSTMState, ax: jax.Array
) -> tuple[LSTMState, jax.Array, LSTMTape]:
  """Advance the state, given the projected input ax [..., 4H].

  Returns:
    (state, gates, tape): the next state, and i, f, g, o, [..., 4H].
  """
  # b is added here, in passing: to all x W_x at once it would be one more
  # array of T·B·4H, and a pass over it.
  a = ax + product(state.h, params.w_h) + as_row(params.b, ax)
  gates = once(activate(a))
  c = wide(state.c)
  c_next, tanh_c = remember(gates, c)
  o = gates[..., -c.shape[-1] :]
  h_next = o * tanh_c
  state_next = cast_like(LSTMState(h_next, c_next), state)
  return state_next, gates, LSTMTape(c)


def activate(a: jax.Array) -> jax.Array:
  """Return the gates i, f, g, o, by one tanh: σ(a) = ½ + ½ tanh(a/2)."""
  k = _per_gate([0.5, 0.5, 1, 0.5], a)
  return (1 - k) + k * tanh(k * a)


def remember(gates: jax.Array, c: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Return c' and its tanh, from the gates i, f, g, o and c."""
  i, f, g, _ = jnp.split(gates, 4, axis=-1)
  c_next = f * c + i * g
  return c_next, tanh(c_next)


def derivatives(
  gates: jax.Array, c: jax.Array, tanh_c: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Return the derivatives of c' and h' by the gates' a, and of h' by c'."""
  i, _, g, o = jnp.split(gates, 4, axis=-1)
  # y (1 − y) of σ and (1 + y) (1 − y) of tanh, times what the gate multiplies
  dgates = (_per_gate([0, 0, 1, 0], gates) + gates) * (1 - gates)
  dby_a = jnp.concatenate([g, c, i, tanh_c], axis=-1) * dgates
  dh_dc = o * dtanh(tanh_c)
  return dby_a, dh_dc


def _per_gate(values: list[float], a: jax.Array) -> jax.Array:
  """Return a vector that holds each gate's value H times, for a [..., 4H]."""
  vector = np.repeat(values, a.shape[-1] // 4).astype(a.dtype)
  return jnp.asarray(vector.reshape((1,) * (a.ndim - 1) + vector.shape))


def recur_backward(
  params: LSTMParams, gates: jax.Array, tape: LSTMTape, d_state: LSTMState
) -> tuple[LSTMState, jax.Array]:
  """Return (d_state before the step, da [..., 4H]) from d_state after it."""
  _, tanh_c = remember(gates, tape.c)
  by_a, h_by_c = derivatives(gates, tape.c, tanh_c)
  c_by_c = jnp.split(gates, 4, axis=-1)[1]
  dh_next, dc_next = d_state
  dc_sum = dc_next + dh_next * h_by_c
  da = jnp.concatenate([dc_sum, dc_sum, dc_sum, dh_next], axis=-1) * by_a
  dh = product_transposed(da, params.w_h)
  dc = dc_sum * c_by_c
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
