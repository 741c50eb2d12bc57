"""LSTM with layer normalisation: one step, forward and backward.

Forward                                      Local gradients
  a  = γₓ ⊙ N(x W_x) + γₕ ⊙ N(h W_h) + b     ∂c'/∂a  as for the LSTM
  i, f, o = σ(aᵢ), σ(a_f), σ(aₒ)             ∂h'/∂aₒ = tanh y ⊙ o ⊙ (1 − o)
  g  = tanh(a_g)                             ∂h'/∂y  = o ⊙ (1 − tanh² y)
  c' = f ⊙ c + i ⊙ g                         ∂c'/∂c  = f
  y  = γ_c ⊙ N(c') + b_c
  h' = o ⊙ tanh y

  N(u) = û = (u − mean u) / √(var u + ε), over the last axis

Backward, from dh' and dc'
  dy   = dh' ⊙ ∂h'/∂y                        dγ_c = Σ dy ⊙ ĉ,   ĉ = N(c')
  dc₊  = dc' + N'(dy ⊙ γ_c)                  dγₕ  = Σ da ⊙ û,   û = N(h W_h)
  da   = [dc₊, dc₊, dc₊, dh'] ⊙ ∂            dγₓ  = Σ da ⊙ x̂,   x̂ = N(x W_x)
  du   = N'(da ⊙ γₕ)                         dW_h = Σ hᵀ du
  dh   = du W_hᵀ                             duₓ  = N'(da ⊙ γₓ)
  dc   = dc₊ ⊙ f                             dW_x = Σ xᵀ duₓ
  dx   = duₓ W_xᵀ                            db   = Σ da,   db_c = Σ dy

  N'(dû) = (dû − mean dû − û mean(dû ⊙ û)) / √(var u + ε)

with ∂ the local gradients [∂c'/∂aᵢ, ∂c'/∂a_f, ∂c'/∂a_g, ∂h'/∂aₒ], and û and var
u in N' those of the vector that N normalised in the forward pass. The notation
is that of `lstm`. The backward scan of `unroll` returns dy for every time step
beside da. `parameter_gradients` recomputes x̂: one more product, and T·B·4H
fewer numbers to save.

  >>> import jax, jax.numpy as jnp
  >>> params = init(jax.random.key(0), input_size=3, hidden_size=5)
  >>> state = initial_state(params, batch_shape=(2,))
  >>> step(params, state, jnp.ones((2, 3))).h.shape
  (2, 5)

Reference: Ba, Kiros and Hinton (2016), Layer normalization, equations 20 to 22:
each product is normalised over all four gates together.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from lstm_jax.cells import lstm
from lstm_jax.cells.activations import tanh
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
from lstm_jax.cells.lstm import LSTMState, activate, local_gradients
from lstm_jax.cells.platform import computed_once
from lstm_jax.cells.precision import cast_like, upcast
from lstm_jax.cells.serialization import serializable

EPSILON = 1e-5  # ε in N: a vector of equal numbers has variance 0


@serializable
class LayerNormLSTMParams(NamedTuple):
  """Weights of a layer-normalised LSTM; 4H is [i, f, g, o], each H wide."""

  w_x: jax.Array  # [D, 4H]
  w_h: jax.Array  # [H, 4H]
  b: jax.Array  # [4H]
  gain_x: jax.Array  # [4H], of x W_x
  gain_h: jax.Array  # [4H], of h W_h
  gain_c: jax.Array  # [H], of c'
  b_c: jax.Array  # [H], added to γ_c ⊙ N(c')


@serializable
class LayerNormLSTMResiduals(NamedTuple):
  """What `recur` saves for the backward, besides the gates."""

  c: jax.Array  # [..., H], before the step
  u_normal: jax.Array  # [..., 4H], N(h W_h)
  u_scale: jax.Array  # [..., 1], 1 / √(var + ε) of h W_h
  c_normal: jax.Array  # [..., H], N(c')
  c_scale: jax.Array  # [..., 1], 1 / √(var + ε) of c'


takes_tokens = True  # x is used in x W_x alone: it may be integer tokens


def project(params: LayerNormLSTMParams, x: jax.Array) -> jax.Array:
  """Return γₓ ⊙ N(x W_x), [..., 4H]: the input's part of a."""
  normal, _ = _normalised_input(params, x)
  return as_row(params.gain_x, normal) * normal


def recur(
  params: LayerNormLSTMParams, state: LSTMState, ax: jax.Array
) -> tuple[LSTMState, jax.Array, LayerNormLSTMResiduals]:
  """Return the next state, given the projected input ax [..., 4H].

  Returns:
    (state, gates, residuals): the next state; i, f, g, o, [..., 4H]; and the
    other arrays that the backward needs.
  """
  u_normal, u_scale = normalise(product(state.h, params.w_h))
  a = ax + as_row(params.gain_h, u_normal) * u_normal + as_row(params.b, ax)
  # On a CPU, XLA would compute this again in each of its consumers.
  gates = computed_once(activate(a))
  i, f, g, o = jnp.split(gates, 4, axis=-1)
  c = upcast(state.c)
  c_next = f * c + i * g
  c_normal, c_scale = normalise(c_next)
  h_next = o * _tanh_y(params, c_normal)
  state_next = cast_like(LSTMState(h_next, c_next), state)
  residuals = LayerNormLSTMResiduals(c, u_normal, u_scale, c_normal, c_scale)
  return state_next, gates, residuals


def _tanh_y(params: LayerNormLSTMParams, c_normal: jax.Array) -> jax.Array:
  gain, b = as_row(params.gain_c, c_normal), as_row(params.b_c, c_normal)
  return tanh(gain * c_normal + b)


def recur_backward(
  params: LayerNormLSTMParams,
  gates: jax.Array,
  residuals: LayerNormLSTMResiduals,
  d_state: LSTMState,
) -> tuple[LSTMState, jax.Array, jax.Array]:
  """Return (d_state before the step, da [..., 4H], dy [..., H])."""
  tanh_y = _tanh_y(params, residuals.c_normal)
  local_grads, h_wrt_y = local_gradients(gates, residuals.c, tanh_y)
  _, f, _, _ = jnp.split(gates, 4, axis=-1)
  dh_next, dc_next = d_state
  dy = dh_next * h_wrt_y
  dc_normal = dy * as_row(params.gain_c, dy)
  dc_sum = dc_next + normalise_backward(
    residuals.c_normal, residuals.c_scale, dc_normal
  )
  da = jnp.concatenate([dc_sum, dc_sum, dc_sum, dh_next], axis=-1) * local_grads
  du = _through_norm(params, residuals, da)
  dh = product_transposed(du, params.w_h)
  dc = dc_sum * f
  return LSTMState(dh, dc), da, dy


def parameter_gradients(
  params: LayerNormLSTMParams,
  x: jax.Array,
  h: jax.Array,
  residuals: LayerNormLSTMResiduals,
  da: jax.Array,
  dy: jax.Array,
) -> tuple[LayerNormLSTMParams, jax.Array | None]:
  """Return (d_params, dx); d_params are sums over the rows of da and dy."""
  du = _through_norm(params, residuals, da)
  dw_h = outer(h, du, params.w_h.dtype)
  normal, scale = _normalised_input(params, x)
  dnormal = da * as_row(params.gain_x, da)
  dux = normalise_backward(normal, scale, dnormal)
  dx, dw_x, _ = affine_backward(x, params.w_x, dux)
  db = total(da)
  dgain_x = total(da * normal)
  dgain_h = total(da * residuals.u_normal)
  dgain_c = total(dy * residuals.c_normal)
  db_c = total(dy)
  d_params = LayerNormLSTMParams(
    dw_x, dw_h, db, dgain_x, dgain_h, dgain_c, db_c
  )
  return d_params, dx


def normalise(u: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Return (û, 1 / √(var u + ε)); mean and variance are over the last axis."""
  u = u - u.mean(axis=-1, keepdims=True)
  scale = jax.lax.rsqrt((u * u).mean(axis=-1, keepdims=True) + EPSILON)
  return u * scale, scale


def normalise_backward(
  normal: jax.Array, scale: jax.Array, dnormal: jax.Array
) -> jax.Array:
  """Return du from dû, given the two results of `normalise(u)`."""
  mean_product = (dnormal * normal).mean(axis=-1, keepdims=True)
  dacross = dnormal - normal * mean_product  # dû without its part along û
  du = (dacross - dnormal.mean(axis=-1, keepdims=True)) * scale
  return du


def _through_norm(
  params: LayerNormLSTMParams, residuals: LayerNormLSTMResiduals, da: jax.Array
) -> jax.Array:
  """Return du, the cotangent of h W_h, from da."""
  du_normal = da * as_row(params.gain_h, da)
  return normalise_backward(residuals.u_normal, residuals.u_scale, du_normal)


def _normalised_input(
  params: LayerNormLSTMParams, x: jax.Array
) -> tuple[jax.Array, jax.Array]:
  return normalise(select_or_multiply(x, params.w_x))


def init(
  key: jax.Array,
  input_size: int,
  hidden_size: int,
  dtype: DTypeLike = jnp.float32,
) -> LayerNormLSTMParams:
  """Return the LSTM's initial weights, gains of 1 and b_c = 0.

  Args:
    key: a typed PRNG key.
    input_size: D.
    hidden_size: H.
    dtype: the dtype of every parameter.

  Raises:
    ValueError: a size is not an integer ≥ 1, or dtype is not a float dtype.
  """
  w_x, w_h, b = lstm.init(key, input_size, hidden_size, dtype)
  # Two arrays: JAX refuses to donate one array twice.
  gain_x, gain_h = jnp.ones_like(b), jnp.ones_like(b)
  gain_c = jnp.ones(hidden_size, dtype)
  b_c = jnp.zeros_like(gain_c)
  return LayerNormLSTMParams(w_x, w_h, b, gain_x, gain_h, gain_c, b_c)


initial_state = lstm.initial_state


forward, backward, step = one_step(
  initial_state, project, recur, recur_backward, parameter_gradients
)
