"""Linear recurrent unit in its real form: one step, forward and backward.

Forward                              Backward, from dh'
  a  = x W_x + b                       da   = dh' ⊙ γ
  λ  = exp(−e^ν)                       dh   = dh' ⊙ λ
  γ  = √(1 − λ²)                       dν   = Σ dh' ⊙ (h ⊙ ∂λ/∂ν + a ⊙ ∂γ/∂ν)
  h' = λ ⊙ h + γ ⊙ a                   dx   = da W_xᵀ
                                       dW_x = Σ xᵀ da
Local gradients                        db   = Σ da
  ∂λ/∂ν = −e^ν ⊙ λ
  ∂γ/∂ν = e^ν ⊙ λ² / γ

A prime marks the value after the step. Each unit decays at its own rate λ in
(0, 1), which is learned but does not depend on the input. γ gives h the scale
of a: if the a of all time steps are independent and have variance 1, h too has
variance 1 after many steps. `recur_backward` returns the terms of the sum dν
beside da.

The outputs are linear in the inputs. In a network, put a nonlinear layer after
each LRU. As the recurrence is linear in h, `unroll` with `Explicit` computes
all time steps at once (`sequence.linear`).

  >>> import jax, jax.numpy as jnp
  >>> params = init(jax.random.key(0), input_size=3, hidden_size=5)
  >>> state = initial_state(params, batch_shape=(2,))
  >>> step(params, state, jnp.ones((2, 3))).h.shape
  (2, 5)

Reference: Orvieto et al. (2023), Resurrecting recurrent neural networks for
long sequences, section 3: its parametrization of λ (3.3) and normalization
(3.4), with real λ in place of complex ones.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from lstm_jax.cells.affine import (
  affine_backward,
  as_row,
  select_or_multiply,
  total,
)
from lstm_jax.cells.cell import one_step
from lstm_jax.cells.checks import state_shape
from lstm_jax.cells.initializers import check_init, input_weights
from lstm_jax.cells.precision import accumulation_dtype, cast_like, upcast
from lstm_jax.cells.rnn import RNNState
from lstm_jax.cells.serialization import serializable

LARGEST_DECAY = 0.999  # of the initial λ: a memory of 1,000 time steps


@serializable
class LRUParams(NamedTuple):
  """Weights of a linear recurrent unit."""

  w_x: jax.Array  # [D, H]
  b: jax.Array  # [H]
  nu: jax.Array  # [H], ν = log(−log λ)


@serializable
class LRUResiduals(NamedTuple):
  """What `recur` saves for the backward, besides a."""

  h: jax.Array  # [..., H], before the step


takes_tokens = True  # x is used in x W_x alone: it may be integer tokens
linear_recurrence = True  # h' is linear in h, unit by unit


def project(params: LRUParams, x: jax.Array) -> jax.Array:
  """Return x W_x, [..., H]: the pre-activations without their bias."""
  return select_or_multiply(x, params.w_x)


def recur(
  params: LRUParams, state: RNNState, ax: jax.Array
) -> tuple[RNNState, jax.Array, LRUResiduals]:
  """Return the next state, given the projected input ax [..., H].

  Returns:
    (state, a, residuals): the next state; x W_x + b, [..., H]; and h.
  """
  a = ax + as_row(params.b, ax)
  h = upcast(state.h)
  _, decay, scale = _decay(params, a)
  h_next = decay * h + scale * a
  return cast_like(RNNState(h_next), state), a, LRUResiduals(h)


def _decay(
  params: LRUParams, like: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Return e^ν, λ and γ = √(1 − λ²), with the rank and dtype of `like`."""
  rate = jnp.exp(as_row(params.nu, like))
  return rate, jnp.exp(-rate), jnp.sqrt(-jnp.expm1(-2 * rate))


def recur_backward(
  params: LRUParams,
  a: jax.Array,
  residuals: LRUResiduals,
  d_state: RNNState,
) -> tuple[RNNState, jax.Array, jax.Array]:
  """Return (d_state before the step, da [..., H], the terms of dν [..., H])."""
  (dh_next,) = d_state
  rate, decay, scale = _decay(params, a)
  da = dh_next * scale
  dh = dh_next * decay
  # Where e^ν is infinite or 1 − λ² is 0, the derivatives are their limits, 0.
  rate_decay = jnp.where(decay > 0, rate * decay, 0)  # −∂λ/∂ν
  ddecay_dnu = -rate_decay
  dscale_dnu = jnp.where(scale > 0, rate_decay * decay / scale, 0)
  dnu = dh_next * (residuals.h * ddecay_dnu + a * dscale_dnu)
  return RNNState(dh), da, dnu


def parameter_gradients(
  params: LRUParams,
  x: jax.Array,
  h: jax.Array,
  residuals: LRUResiduals,
  da: jax.Array,
  dnu: jax.Array,
) -> tuple[LRUParams, jax.Array | None]:
  """Return (d_params, dx); d_params are sums over the rows of da and dnu."""
  del h, residuals
  dx, dw_x, db = affine_backward(x, params.w_x, da)
  return LRUParams(dw_x, db, total(dnu)), dx


def init(
  key: jax.Array,
  input_size: int,
  hidden_size: int,
  dtype: DTypeLike = jnp.float32,
) -> LRUParams:
  """Return initial weights, as in `initializers`; biases 0, random decays.

  λ² is uniform between 0 and 0.999², as in the paper, where the complex λ are
  uniform on a disk. About a tenth of the units have a λ above 0.95, a memory of
  more than 1 / (1 − λ) = 20 time steps.

  Args:
    key: a typed PRNG key.
    input_size: D.
    hidden_size: H.
    dtype: the dtype of every parameter.

  Raises:
    ValueError: a size is not an integer ≥ 1, or dtype is not a float dtype.
  """
  input_size, hidden_size = check_init(input_size, hidden_size, dtype)
  key_x, key_nu = jax.random.split(key)
  b = jnp.zeros((hidden_size,), dtype)
  # At least 1e-6: at λ = 0, ν would be infinite.
  square = jax.random.uniform(
    key_nu, b.shape, accumulation_dtype(b.dtype), 1e-6, LARGEST_DECAY**2
  )
  nu = jnp.log(-jnp.log(square) / 2)
  return LRUParams(
    w_x=input_weights(key_x, input_size, hidden_size, 1, dtype),
    b=b,
    nu=nu.astype(dtype),
  )


def initial_state(
  params: LRUParams, batch_shape: tuple[int, ...] = ()
) -> RNNState:
  """Return the zero state, in the weights' dtype."""
  shape = state_shape(batch_shape, params.b.shape[0])
  return RNNState(jnp.zeros(shape, params.b.dtype))


forward, backward, step = one_step(
  initial_state, project, recur, recur_backward, parameter_gradients
)
