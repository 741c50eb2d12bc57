"""LSTM with projection (LSTMP): one step, forward and backward.

Forward                              Local gradients
  a  = x W_x + h W_h + b               as for the LSTM, with m for h'
  i, f, o = σ(aᵢ), σ(a_f), σ(aₒ)
  g  = tanh(a_g)
  c' = f ⊙ c + i ⊙ g
  m  = o ⊙ tanh c'
  h' = m W_r

Backward, from dh' and dc'
  dm   = dh' W_rᵀ                      dh   = da W_hᵀ
  dc₊  = dc' + dm ⊙ ∂m/∂c'             dc   = dc₊ ⊙ f
  daᵢ  = dc₊ ⊙ ∂c'/∂aᵢ                 dx   = da W_xᵀ
  da_f = dc₊ ⊙ ∂c'/∂a_f                dW_x = Σ xᵀ da
  da_g = dc₊ ⊙ ∂c'/∂a_g                dW_h = Σ hᵀ da
  daₒ  = dm  ⊙ ∂m/∂aₒ                  dW_r = Σ mᵀ dh'
                                       db   = Σ da

The output h has P units and the cell state c has H, so the recurrent weights
are [P, 4H] and [H, P] instead of [H, 4H]: fewer if P < 4H/5. The backward scan
returns dh' for every time step beside da, so that dW_r, like dW_x and dW_h, is
one product over all time steps.
The notation is that of `lstm`. PyTorch's `nn.LSTM` with `proj_size` is this
cell.

  >>> import jax, jax.numpy as jnp
  >>> key = jax.random.key(0)
  >>> params = init(key, input_size=3, hidden_size=5, projection_size=2)
  >>> state = initial_state(params, batch_shape=(4,))
  >>> after = step(params, state, jnp.ones((4, 3)))
  >>> after.h.shape, after.c.shape
  ((4, 2), (4, 5))

Reference: Sak, Senior and Beaufays (2014), Long short-term memory based
recurrent neural network architectures for large vocabulary speech recognition,
equations 7 to 12, without their peepholes; the second projection is left out.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from lstm_jax.cells.affine import (
  affine_backward,
  as_row,
  outer,
  product,
  product_transposed,
  select_or_multiply,
)
from lstm_jax.cells.cell import one_step
from lstm_jax.cells.checks import check_count, state_shape
from lstm_jax.cells.initializers import (
  check_init,
  gate_biases,
  input_weights,
  recurrent_weights,
)
from lstm_jax.cells.lstm import LSTMState, activate, local_gradients, next_c
from lstm_jax.cells.platform import computed_once
from lstm_jax.cells.precision import accumulation_dtype, cast_like, upcast
from lstm_jax.cells.serialization import serializable


@serializable
class ProjectedLSTMParams(NamedTuple):
  """Weights of an LSTM with projection; 4H is [i, f, g, o], each H wide."""

  w_x: jax.Array  # [D, 4H]
  w_h: jax.Array  # [P, 4H]
  b: jax.Array  # [4H]
  w_r: jax.Array  # [H, P]


@serializable
class ProjectedLSTMResiduals(NamedTuple):
  """What `recur` saves for the backward, besides the gates."""

  c: jax.Array  # [..., H], before the step
  m: jax.Array  # [..., H], the output before its projection


takes_tokens = True  # x is used in x W_x alone: it may be integer tokens


def project(params: ProjectedLSTMParams, x: jax.Array) -> jax.Array:
  """Return x W_x, [..., 4H]: the input's part of the pre-activations."""
  return select_or_multiply(x, params.w_x)


def recur(
  params: ProjectedLSTMParams, state: LSTMState, ax: jax.Array
) -> tuple[LSTMState, jax.Array, ProjectedLSTMResiduals]:
  """Return the next state, given the projected input ax [..., 4H].

  Returns:
    (state, gates, residuals): the next state, h [..., P] and c [..., H]; i, f,
    g, o, [..., 4H]; and c and m, [..., H].
  """
  a = ax + product(state.h, params.w_h) + as_row(params.b, ax)
  # On a CPU, XLA would compute this again in each of its consumers.
  gates = computed_once(activate(a))
  c = upcast(state.c)
  c_next, tanh_c = next_c(gates, c)
  o = gates[..., -c.shape[-1] :]
  m = o * tanh_c
  h_next = product(m, params.w_r)
  state_next = cast_like(LSTMState(h_next, c_next), state)
  return state_next, gates, ProjectedLSTMResiduals(c, m)


def recur_backward(
  params: ProjectedLSTMParams,
  gates: jax.Array,
  residuals: ProjectedLSTMResiduals,
  d_state: LSTMState,
) -> tuple[LSTMState, jax.Array, jax.Array]:
  """Return (d_state before the step, da [..., 4H], dh' [..., P])."""
  _, tanh_c = next_c(gates, residuals.c)
  local_grads, m_wrt_c = local_gradients(gates, residuals.c, tanh_c)
  _, f, _, _ = jnp.split(gates, 4, axis=-1)
  dh_next, dc_next = d_state
  dm = product_transposed(dh_next, params.w_r)
  dc_sum = dc_next + dm * m_wrt_c
  da = jnp.concatenate([dc_sum, dc_sum, dc_sum, dm], axis=-1) * local_grads
  # On a CPU, XLA would compute da again in each of its consumers.
  da = computed_once(da)
  dh = product_transposed(da, params.w_h)
  dc = dc_sum * f
  return LSTMState(dh, dc), da, dh_next


def parameter_gradients(
  params: ProjectedLSTMParams,
  x: jax.Array,
  h: jax.Array,
  residuals: ProjectedLSTMResiduals,
  da: jax.Array,
  dh_next: jax.Array,
) -> tuple[ProjectedLSTMParams, jax.Array | None]:
  """Return (d_params, dx); d_params are sums over the rows of da and dh'."""
  dx, dw_x, db = affine_backward(x, params.w_x, da)
  dw_h = outer(h, da, params.w_h.dtype)
  dw_r = outer(residuals.m, dh_next, params.w_r.dtype)
  return ProjectedLSTMParams(dw_x, dw_h, db, dw_r), dx


def init(
  key: jax.Array,
  input_size: int,
  hidden_size: int,
  dtype: DTypeLike = jnp.float32,
  *,
  projection_size: int | None = None,
) -> ProjectedLSTMParams:
  """Return initial weights, as in `initializers`; biases 0, forget bias 1.

  Args:
    key: a typed PRNG key.
    input_size: D.
    hidden_size: H, the size of the cell state c.
    dtype: the dtype of every parameter.
    projection_size: P, the size of the output h; None for H / 2, rounded up.

  Raises:
    ValueError: a size is not an integer ≥ 1, or dtype is not a float dtype.
  """
  input_size, hidden_size = check_init(input_size, hidden_size, dtype)
  if projection_size is None:
    projection_size = (hidden_size + 1) // 2
  projection_size = check_count("projection_size", projection_size)
  key_x, key_h, key_r = jax.random.split(key, 3)
  return ProjectedLSTMParams(
    w_x=input_weights(key_x, input_size, hidden_size, 4, dtype),
    w_h=recurrent_weights(key_h, projection_size, hidden_size, 4, dtype),
    b=gate_biases(hidden_size, 4, dtype, forget=1),  # the index of f
    # The two sizes are those of rows and columns: [H, P].
    w_r=recurrent_weights(key_r, hidden_size, projection_size, 1, dtype),
  )


def initial_state(
  params: ProjectedLSTMParams, batch_shape: tuple[int, ...] = ()
) -> LSTMState:
  """Return the zero state: h in the weights' dtype, c in float32 or wider."""
  hidden, projection = params.w_r.shape
  dtype = params.w_h.dtype
  return LSTMState(
    jnp.zeros(state_shape(batch_shape, projection), dtype),
    jnp.zeros(state_shape(batch_shape, hidden), accumulation_dtype(dtype)),
  )


forward, backward, step = one_step(
  initial_state, project, recur, recur_backward, parameter_gradients
)
