"""The plain (Elman) recurrent network: one step, forward and backward.

Forward                              Backward, from dh'
  a  = x W_x + h W_h + b               da  = dh' ⊙ (1 − h'²)
  h' = tanh a                          dh  = da W_hᵀ
                                       dx  = da W_xᵀ
                                       dW_x = Σ xᵀ da
                                       dW_h = Σ hᵀ da
                                       db  = Σ da

A prime marks the value after the step, and dX is the gradient of the loss with
respect to X. Σ sums over the batch and, in `unroll`, over time.
`with_activation` returns a cell with another activation in place of tanh, and
the derivative of that activation in place of 1 − h'².

  >>> import jax, jax.numpy as jnp
  >>> params = init(jax.random.key(0), input_size=3, hidden_size=5)
  >>> state = initial_state(params, batch_shape=(2,))
  >>> step(params, state, jnp.ones((2, 3))).h.shape
  (2, 5)

Reference: Elman (1990), Finding structure in time.
"""

import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from lstm_jax.cells.activations import TANH, Activation, check_activations
from lstm_jax.cells.affine import (
  affine_backward,
  as_row,
  outer,
  product,
  product_transposed,
  select_or_multiply,
)
from lstm_jax.cells.cell import Cell, one_step
from lstm_jax.cells.checks import state_shape
from lstm_jax.cells.initializers import gate_weights
from lstm_jax.cells.made import made_cell
from lstm_jax.cells.platform import computed_once
from lstm_jax.cells.precision import cast_like
from lstm_jax.cells.serialization import serializable


@serializable
class RNNParams(NamedTuple):
  """Weights of a plain recurrent network."""

  w_x: jax.Array  # [D, H]
  w_h: jax.Array  # [H, H]
  b: jax.Array  # [H]


@serializable
class RNNState(NamedTuple):
  """State of a plain recurrent network; h is its output."""

  h: jax.Array  # [..., H]


takes_tokens = True  # x is used in x W_x alone: it may be integer tokens


def project(params: RNNParams, x: jax.Array) -> jax.Array:
  """Return x W_x, [..., H]: the input's part of the pre-activations."""
  return select_or_multiply(x, params.w_x)


def recur(
  params: RNNParams,
  state: RNNState,
  ax: jax.Array,
  *,
  activation: Activation = TANH,
) -> tuple[RNNState, jax.Array, tuple[()]]:
  """Return the next state, given the projected input ax [..., H].

  Returns:
    (state, local_grads, ()): the next state, and ∂h'/∂a, [..., H].
  """
  a = ax + product(state.h, params.w_h) + as_row(params.b, ax)
  h_next = activation.apply(a)
  state_next = cast_like(RNNState(h_next), state)
  return state_next, *_local_gradients(h_next, activation)


def _local_gradients(
  h_next: jax.Array, activation: Activation
) -> tuple[jax.Array, tuple[()]]:
  """Return the local gradient ∂h'/∂a, [..., H], and no residuals.

  `testing.plant` finds its terms by the names of this function and of dh_da.
  """
  dh_da = activation.derivative(h_next)
  return dh_da, ()


def recur_backward(
  params: RNNParams,
  local_grads: jax.Array,
  residuals: tuple[()],
  d_state: RNNState,
) -> tuple[RNNState, jax.Array]:
  """Return (d_state before the step, da [..., H]) from d_state after it."""
  del residuals
  (dh_next,) = d_state
  # On a CPU, XLA would compute da again in each of its consumers.
  da = computed_once(dh_next * local_grads)
  dh = product_transposed(da, params.w_h)
  return RNNState(dh), da


def parameter_gradients(
  params: RNNParams,
  x: jax.Array,
  h: jax.Array,
  residuals: tuple[()],
  da: jax.Array,
) -> tuple[RNNParams, jax.Array | None]:
  """Return (d_params, dx); d_params are sums over the rows of da [..., H]."""
  del residuals  # empty: dW_h needs only h and da
  dx, dw_x, db = affine_backward(x, params.w_x, da)
  dw_h = outer(h, da, params.w_h.dtype)
  return RNNParams(dw_x, dw_h, db), dx


def init(
  key: jax.Array,
  input_size: int,
  hidden_size: int,
  dtype: DTypeLike = jnp.float32,
) -> RNNParams:
  """Return initial weights, as in `initializers`; biases 0.

  Args:
    key: a typed PRNG key.
    input_size: D.
    hidden_size: H.
    dtype: the dtype of every parameter.

  Raises:
    ValueError: a size is not an integer ≥ 1, or dtype is not a float dtype.
  """
  return RNNParams(*gate_weights(key, input_size, hidden_size, 1, dtype))


def initial_state(
  params: RNNParams, batch_shape: tuple[int, ...] = ()
) -> RNNState:
  """Return the zero state, in the weights' dtype."""
  shape = state_shape(batch_shape, params.w_h.shape[0])
  return RNNState(jnp.zeros(shape, params.w_h.dtype))


forward, backward, step = one_step(
  initial_state, project, recur, recur_backward, parameter_gradients
)


def with_activation(activation: Activation) -> Cell[RNNParams, RNNState]:
  """Return this cell with another activation; for tanh, this module.

  Args:
    activation: used in place of tanh, such as `RELU`.

  Raises:
    ValueError: the argument is not an `Activation`.
  """
  check_activations(activation=activation)
  if activation == TANH:
    return sys.modules[__name__]
  # Only `recur` takes the activation: the backward reads the local gradients.
  return made_cell(
    with_activation, (activation,), "recur", activation=activation
  )
