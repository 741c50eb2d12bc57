"""One time step of the LSTM on blocks in registers; letters as in `cells.lstm`.

Forward                              Backward, from dh' and dc'
  i, f, o = σ(aᵢ), σ(a_f), σ(aₒ)       dc₊  = dc' + dh' ⊙ o ⊙ (1 − tanh² c')
  g  = tanh(a_g)                       daᵢ  = dc₊ ⊙ g ⊙ i ⊙ (1 − i)
  c' = f ⊙ c + i ⊙ g                   da_f = dc₊ ⊙ c ⊙ f ⊙ (1 − f)
  h' = o ⊙ tanh c'                     da_g = dc₊ ⊙ i ⊙ (1 − g²)
                                       daₒ  = dh' ⊙ tanh c' ⊙ o ⊙ (1 − o)
                                       dc   = dc₊ ⊙ f

with a = ax + ah + b, the sum of the input's part, the state's part and the
bias. The kernel computes ah = h W_h and, in the backward, da W_hᵀ. The forward
saves c in float32, and the gates in float32, or in float16 where the products'
operands have 16 bits (`registers.stored`). i, f and o are saved as their signed
distance from the nearer end of [0, 1] (`registers.pack_gate`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lstm_jax.cells import lstm as cell
from lstm_jax.cells.activations import dsigmoid, dtanh
from lstm_jax.mosaic_gpu import limits
from lstm_jax.mosaic_gpu.registers import (
  Block,
  pack_gate,
  sigmoid,
  stored,
  unpack_gate,
)

COUNTS = limits.LSTM


class Saved(NamedTuple):
  """What the forward of a time step saves: i, f and o by `pack_gate`."""

  i: Block
  f: Block
  g: Block
  o: Block
  c: Block  # before the step


def saved_dtypes(operands: jnp.dtype) -> tuple[jnp.dtype, ...]:
  """Return the dtypes of `Saved`, if products have operands of this dtype."""
  return *[stored(operands)] * 4, jnp.dtype(jnp.float32)


def biases(params: cell.LSTMParams) -> jax.Array:
  """Return the biases that `forward` takes, [4, H]."""
  return params.b.reshape(4, -1)


def forward(
  ax: tuple[Block, ...],
  ah: tuple[Block, ...],
  b: tuple[Block, ...],
  state: cell.LSTMState,
) -> tuple[cell.LSTMState, Saved]:
  """Return the next state, and what the backward needs."""
  ai, af, ag, ao = (x + y + z for x, y, z in zip(ax, ah, b, strict=True))
  i, f, g, o = sigmoid(ai), sigmoid(af), jnp.tanh(ag), sigmoid(ao)
  c_next = f * state.c + i * g
  h_next = o * jnp.tanh(c_next)
  saved = Saved(pack_gate(i), pack_gate(f), g, pack_gate(o), state.c)
  return cell.LSTMState(h_next, c_next), saved


def backward(
  saved: Saved, d_state: cell.LSTMState
) -> tuple[tuple[Block, ...], cell.LSTMState]:
  """Return (da, d_state before the step).

  The dh returned is 0: the kernel adds all of it, which is da W_hᵀ.
  """
  i, f, o = map(unpack_gate, (saved.i, saved.f, saved.o))
  g, c = saved.g, saved.c
  dh_next, dc_next = d_state
  tanh_c = jnp.tanh(f * c + i * g)
  dc_sum = dc_next + dh_next * o * dtanh(tanh_c)
  dai = dc_sum * g * dsigmoid(i)
  daf = dc_sum * c * dsigmoid(f)
  dag = dc_sum * i * dtanh(g)
  dao = dh_next * tanh_c * dsigmoid(o)
  dc = dc_sum * f
  return (dai, daf, dag, dao), cell.LSTMState(jnp.zeros_like(dc), dc)


def parameter_gradients(
  params: cell.LSTMParams, x: jax.Array, h: jax.Array, das: jax.Array
) -> tuple[cell.LSTMParams, jax.Array | None]:
  """Return (d_params, dx) from da of all time steps, [T, B, 4H].

  h, [T, B, H], is the h before each step.
  """
  return cell.parameter_gradients(params, x, h, None, das)  # type: ignore[arg-type]
