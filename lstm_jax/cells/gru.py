"""Gated recurrent unit: one step, forward and backward.

Forward                              Local gradients
  [xᵣ, x_z, xₙ] = x W_x + b            ∂h'/∂aₙ  = (1 − z) ⊙ (1 − n²)
  [uᵣ, u_z, uₙ] = h W_h                ∂h'/∂a_z = (h − n) ⊙ z ⊙ (1 − z)
  r  = σ(xᵣ + uᵣ)                      ∂h'/∂aᵣ  = ∂h'/∂aₙ ⊙ s ⊙ r ⊙ (1 − r)
  z  = σ(x_z + u_z)                    ∂aₙ/∂s   = r
  s  = uₙ + bₙ                         ∂h'/∂h   = z   (not through h W_h)
  n  = tanh(xₙ + r ⊙ s)
  h' = (1 − z) ⊙ n + z ⊙ h

Backward, from dh'
  da  = dh' ⊙ [∂h'/∂aᵣ, ∂h'/∂a_z, ∂h'/∂aₙ]    dx   = da W_xᵀ
  ds  = daₙ ⊙ r                               dW_x = Σ xᵀ da
  du  = [daᵣ, da_z, ds]                       dW_h = Σ hᵀ du
  dh  = dh' ⊙ z + du W_hᵀ                     db   = Σ da
                                              dbₙ  = Σ ds

with aᵣ, a_z and aₙ the pre-activations of r, z and n. A prime marks the value
after the step, and dX is the gradient of the loss with respect to X. Of the
values computed on the way to h', only the five local gradients are saved.

The reset gate multiplies *after* the recurrent product, so that h W_h is one
product for all three gates, as in PyTorch and cuDNN. The input's part and the
state's part of the candidate therefore have different cotangents, daₙ and ds.
The form with the reset before the product is `gru_reset_before`.
`with_activations` returns a cell with other activations than σ and tanh.

  >>> import jax, jax.numpy as jnp
  >>> params = init(jax.random.key(0), input_size=3, hidden_size=5)
  >>> state = initial_state(params, batch_shape=(2,))
  >>> step(params, state, jnp.ones((2, 3))).h.shape
  (2, 5)

Reference: Cho et al. (2014), Learning phrase representations using RNN
encoder-decoder, equations 5 to 8, where the reset comes before the product.
"""

import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

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
  total,
)
from lstm_jax.cells.cell import Cell, one_step
from lstm_jax.cells.checks import state_shape
from lstm_jax.cells.initializers import gate_weights
from lstm_jax.cells.made import made_cell
from lstm_jax.cells.platform import computed_once
from lstm_jax.cells.precision import cast_like, upcast
from lstm_jax.cells.serialization import serializable


@serializable
class GRUParams(NamedTuple):
  """Weights of a GRU; 3H is [r, z, n], each H wide."""

  w_x: jax.Array  # [D, 3H]
  w_h: jax.Array  # [H, 3H]
  b: jax.Array  # [3H]
  b_n: jax.Array  # [H], the candidate's recurrent bias (PyTorch's b_hn)


@serializable
class GRUState(NamedTuple):
  """State of a GRU; h is its output."""

  h: jax.Array  # [..., H]


@serializable
class GRUResiduals(NamedTuple):
  """The local gradients that are not with respect to a pre-activation."""

  r: jax.Array  # [..., H], ∂aₙ/∂s; of `gru_reset_before`, ∂m/∂h, m = r ⊙ h
  z: jax.Array  # [..., H], ∂h'/∂h, not through h W_h


takes_tokens = True  # x is used in x W_x alone: it may be integer tokens


def project(params: GRUParams, x: jax.Array) -> jax.Array:
  """Return x W_x, [..., 3H]: the input's part of the pre-activations."""
  return select_or_multiply(x, params.w_x)


def recur(
  params: GRUParams,
  state: GRUState,
  ax: jax.Array,
  *,
  activations: Activations = STANDARD,
) -> tuple[GRUState, jax.Array, GRUResiduals]:
  """Return the next state, given the projected input ax [..., 3H].

  Returns:
    (state, local_grads, residuals): the next state; ∂h'/∂aᵣ, ∂h'/∂a_z and
    ∂h'/∂aₙ, [..., 3H]; and the other two local gradients.
  """
  split = 2 * state.h.shape[-1]
  x_gates, xn = jnp.split(ax + as_row(params.b, ax), [split], axis=-1)
  u_gates, un = jnp.split(product(state.h, params.w_h), [split], axis=-1)
  h = upcast(state.h)
  # On a CPU, XLA would compute this again in each of its consumers.
  gates = computed_once(activations.gates.apply(x_gates + u_gates))
  r, z = jnp.split(gates, 2, axis=-1)
  s = un + as_row(params.b_n, un)
  n = activations.candidate.apply(xn + r * s)
  h_next = (1 - z) * n + z * h
  state_next = cast_like(GRUState(h_next), state)
  return state_next, *_local_gradients(h, r, z, s, n, activations)


def _local_gradients(
  h: jax.Array,
  r: jax.Array,
  z: jax.Array,
  s: jax.Array,
  n: jax.Array,
  activations: Activations,
) -> tuple[jax.Array, GRUResiduals]:
  """Return the local gradients of h' = (1 − z) ⊙ n + z ⊙ h.

  `derivative` takes the output of an activation, such as n, not its argument.
  """
  gates, candidate, _ = activations
  dh_dan = (1 - z) * candidate.derivative(n)
  dh_daz = (h - n) * gates.derivative(z)
  dh_dar = dh_dan * s * gates.derivative(r)
  local_grads = jnp.concatenate([dh_dar, dh_daz, dh_dan], axis=-1)
  return local_grads, GRUResiduals(r, z)


def recur_backward(
  params: GRUParams,
  local_grads: jax.Array,
  residuals: GRUResiduals,
  d_state: GRUState,
) -> tuple[GRUState, jax.Array]:
  """Return (d_state before the step, da [..., 3H]) from d_state after it."""
  (dh_next,) = d_state
  da = jnp.concatenate([dh_next, dh_next, dh_next], axis=-1) * local_grads
  du, _ = _through_reset(residuals, da)
  dh = dh_next * residuals.z + product_transposed(du, params.w_h)
  return GRUState(dh), da


def _through_reset(
  residuals: GRUResiduals, da: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Return the cotangents of h W_h and of s, (du [..., 3H], ds [..., H])."""
  dar, daz, dan = jnp.split(da, 3, axis=-1)
  ds = dan * residuals.r
  du = jnp.concatenate([dar, daz, ds], axis=-1)
  return du, ds


def parameter_gradients(
  params: GRUParams,
  x: jax.Array,
  h: jax.Array,
  residuals: GRUResiduals,
  da: jax.Array,
) -> tuple[GRUParams, jax.Array | None]:
  """Return (d_params, dx); d_params are sums over the rows of da [..., 3H]."""
  du, ds = _through_reset(residuals, da)
  dx, dw_x, db = affine_backward(x, params.w_x, da)
  dw_h = outer(h, du, params.w_h.dtype)
  db_n = total(ds)
  return GRUParams(dw_x, dw_h, db, db_n), dx


def init(
  key: jax.Array,
  input_size: int,
  hidden_size: int,
  dtype: DTypeLike = jnp.float32,
) -> GRUParams:
  """Return initial weights, as in `initializers`; biases 0.

  Args:
    key: a typed PRNG key.
    input_size: D.
    hidden_size: H.
    dtype: the dtype of every parameter.

  Raises:
    ValueError: a size is not an integer ≥ 1, or dtype is not a float dtype.
  """
  w_x, w_h, b = gate_weights(key, input_size, hidden_size, 3, dtype)
  return GRUParams(w_x, w_h, b, b_n=jnp.zeros((hidden_size,), dtype))


def initial_state(
  params: GRUParams, batch_shape: tuple[int, ...] = ()
) -> GRUState:
  """Return the zero state, in the weights' dtype."""
  shape = state_shape(batch_shape, params.w_h.shape[0])
  return GRUState(jnp.zeros(shape, params.w_h.dtype))


forward, backward, step = one_step(
  initial_state, project, recur, recur_backward, parameter_gradients
)


def with_activations(
  gates: Activation = SIGMOID, candidate: Activation = TANH
) -> Cell[GRUParams, GRUState]:
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
