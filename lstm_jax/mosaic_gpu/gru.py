"""One time step of the GRU on blocks in registers; letters as in `cells.gru`.

Forward                              Backward, from dh'
  r  = σ(xᵣ + uᵣ)                      daₙ = dh' ⊙ ∂h'/∂aₙ
  z  = σ(x_z + u_z)                    da_z = dh' ⊙ ∂h'/∂a_z
  s  = uₙ + bₙ                         daᵣ = dh' ⊙ ∂h'/∂aᵣ
  n  = tanh(xₙ + r ⊙ s)                ds  = daₙ ⊙ r
  h' = (1 − z) ⊙ n + z ⊙ h             dh  = dh' ⊙ z + …

The kernel computes u = h W_h and, in the backward, the rest of dh, which is
[daᵣ, da_z, ds] W_hᵀ. The forward saves the five local gradients of `cells.gru`,
in float32, or in float16 where the products' operands have 16 bits
(`registers.stored`). The largest float16 is 65,504; ∂h'/∂a_z is at most
(|h| + 1)/4, ∂h'/∂aᵣ at most |s|/4, and the others at most 1: enough for |h| and
|s| up to 2.6e5. z is saved as its signed distance from the nearer end of
[0, 1]: as z, or above ½ as z − 1 (`registers.pack_gate`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lstm_jax.cells import gru as cell
from lstm_jax.cells.activations import dsigmoid, dtanh
from lstm_jax.cells.affine import affine_backward, outer, total
from lstm_jax.mosaic_gpu import limits
from lstm_jax.mosaic_gpu.registers import (
  Block,
  pack_gate,
  sigmoid,
  stored,
  unpack_gate,
)

COUNTS = limits.GRU


class Saved(NamedTuple):
  """What the forward of a time step saves."""

  dh_dar: Block
  dh_daz: Block
  dh_dan: Block
  r: Block
  z: Block  # by `pack_gate`


def saved_dtypes(operands: jnp.dtype) -> tuple[jnp.dtype, ...]:
  """Return the dtypes of `Saved`, if products have operands of this dtype."""
  return (stored(operands),) * 5


def biases(params: cell.GRUParams) -> jax.Array:
  """Return the biases of `forward`, [4, H]: of aᵣ, a_z and aₙ, and bₙ."""
  return jnp.concatenate([params.b, params.b_n]).reshape(4, -1)


def forward(
  ax: tuple[Block, ...],
  ah: tuple[Block, ...],
  b: tuple[Block, ...],
  state: cell.GRUState,
) -> tuple[cell.GRUState, Saved]:
  """Return the next state, and what the backward needs."""
  xr, xz, xn = (x + y for x, y in zip(ax, b[:3], strict=True))
  ur, uz, un = ah  # u
  (h,) = state
  r, z = sigmoid(xr + ur), sigmoid(xz + uz)
  s = un + b[3]
  n = jnp.tanh(xn + r * s)
  h_next = (1 - z) * n + z * h
  dh_dan = (1 - z) * dtanh(n)
  dh_daz = (h - n) * dsigmoid(z)
  dh_dar = dh_dan * s * dsigmoid(r)
  saved = Saved(dh_dar, dh_daz, dh_dan, r, pack_gate(z))
  return cell.GRUState(h_next), saved


def backward(
  saved: Saved, d_state: cell.GRUState
) -> tuple[tuple[Block, ...], cell.GRUState]:
  """Return (da, d_state before the step), without du W_hᵀ in dh.

  da is (daᵣ, da_z, ds, daₙ); the first three are du. The kernel adds du W_hᵀ.
  """
  (dh_next,) = d_state
  dar = dh_next * saved.dh_dar
  daz = dh_next * saved.dh_daz
  dan = dh_next * saved.dh_dan
  ds = dan * saved.r
  dh = dh_next * unpack_gate(saved.z)
  return (dar, daz, ds, dan), cell.GRUState(dh)


def parameter_gradients(
  params: cell.GRUParams, x: jax.Array, h: jax.Array, das: jax.Array
) -> tuple[cell.GRUParams, jax.Array | None]:
  """Return (d_params, dx) from das of all time steps, [T, B, 4H].

  h, [T, B, H], is the h before each step.
  """
  size = h.shape[-1]
  of_gates, ds, dan = jnp.split(das, [2 * size, 3 * size], -1)  # daᵣ and da_z
  da = jnp.concatenate([of_gates, dan], axis=-1)
  du = jnp.concatenate([of_gates, ds], axis=-1)
  dx, dw_x, db = affine_backward(x, params.w_x, da)
  dw_h = outer(h, du, params.w_h.dtype)
  return cell.GRUParams(dw_x, dw_h, db, total(ds)), dx
