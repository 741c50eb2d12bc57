"""One time step of the plain RNN on blocks in registers, as in `cells.rnn`.

Forward                              Backward, from dh'
  h' = tanh a                          da = dh' ⊙ (1 − h'²)

with a = ax + ah + b, the sum of the input's part, the state's part and the
bias. The kernel computes ah = h W_h and, in the backward, da W_hᵀ. The forward
saves 1 − h'², in float32, or in float16 where the products' operands have 16
bits (`registers.stored`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lstm_jax.cells import rnn as cell
from lstm_jax.cells.activations import dtanh
from lstm_jax.mosaic_gpu import limits
from lstm_jax.mosaic_gpu.registers import Block, stored

COUNTS = limits.RNN


class Saved(NamedTuple):
  """What the forward of a time step saves."""

  dh_da: Block


def saved_dtypes(operands: jnp.dtype) -> tuple[jnp.dtype, ...]:
  """Return the dtypes of `Saved`, if products have operands of this dtype."""
  return (stored(operands),)


def biases(params: cell.RNNParams) -> jax.Array:
  """Return the biases that `forward` takes, [1, H]."""
  return params.b[None]


def forward(
  ax: tuple[Block, ...],
  ah: tuple[Block, ...],
  b: tuple[Block, ...],
  state: cell.RNNState,
) -> tuple[cell.RNNState, Saved]:
  """Return the next state, and what the backward needs."""
  del state  # it is in ah
  h_next = jnp.tanh(ax[0] + ah[0] + b[0])
  return cell.RNNState(h_next), Saved(dtanh(h_next))


def backward(
  saved: Saved, d_state: cell.RNNState
) -> tuple[tuple[Block, ...], cell.RNNState]:
  """Return (da, d_state before the step).

  The dh returned is 0: the kernel adds all of it, which is da W_hᵀ.
  """
  (dh_next,) = d_state
  da = dh_next * saved.dh_da
  return (da,), cell.RNNState(jnp.zeros_like(da))


def parameter_gradients(
  params: cell.RNNParams, x: jax.Array, h: jax.Array, das: jax.Array
) -> tuple[cell.RNNParams, jax.Array | None]:
  """Return (d_params, dx) from da of all time steps, [T, B, H]."""
  return cell.parameter_gradients(params, x, h, (), das)
