"""GRU with the reset gate before the recurrent product: forward and backward.

Forward                              Local gradients
  [xᵣ, x_z, xₙ] = x W_x + b            ∂h'/∂aₙ  = (1 − z) ⊙ (1 − n²)
  [uᵣ, u_z] = h W_rz                   ∂h'/∂a_z = (h − n) ⊙ z ⊙ (1 − z)
  r  = σ(xᵣ + uᵣ)                      ∂m/∂aᵣ   = h ⊙ r ⊙ (1 − r)
  z  = σ(x_z + u_z)                    ∂m/∂h    = r
  m  = r ⊙ h                           ∂h'/∂h   = z   (not through W_h)
  n  = tanh(xₙ + m Wₙ)
  h' = (1 − z) ⊙ n + z ⊙ h

Backward, from dh'
  daₙ = dh' ⊙ ∂h'/∂aₙ                         dx    = da W_xᵀ
  dm  = daₙ Wₙᵀ                               dW_x  = Σ xᵀ da
  daᵣ = dm ⊙ ∂m/∂aᵣ                           dW_rz = Σ hᵀ [daᵣ, da_z]
  da_z = dh' ⊙ ∂h'/∂a_z                       dWₙ   = Σ mᵀ daₙ
  dh  = dh' ⊙ z + dm ⊙ r + [daᵣ, da_z] W_rzᵀ  db    = Σ da

with aᵣ, a_z and aₙ the pre-activations of r, z and n, da = [daᵣ, da_z, daₙ],
and W_h = [W_rz, Wₙ]. A prime marks the value after the step, and dX is the
gradient of the loss with respect to X. Of the values computed on the way to h',
only the five local gradients are saved.

This is the GRU as it was published. Its time step has two recurrent products,
and the second has to wait for the first; `gru` multiplies by r after the
product, and has only one. Keras has this form as `reset_after=False`, ONNX as
`linear_before_reset=0`. `with_activations` returns a cell with other
activations than σ and tanh.

  >>> import jax, jax.numpy as jnp
  >>> params = init(jax.random.key(0), input_size=3, hidden_size=5)
  >>> state = initial_state(params, batch_shape=(2,))
  >>> step(params, state, jnp.ones((2, 3))).h.shape
  (2, 5)

Reference: Cho et al. (2014), Learning phrase representations using RNN
encoder-decoder, equations 5 to 8. They have no biases. Their z is the weight of
h, as here.
"""

import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from lstm_jax.cells import gru
from lstm_jax.cells.activations import (
  SIGMOID,
  STANDARD,
  TANH,
  Activation,
  Activations,
  check_activations,
)
from lstm_jax.cells.affine import (
  affine_backward,
  as_row,
  outer,
  product,
  product_transposed,
  select_or_multiply,
)
from lstm_jax.cells.cell import Cell, one_step
from lstm_jax.cells.gru import GRUResiduals, GRUState
from lstm_jax.cells.initializers import gate_weights
from lstm_jax.cells.made import made_cell
from lstm_jax.cells.platform import computed_once
from lstm_jax.cells.precision import cast_like, upcast
from lstm_jax.cells.serialization import serializable


@serializable
class ResetBeforeGRUParams(NamedTuple):
  """Weights of this GRU; 3H is [r, z, n], each H wide."""

  w_x: jax.Array  # [D, 3H]
  w_h: jax.Array  # [H, 3H], W_rz and Wₙ
  b: jax.Array  # [3H]


takes_tokens = True  # x is used in x W_x alone: it may be integer tokens


def project(params: ResetBeforeGRUParams, x: jax.Array) -> jax.Array:
  """Return x W_x, [..., 3H]: the input's part of the pre-activations."""
  return select_or_multiply(x, params.w_x)


def recur(
  params: ResetBeforeGRUParams,
  state: GRUState,
  ax: jax.Array,
  *,
  activations: Activations = STANDARD,
) -> tuple[GRUState, jax.Array, GRUResiduals]:
  """Return the next state, given the projected input ax [..., 3H].

  Returns:
    (state, local_grads, residuals): the next state; ∂m/∂aᵣ, ∂h'/∂a_z and
    ∂h'/∂aₙ, [..., 3H]; and the other two local gradients.
  """
  w_gates, w_n = _split_weights(params)
  split = w_gates.shape[-1]
  x_gates, xn = jnp.split(ax + as_row(params.b, ax), [split], axis=-1)
  u_gates = product(state.h, w_gates)
  h = upcast(state.h)
  # On a CPU, XLA would compute this again in each of its consumers.
  gates = computed_once(activations.gates.apply(x_gates + u_gates))
  r, z = jnp.split(gates, 2, axis=-1)
  m = r * h
  n = activations.candidate.apply(xn + product(m, w_n))
  h_next = (1 - z) * n + z * h
  state_next = cast_like(GRUState(h_next), state)
  return state_next, *_local_gradients(h, r, z, n, activations)


def _local_gradients(
  h: jax.Array,
  r: jax.Array,
  z: jax.Array,
  n: jax.Array,
  activations: Activations,
) -> tuple[jax.Array, GRUResiduals]:
  """Return the local gradients of m = r ⊙ h and h' = (1 − z) ⊙ n + z ⊙ h."""
  gates, candidate, _ = activations
  dh_dan = (1 - z) * candidate.derivative(n)
  dh_daz = (h - n) * gates.derivative(z)
  dm_dar = h * gates.derivative(r)
  local_grads = jnp.concatenate([dm_dar, dh_daz, dh_dan], axis=-1)
  return local_grads, GRUResiduals(r, z)


def _split_weights(
  params: ResetBeforeGRUParams,
) -> tuple[jax.Array, jax.Array]:
  """Return W_rz [H, 2H] and Wₙ [H, H], the two parts of w_h."""
  w_gates, w_n = jnp.split(params.w_h, [2 * len(params.w_h)], axis=-1)
  return w_gates, w_n


def recur_backward(
  params: ResetBeforeGRUParams,
  local_grads: jax.Array,
  residuals: GRUResiduals,
  d_state: GRUState,
) -> tuple[GRUState, jax.Array]:
  """Return (d_state before the step, da [..., 3H]) from d_state after it."""
  w_gates, w_n = _split_weights(params)
  m_wrt_ar, h_wrt_az, h_wrt_an = jnp.split(local_grads, 3, axis=-1)
  (dh_next,) = d_state
  dan = dh_next * h_wrt_an
  dm = product_transposed(dan, w_n)
  dar = dm * m_wrt_ar
  daz = dh_next * h_wrt_az
  da_gates = jnp.concatenate([dar, daz], axis=-1)
  dh = (
    dh_next * residuals.z
    + dm * residuals.r
    + product_transposed(da_gates, w_gates)
  )
  return GRUState(dh), jnp.concatenate([da_gates, dan], axis=-1)


def parameter_gradients(
  params: ResetBeforeGRUParams,
  x: jax.Array,
  h: jax.Array,
  residuals: GRUResiduals,
  da: jax.Array,
) -> tuple[ResetBeforeGRUParams, jax.Array | None]:
  """Return (d_params, dx); d_params are sums over the rows of da [..., 3H]."""
  da_gates, dan = jnp.split(da, [2 * h.shape[-1]], axis=-1)
  m = residuals.r * upcast(h)
  dx, dw_x, db = affine_backward(x, params.w_x, da)
  dw_gates = outer(h, da_gates, params.w_h.dtype)
  dw_n = outer(m, dan, params.w_h.dtype)
  dw_h = jnp.concatenate([dw_gates, dw_n], axis=-1)
  return ResetBeforeGRUParams(dw_x, dw_h, db), dx


def init(
  key: jax.Array,
  input_size: int,
  hidden_size: int,
  dtype: DTypeLike = jnp.float32,
) -> ResetBeforeGRUParams:
  """Return initial weights, as in `initializers`; biases 0.

  Args:
    key: a typed PRNG key.
    input_size: D.
    hidden_size: H.
    dtype: the dtype of every parameter.

  Raises:
    ValueError: a size is not an integer ≥ 1, or dtype is not a float dtype.
  """
  return ResetBeforeGRUParams(
    *gate_weights(key, input_size, hidden_size, 3, dtype)
  )


initial_state = gru.initial_state

forward, backward, step = one_step(
  initial_state, project, recur, recur_backward, parameter_gradients
)


def with_activations(
  gates: Activation = SIGMOID, candidate: Activation = TANH
) -> Cell[ResetBeforeGRUParams, GRUState]:
  """Return this cell with other activations; for σ and tanh, this module.

  Args:
    gates: activation of r and z.
    candidate: activation of n.

  Raises:
    ValueError: an argument is not an `Activation`.
  """
  check_activations(gates=gates, candidate=candidate)
  activations = Activations(gates, candidate)
  if activations == STANDARD:
    return sys.modules[__name__]
  # Only `recur` takes activations: the backward reads the local gradients.
  return made_cell(
    with_activations, activations[:2], "recur", activations=activations
  )
