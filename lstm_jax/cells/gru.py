"""Gated recurrent unit: one step, forward and backward.

Forward                              Backward, from dh'
  [xᵣ, x_z, xₙ] = x W_x + b            dn   = dh' ⊙ (1 − z)
  [uᵣ, u_z, uₙ] = h W_h                dz   = dh' ⊙ (h − n)
  r  = σ(xᵣ + uᵣ)                      daₙ  = dn ⊙ (1 − n²)
  z  = σ(x_z + u_z)                    dr   = daₙ ⊙ s
  s  = uₙ + bₙ                         ds   = daₙ ⊙ r
  n  = tanh(xₙ + r ⊙ s)                daᵣ  = dr ⊙ r ⊙ (1 − r)
  h' = (1 − z) ⊙ n + z ⊙ h             da_z = dz ⊙ z ⊙ (1 − z)
                                       da   = [daᵣ, da_z, daₙ]
                                       du   = [daᵣ, da_z, ds]
                                       dh   = dh' ⊙ z + du W_hᵀ
                                       dx   = da W_xᵀ
                                       dW_x = Σ xᵀ da
                                       dW_h = Σ hᵀ du
                                       db   = Σ da
                                       dbₙ  = Σ ds

The reset gate multiplies *after* the recurrent product, which keeps that
product one matrix and is what PyTorch and cuDNN compute. So the input's share
and the state's share of the candidate have different cotangents, daₙ and ds.

  >>> import jax, jax.numpy as jnp
  >>> params = init(jax.random.key(0), input_size=3, hidden_size=5)
  >>> state = initial_state(params, batch_shape=(2,))
  >>> step(params, state, jnp.ones((2, 3))).h.shape
  (2, 5)

Reference: Cho et al. (2014), Learning phrase representations using RNN
encoder-decoder, equations 5 to 8, where the reset comes before the product.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lstm_jax.cells.activations import dsigmoid, dtanh, sigmoid, tanh
from lstm_jax.cells.affine import (
  affine,
  affine_backward,
  once,
  outer,
  product,
  total,
)
from lstm_jax.cells.cell import one_step
from lstm_jax.cells.initializers import (
  check_sizes,
  input_weights,
  recurrent_weights,
)
from lstm_jax.cells.precision import cast_like, wide


class GRUParams(NamedTuple):
  """Weights of a GRU, the gates in the order r, z, n along 3H."""

  w_x: jax.Array  # [D, 3H]
  w_h: jax.Array  # [H, 3H]
  b: jax.Array  # [3H]
  b_n: jax.Array  # [H], inside the reset product


class GRUState(NamedTuple):
  """What a GRU carries from step to step; h is its output."""

  h: jax.Array  # [..., H]


class GRUTape(NamedTuple):
  """What the recurrence keeps for its backward."""

  h: jax.Array  # [..., H], before the step
  gates: jax.Array  # [..., 2H], r, z
  n: jax.Array  # [..., H]
  s: jax.Array  # [..., H]


def project(params: GRUParams, x: jax.Array) -> jax.Array:
  """Return x W_x + b, [..., 3H]: the part of a step that has no memory."""
  return affine(x, params.w_x, params.b)


def recur(
  params: GRUParams, state: GRUState, ax: jax.Array
) -> tuple[GRUState, GRUTape]:
  """Advance the state, given the projected input ax [..., 3H]."""
  split = 2 * state.h.shape[-1]
  x_gates, xn = jnp.split(ax, [split], axis=-1)
  u_gates, un = jnp.split(product(state.h, params.w_h), [split], axis=-1)
  h = wide(state.h)
  gates = once(sigmoid(x_gates + u_gates))
  r, z = jnp.split(gates, 2, axis=-1)
  s = un + jnp.broadcast_to(wide(params.b_n), un.shape)
  n = tanh(xn + r * s)
  h_next = (1 - z) * n + z * h
  return cast_like(GRUState(h_next), state), GRUTape(h, gates, n, s)


def recur_backward(
  params: GRUParams, tape: GRUTape, d_state: GRUState
) -> tuple[GRUState, jax.Array]:
  """Return (d_state before the step, da [..., 3H]) from d_state after it."""
  h, gates, n, s = tape
  r, z = jnp.split(gates, 2, axis=-1)
  (dh_next,) = d_state
  dn = dh_next * (1 - z)
  dz = dh_next * (h - n)
  dan = dn * dtanh(n)
  dr = dan * s
  dar = dr * dsigmoid(r)
  daz = dz * dsigmoid(z)
  da = jnp.concatenate([dar, daz, dan], axis=-1)
  du = once(_through_reset(tape, da))
  dh = dh_next * z + product(du, params.w_h.T)
  return GRUState(dh), da


def parameter_gradients(
  params: GRUParams, x: jax.Array, h: jax.Array, tape: GRUTape, da: jax.Array
) -> tuple[GRUParams, jax.Array | None]:
  """Return (d_params, dx), summed over every leading axis of da [..., 3H]."""
  du = _through_reset(tape, da)
  ds = du[..., -params.b_n.shape[0] :]
  dx, dw_x, db = affine_backward(x, params.w_x, da)
  dw_h = outer(h, du, params.w_h.dtype)
  db_n = total(ds)
  return GRUParams(dw_x, dw_h, db, db_n), dx


def _through_reset(tape: GRUTape, da: jax.Array) -> jax.Array:
  """Return du = [daᵣ, da_z, ds] from da: the cotangent of h W_h."""
  dar, daz, dan = jnp.split(da, 3, axis=-1)
  r, _ = jnp.split(tape.gates, 2, axis=-1)
  ds = dan * r
  return jnp.concatenate([dar, daz, ds], axis=-1)


forward, backward, step = one_step(
  project, recur, recur_backward, parameter_gradients
)


def init(
  key: jax.Array, input_size: int, hidden_size: int, dtype=jnp.float32
) -> GRUParams:
  """Return initial weights: see `initializers`; biases 0.

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
  return GRUParams(
    w_x=input_weights(key_x, input_size, hidden_size, 3, dtype),
    w_h=recurrent_weights(key_h, hidden_size, 3, dtype),
    b=jnp.zeros((3 * hidden_size,), dtype),
    b_n=jnp.zeros((hidden_size,), dtype),
  )


def initial_state(
  params: GRUParams, batch_shape: tuple[int, ...] = ()
) -> GRUState:
  """Return the zero state, in the weights' dtype."""
  shape = (*batch_shape, params.w_h.shape[0])
  return GRUState(jnp.zeros(shape, params.w_h.dtype))
