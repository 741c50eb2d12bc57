"""Long short-term memory: one step, forward and backward.

Forward                              Local gradients
  a  = x W_x + h W_h + b               ∂c'/∂aᵢ  = g ⊙ i ⊙ (1 − i)
  i  = σ(aᵢ)                           ∂c'/∂a_f = c ⊙ f ⊙ (1 − f)
  f  = σ(a_f)                          ∂c'/∂a_g = i ⊙ (1 − g²)
  g  = tanh(a_g)                       ∂h'/∂aₒ  = tanh c' ⊙ o ⊙ (1 − o)
  o  = σ(aₒ)                           ∂h'/∂c'  = o ⊙ (1 − tanh² c')
  c' = f ⊙ c + i ⊙ g                   ∂c'/∂c   = f
  h' = o ⊙ tanh c'

Backward, from dh' and dc'
  dc₊  = dc' + dh' ⊙ ∂h'/∂c'           dh   = da W_hᵀ
  daᵢ  = dc₊ ⊙ ∂c'/∂aᵢ                 dc   = dc₊ ⊙ f
  da_f = dc₊ ⊙ ∂c'/∂a_f                dx   = da W_xᵀ
  da_g = dc₊ ⊙ ∂c'/∂a_g                dW_x = Σ xᵀ da
  daₒ  = dh' ⊙ ∂h'/∂aₒ                 dW_h = Σ hᵀ da
                                       db   = Σ da

with a = [aᵢ, a_f, a_g, aₒ] along its last axis. A prime marks the values after
the step, and dz is the gradient of the loss with respect to z. Σ sums over the
batch and, in `unroll`, over time. c' reaches the loss twice, through h' and
through the next step, hence the sum dc₊. The forward saves the gates and c, 5H
numbers for each time step and sequence beside h, the output; the backward
recomputes tanh c' from them, and the local gradients from gates, c and tanh c'.

`with_activations` returns a cell with other activations than σ and tanh.

  >>> import jax, jax.numpy as jnp
  >>> params = init(jax.random.key(0), input_size=3, hidden_size=5)
  >>> state = initial_state(params, batch_shape=(2,))
  >>> step(params, state, jnp.ones((2, 3))).h.shape
  (2, 5)

References:
  Hochreiter and Schmidhuber (1997), Long short-term memory. Gers, Schmidhuber
  and Cummins (2000), Learning to forget: continual prediction with LSTM (the
  forget gate). Jozefowicz, Zaremba and Sutskever (2015), An empirical
  exploration of recurrent network architectures (a forget bias of 1).
"""

import sys
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from lstm_jax.cells.activations import (
  SIGMOID,
  STANDARD,
  TANH,
  Activation,
  Activations,
  check_activations,
  tanh,
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
from lstm_jax.cells.checks import state_shape
from lstm_jax.cells.initializers import gate_weights
from lstm_jax.cells.made import made_cell
from lstm_jax.cells.platform import computed_once
from lstm_jax.cells.precision import accumulation_dtype, cast_like, upcast
from lstm_jax.cells.serialization import serializable


@serializable
class LSTMParams(NamedTuple):
  """Weights of an LSTM; 4H is [i, f, g, o], each H wide."""

  w_x: jax.Array  # [D, 4H]
  w_h: jax.Array  # [H, 4H]
  b: jax.Array  # [4H]


@serializable
class LSTMState(NamedTuple):
  """State of an LSTM; h is its output."""

  h: jax.Array  # [..., H]
  c: jax.Array  # [..., H]


@serializable
class LSTMResiduals(NamedTuple):
  """What `recur` saves for the backward, besides the gates."""

  c: jax.Array  # [..., H], before the step


takes_tokens = True  # x is used in x W_x alone: it may be integer tokens


def project(params: LSTMParams, x: jax.Array) -> jax.Array:
  """Return x W_x, [..., 4H]: the input's part of the pre-activations."""
  return select_or_multiply(x, params.w_x)


def recur(
  params: LSTMParams,
  state: LSTMState,
  ax: jax.Array,
  *,
  activations: Activations = STANDARD,
) -> tuple[LSTMState, jax.Array, LSTMResiduals]:
  """Return the next state, given the projected input ax [..., 4H].

  Returns:
    (state, gates, residuals): the next state; i, f, g, o, [..., 4H]; and c.
  """
  # b is added here, fused into the sum. To add b to x W_x for all time steps at
  # once would take another array of T·B·4H numbers and a pass over it.
  a = ax + product(state.h, params.w_h) + as_row(params.b, ax)
  # On a CPU, XLA would compute the gates again in each of their consumers.
  gates = computed_once(activate(a, activations))
  c = upcast(state.c)
  c_next, tanh_c_next = next_c(gates, c, activations)
  o = gates[..., -c.shape[-1] :]
  h_next = o * tanh_c_next
  state_next = cast_like(LSTMState(h_next, c_next), state)
  return state_next, gates, LSTMResiduals(c)


def activate(a: jax.Array, activations: Activations = STANDARD) -> jax.Array:
  """Return i, f, g and o, [..., 4H], together called `gates`, g included."""
  if activations == STANDARD:  # with one tanh: σ(a) = ½ + ½ tanh(a/2)
    k = _per_gate([0.5, 0.5, 1, 0.5], a)
    return (1 - k) + k * tanh(k * a)
  return _by_gate(activations.gates.apply, activations.candidate.apply, a)


def next_c(
  gates: jax.Array, c: jax.Array, activations: Activations = STANDARD
) -> tuple[jax.Array, jax.Array]:
  """Return c' and φ(c'), [..., H], with φ the output activation (tanh)."""
  i, f, g, _ = jnp.split(gates, 4, axis=-1)
  c_next = f * c + i * g
  return c_next, activations.output.apply(c_next)


def local_gradients(
  gates: jax.Array,
  c: jax.Array,
  tanh_c_next: jax.Array,
  activations: Activations = STANDARD,
) -> tuple[jax.Array, jax.Array]:
  """Return the derivatives with respect to a and c', element by element.

  Returns:
    (dnext_da, dh_dc): ∂c'/∂aᵢ, ∂c'/∂a_f, ∂c'/∂a_g and ∂h'/∂aₒ, [..., 4H], and
    ∂h'/∂c', [..., H].
  """
  i, _, g, o = jnp.split(gates, 4, axis=-1)
  gate, candidate = activations.gates, activations.candidate
  dactivation = (  # of y = σ: y (1 − y), of y = tanh: (1 + y) (1 − y)
    (_per_gate([0, 0, 1, 0], gates) + gates) * (1 - gates)
    if activations == STANDARD
    else _by_gate(gate.derivative, candidate.derivative, gates)
  )
  dnext_da = jnp.concatenate([g, c, i, tanh_c_next], axis=-1) * dactivation
  dh_dc = o * activations.output.derivative(tanh_c_next)
  return dnext_da, dh_dc


def _by_gate(gate: Callable, candidate: Callable, a: jax.Array) -> jax.Array:
  """Apply `gate` to the i, f and o of a [..., 4H], and `candidate` to g."""
  i, f, g, o = jnp.split(a, 4, axis=-1)
  return jnp.concatenate([gate(i), gate(f), candidate(g), gate(o)], axis=-1)


def _per_gate(values: list[float], a: jax.Array) -> jax.Array:
  """Return one value per gate as a row that broadcasts with a [..., 4H]."""
  vector = np.repeat(values, a.shape[-1] // 4).astype(a.dtype)
  return jnp.asarray(vector.reshape((1,) * (a.ndim - 1) + vector.shape))


def recur_backward(
  params: LSTMParams,
  gates: jax.Array,
  residuals: LSTMResiduals,
  d_state: LSTMState,
  *,
  activations: Activations = STANDARD,
) -> tuple[LSTMState, jax.Array]:
  """Return (d_state before the step, da [..., 4H]) from d_state after it."""
  c = residuals.c
  _, tanh_c_next = next_c(gates, c, activations)
  # h_wrt_c is ∂h'/∂c', which has its term in `local_gradients`: `testing.plant`
  # would take a name that begins with d for another.
  local_grads, h_wrt_c = local_gradients(gates, c, tanh_c_next, activations)
  _, f, _, _ = jnp.split(gates, 4, axis=-1)
  dh_next, dc_next = d_state
  dc_sum = dc_next + dh_next * h_wrt_c
  da = jnp.concatenate([dc_sum, dc_sum, dc_sum, dh_next], axis=-1) * local_grads
  dh = product_transposed(da, params.w_h)
  dc = dc_sum * f
  return LSTMState(dh, dc), da


def parameter_gradients(
  params: LSTMParams,
  x: jax.Array,
  h: jax.Array,
  residuals: LSTMResiduals,
  da: jax.Array,
) -> tuple[LSTMParams, jax.Array | None]:
  """Return (d_params, dx); d_params are sums over the rows of da [..., 4H].

  x is [..., D], or integer tokens [...], whose dx is None; h [..., H] is the
  hidden state before the step.
  """
  del residuals  # a GRU needs them; here h W_h and x W_x have one cotangent, da
  dx, dw_x, db = affine_backward(x, params.w_x, da)
  dw_h = outer(h, da, params.w_h.dtype)
  return LSTMParams(dw_x, dw_h, db), dx


def init(
  key: jax.Array,
  input_size: int,
  hidden_size: int,
  dtype: DTypeLike = jnp.float32,
) -> LSTMParams:
  """Return initial weights, as in `initializers`; biases 0, forget bias 1.

  Args:
    key: a typed PRNG key.
    input_size: D.
    hidden_size: H.
    dtype: the dtype of every parameter.

  Raises:
    ValueError: a size is not an integer ≥ 1, or dtype is not a float dtype.
  """
  return LSTMParams(
    # `forget` is the index of f among [i, f, g, o].
    *gate_weights(key, input_size, hidden_size, 4, dtype, forget=1)
  )


def initial_state(
  params: LSTMParams, batch_shape: tuple[int, ...] = ()
) -> LSTMState:
  """Return the zero state: h in the weights' dtype, c in float32 or wider."""
  shape, dtype = state_shape(batch_shape, params.w_h.shape[0]), params.w_h.dtype
  c = jnp.zeros(shape, accumulation_dtype(dtype))
  return LSTMState(jnp.zeros(shape, dtype), c)


forward, backward, step = one_step(
  initial_state, project, recur, recur_backward, parameter_gradients
)


def with_activations(
  gates: Activation = SIGMOID,
  candidate: Activation = TANH,
  output: Activation = TANH,
) -> Cell[LSTMParams, LSTMState]:
  """Return this cell with other activations; for σ, tanh, tanh, this module.

  Args:
    gates: activation of the gates i, f and o.
    candidate: activation of g.
    output: φ in h' = o ⊙ φ(c').

  Raises:
    ValueError: an argument is not an `Activation`.
  """
  check_activations(gates=gates, candidate=candidate, output=output)
  activations = Activations(gates, candidate, output)
  if activations == STANDARD:
    return sys.modules[__name__]
  return made_cell(
    with_activations,
    tuple(activations),
    "recur",
    "recur_backward",
    activations=activations,
  )
