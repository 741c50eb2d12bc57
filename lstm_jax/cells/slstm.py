"""sLSTM, an LSTM with exponential gates: one step, forward and backward.

Forward                              Local gradients
  a  = x W_x + h W_h + b               ∂p/∂a_f = σ(−a_f)
  p  = m + log σ(a_f) where n > 0      w = ∂m'/∂p = 1 where q > 0
  p  = −∞ where n ≤ 0                               ½ where q = 0
  m' = max(p, aᵢ)                                   0 where q < 0
  q  = p − aᵢ
  i  = exp(aᵢ − m') = exp(−max(q, 0))
  f  = exp(p − m')  = exp(min(q, 0))
  g  = tanh(a_g)
  o  = σ(aₒ)
  c' = f ⊙ c + i ⊙ g
  n' = f ⊙ n + i
  y  = c' / n'
  h' = o ⊙ y

Backward, from dh', dc', dn' and dm' (dc₊, dn₊: whole cotangents, see `lstm`)
  daₒ  = dh' ⊙ y ⊙ o ⊙ (1 − o)         dp   = dq + w ⊙ dm'
  dy   = dh' ⊙ o                       daᵢ  = (1 − w) ⊙ dm' − dq
  dc₊  = dc' + dy / n'                 da_f = dp ⊙ ∂p/∂a_f
  dn₊  = dn' − dy ⊙ y / n'             dh   = da W_hᵀ
  da_g = dc₊ ⊙ i ⊙ (1 − g²)            dc   = dc₊ ⊙ f
  di   = dc₊ ⊙ g + dn₊                 dn   = dn₊ ⊙ f
  df   = dc₊ ⊙ c + dn₊ ⊙ n             dm   = dp
  dq   = (1 − w) ⊙ f ⊙ df              dx   = da W_xᵀ
         − w ⊙ i ⊙ di                  dW_x = Σ xᵀ da,   dW_h = Σ hᵀ da
                                       db   = Σ da

with a = [aᵢ, a_f, a_g, aₒ] along its last axis. The paper's input gate is
exp(aᵢ), and its forget gate is exp(a_f) or σ(a_f), here σ(a_f). As exp(aᵢ) can
overflow, the cell state and its normaliser are stored divided by exp(m), as c
and n. So the input gate is divided by exp(m'), and the forget gate multiplied
by exp(m − m'). p is the logarithm of exp(m) ⊙ σ(a_f), q is how far p exceeds
aᵢ, and w is the share of p in the gradient of m' = max(p, aᵢ). The output stays
the same if m, c and n become m + k, c / exp(k) and n / exp(k), for any k.

Where n ≤ 0, as in the zero state, nothing is stored yet, and the step computes
as if m were −∞: m' = aᵢ, c' = g, n' = 1 and h' = o ⊙ g for any aᵢ, and no
gradient reaches the c, n and m before the step. With m = 0 instead, i and n'
would be 0 in float32 for aᵢ below about −88 (a CPU flushes subnormal numbers to
0). From the zero state on, i or f is 1 at every step. So n' ≥ 1 and |c'| ≤ n',
and c' / n' needs no safeguard; n' grows by 1 a step at most, and m' is at most
the largest aᵢ so far. A unit that keeps its state (zoneout) must keep c, n
and m together. h W_h mixes only units of one head: W_h has a block per head.

  >>> import jax, jax.numpy as jnp
  >>> params = init(jax.random.key(0), input_size=3, hidden_size=6, num_heads=2)
  >>> state = initial_state(params, batch_shape=(4,))
  >>> step(params, state, jnp.ones((4, 3))).h.shape, params.w_h.shape
  ((4, 6), (2, 3, 12))

Reference: Beck et al. (2024), xLSTM: Extended long short-term memory, section
2.2, equations 8 to 17, where g is called z, and i and f are i' and f'.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from lstm_jax.cells.activations import dsigmoid, dtanh, sigmoid, softplus, tanh
from lstm_jax.cells.affine import affine_backward, as_row, select_or_multiply
from lstm_jax.cells.cell import one_step
from lstm_jax.cells.checks import check_count, state_shape
from lstm_jax.cells.initializers import (
  check_init,
  gate_biases,
  input_weights,
  recurrent_weights,
)
from lstm_jax.cells.platform import computed_once, is_cpu
from lstm_jax.cells.precision import accumulation_dtype, cast_like, upcast
from lstm_jax.cells.serialization import serializable

HEADS = 4  # the default num_heads is the largest divisor of H up to this


@serializable
class SLSTMParams(NamedTuple):
  """Weights of an sLSTM; 4H is [i, f, g, o], each H wide.

  N is the number of heads, and K = H / N; 4K is [i, f, g, o] of one head.
  """

  w_x: jax.Array  # [D, 4H]
  w_h: jax.Array  # [N, K, 4K]
  b: jax.Array  # [4H]


@serializable
class SLSTMState(NamedTuple):
  """State of an sLSTM; h is its output."""

  h: jax.Array  # [..., H]
  c: jax.Array  # [..., H], the cell state divided by exp(m)
  n: jax.Array  # [..., H], its normaliser divided by exp(m)
  m: jax.Array  # [..., H], the stabiliser


@serializable
class SLSTMResiduals(NamedTuple):
  """What `recur` saves for the backward, besides q, ∂p/∂a_f, g and o."""

  c: jax.Array  # [..., H], before the step
  n: jax.Array  # [..., H], before the step


takes_tokens = True  # x is used in x W_x alone: it may be integer tokens


def project(params: SLSTMParams, x: jax.Array) -> jax.Array:
  """Return x W_x, [..., 4H]: the input's part of the pre-activations."""
  return select_or_multiply(x, params.w_x)


def recur(
  params: SLSTMParams, state: SLSTMState, ax: jax.Array
) -> tuple[SLSTMState, jax.Array, SLSTMResiduals]:
  """Return the next state, given the projected input ax [..., 4H].

  Returns:
    (state, gates, residuals): the next state; q, ∂p/∂a_f, g and o, [..., 4H];
    and c and n, [..., H].
  """
  a = ax + _product(state.h, params.w_h) + as_row(params.b, ax)
  # On a CPU, XLA would compute this again in each of its consumers.
  ai, af, ag, ao = jnp.split(computed_once(a), 4, axis=-1)
  _, c, n, m = upcast(state)
  p = jnp.where(n > 0, m - softplus(-af), -jnp.inf)
  m_next = jnp.maximum(p, ai)
  q, g, o = p - ai, tanh(ag), sigmoid(ao)
  c_next, n_next = next_c_and_n(*i_and_f(q), g, c, n)
  h_next = o * c_next / n_next
  state_next = cast_like(SLSTMState(h_next, c_next, n_next, m_next), state)
  # In place of the gates: i and f follow from q.
  gates = jnp.concatenate([q, sigmoid(-af), g, o], axis=-1)
  return state_next, gates, SLSTMResiduals(c, n)


def i_and_f(q: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Return i and f, [..., H], from q [..., H]."""
  return jnp.exp(-jnp.maximum(q, 0)), jnp.exp(jnp.minimum(q, 0))


def next_c_and_n(
  i: jax.Array, f: jax.Array, g: jax.Array, c: jax.Array, n: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Return c' and n', [..., H]: the next cell state and its normaliser."""
  return f * c + i * g, f * n + i


def recur_backward(
  params: SLSTMParams,
  gates: jax.Array,
  residuals: SLSTMResiduals,
  d_state: SLSTMState,
) -> tuple[SLSTMState, jax.Array]:
  """Return (d_state before the step, da [..., 4H]) from d_state after it."""
  c, n = residuals
  q, p_wrt_af, g, o = jnp.split(gates, 4, axis=-1)
  i, f = i_and_f(q)
  c_next, n_next = next_c_and_n(i, f, g, c, n)
  y = c_next / n_next
  w = (1 + jnp.sign(q)) / 2
  dh_next, dc_next, dn_next, dm_next = d_state
  dao = dh_next * y * dsigmoid(o)
  dy = dh_next * o
  dc_sum = dc_next + dy / n_next
  dn_sum = dn_next - dy * y / n_next
  dag = dc_sum * i * dtanh(g)
  di = dc_sum * g + dn_sum
  df = dc_sum * c + dn_sum * n
  dq = (1 - w) * f * df - w * i * di
  dp = dq + w * dm_next
  dai = (1 - w) * dm_next - dq
  daf = dp * p_wrt_af
  # On a CPU, XLA would compute da again in each of its consumers.
  da = computed_once(jnp.concatenate([dai, daf, dag, dao], axis=-1))
  dh = _product_transposed(da, params.w_h)
  dc = dc_sum * f
  dn = dn_sum * f
  return SLSTMState(dh, dc, dn, dp), da


def parameter_gradients(
  params: SLSTMParams,
  x: jax.Array,
  h: jax.Array,
  residuals: SLSTMResiduals,
  da: jax.Array,
) -> tuple[SLSTMParams, jax.Array | None]:
  """Return (d_params, dx); d_params are sums over the rows of da [..., 4H]."""
  del residuals  # not needed: x W_x and h W_h have the same cotangent
  dx, dw_x, db = affine_backward(x, params.w_x, da)
  dw_h = _outer(h, da, params.w_h)
  return SLSTMParams(dw_x, dw_h, db), dx


def _product(h: jax.Array, w_h: jax.Array) -> jax.Array:
  """Return h W_h, [..., 4H], for h [..., H]."""
  return _joined(_contract("...nk,nkj->...nj", _of_heads(h, w_h, 1), w_h), 4)


def _product_transposed(da: jax.Array, w_h: jax.Array) -> jax.Array:
  """Return da W_hᵀ, [..., H], for da [..., 4H]."""
  return _joined(_contract("...nj,nkj->...nk", _of_heads(da, w_h, 4), w_h), 1)


def _outer(h: jax.Array, da: jax.Array, w_h: jax.Array) -> jax.Array:
  """Return Σ hᵀ da of each head, [N, K, 4K], for h [..., H], da [..., 4H]."""
  return _contract(
    "...nk,...nj->nkj", _of_heads(h, w_h, 1), _of_heads(da, w_h, 4)
  )


def _contract(spec: str, x: jax.Array, y: jax.Array) -> jax.Array:
  """Return the products of all heads, accumulated in float32 or wider.

  On a CPU the operands are converted first: XLA (jax 0.12) cannot multiply some
  layouts of several matrices in bfloat16.
  """
  wide = accumulation_dtype(y.dtype)
  if is_cpu():
    x, y = x.astype(wide), y.astype(wide)
  return jnp.einsum(spec, x, y, preferred_element_type=wide)


def _of_heads(a: jax.Array, w_h: jax.Array, gates: int) -> jax.Array:
  """Return [..., gates·H] as [..., N, gates·K], in the dtype of w_h."""
  heads, size, _ = w_h.shape
  a = a.astype(w_h.dtype).reshape(*a.shape[:-1], gates, heads, size)
  return a.swapaxes(-3, -2).reshape(*a.shape[:-3], heads, gates * size)


def _joined(a: jax.Array, gates: int) -> jax.Array:
  """Return [..., N, gates·K] as [..., gates·H]."""
  *batch, heads, width = a.shape
  a = a.reshape(*batch, heads, gates, width // gates).swapaxes(-3, -2)
  return a.reshape(*batch, heads * width)


def init(
  key: jax.Array,
  input_size: int,
  hidden_size: int,
  dtype: DTypeLike = jnp.float32,
  *,
  num_heads: int | None = None,
) -> SLSTMParams:
  """Return initial weights, as in `initializers`; biases 0, forget bias 1.

  Args:
    key: a typed PRNG key.
    input_size: D.
    hidden_size: H.
    dtype: the dtype of every parameter.
    num_heads: N, a divisor of H; None for the largest up to 4.

  Raises:
    ValueError: a size is not an integer ≥ 1, dtype is not a float dtype, or
      num_heads is not an integer ≥ 1 or does not divide H.
  """
  input_size, hidden_size = check_init(input_size, hidden_size, dtype)
  if num_heads is None:
    num_heads = max(n for n in range(1, HEADS + 1) if hidden_size % n == 0)
  num_heads = check_count("num_heads", num_heads)
  if hidden_size % num_heads:
    raise ValueError(
      f"num_heads must divide hidden_size, got {num_heads} and {hidden_size}"
    )
  key_x, key_h = jax.random.split(key)
  size = hidden_size // num_heads
  keys = jax.random.split(key_h, num_heads)
  heads = [recurrent_weights(k, size, size, 4, dtype) for k in keys]
  return SLSTMParams(
    w_x=input_weights(key_x, input_size, hidden_size, 4, dtype),
    w_h=jnp.stack(heads),
    b=gate_biases(hidden_size, 4, dtype, forget=1),  # the index of f
  )


def initial_state(
  params: SLSTMParams, batch_shape: tuple[int, ...] = ()
) -> SLSTMState:
  """Return the zero state: h in the weights' dtype, others in float32 or wider.

  Each is an array of its own, so that the state can be donated.
  """
  heads, size, _ = params.w_h.shape
  shape, dtype = state_shape(batch_shape, heads * size), params.w_h.dtype
  wide = accumulation_dtype(dtype)
  c, n, m = (jnp.zeros(shape, wide) for _ in range(3))
  return SLSTMState(jnp.zeros(shape, dtype), c, n, m)


forward, backward, step = one_step(
  initial_state, project, recur, recur_backward, parameter_gradients
)
