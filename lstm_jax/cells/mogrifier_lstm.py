"""Mogrifier LSTM: one step, forward and backward.

Forward, with x⁻¹ = x and h⁰ = h     Local gradients
  for i = 1, 2, … N:                   ∂uⁱ/∂aⁱ = uⁱ ⊙ (1 − uⁱ/2)
    i odd:  aⁱ = hⁱ⁻¹ Qⁱ
            uⁱ = 2σ(aⁱ)
            xⁱ = uⁱ ⊙ xⁱ⁻²
    i even: aⁱ = xⁱ⁻¹ Rⁱ
            uⁱ = 2σ(aⁱ)
            hⁱ = uⁱ ⊙ hⁱ⁻²
  a  = x↑ W_x + h↑ W_h + b             as for the LSTM
  c', h' = those of an LSTM

Backward, from dh' and dc'
  dc₊, da, dc: as for the LSTM
  dx = da W_xᵀ                         dW_x = Σ x↑ᵀ da
  dh = da W_hᵀ                         dW_h = Σ h↑ᵀ da
  for i = N, … 2, 1:                   db   = Σ da
    i odd:  duⁱ = dx ⊙ xⁱ⁻²
            daⁱ = duⁱ ⊙ ∂uⁱ/∂aⁱ        dQⁱ  = Σ hⁱ⁻¹ᵀ daⁱ
            dx  ← dx ⊙ uⁱ
            dh  ← dh + daⁱ Qⁱᵀ
    i even: duⁱ = dh ⊙ hⁱ⁻²
            daⁱ = duⁱ ⊙ ∂uⁱ/∂aⁱ        dRⁱ  = Σ xⁱ⁻¹ᵀ daⁱ
            dh  ← dh ⊙ uⁱ
            dx  ← dx + daⁱ Rⁱᵀ

with x↑ and h↑ the last of the xⁱ and hⁱ. The input x and the h before the step
modulate each other in N rounds, and then an LSTM reads them. Where all aⁱ are
0, all uⁱ are 1, and the step is that of the LSTM.

What the step reads of x depends on h, so no product with x comes before the
scan over time. `project` returns x itself. Where other cells save their gates,
which the backward scan overwrites with da, this cell saves x, which the scan
overwrites with dx; its gates are residuals. The scan also returns da and all
daⁱ, so that each weight gradient is one product for all time steps. The
backward computes the xⁱ and hⁱ again, from x, h and the factors uⁱ.

  >>> import jax, jax.numpy as jnp
  >>> params = init(jax.random.key(0), input_size=3, hidden_size=5, rounds=4)
  >>> state = initial_state(params, batch_shape=(2,))
  >>> step(params, state, jnp.ones((2, 3))).h.shape
  (2, 5)

Reference: Melis, Kočiský and Blunsom (2020), Mogrifier LSTM, equations 1 and 2,
with Qⁱ and Rⁱ whole or of low rank.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from lstm_jax.cells import low_rank, lstm
from lstm_jax.cells.activations import sigmoid
from lstm_jax.cells.affine import (
  as_row,
  is_token,
  outer,
  product,
  product_transposed,
  total,
)
from lstm_jax.cells.cell import one_step
from lstm_jax.cells.checks import check_count
from lstm_jax.cells.low_rank import LowRank, Matrix
from lstm_jax.cells.lstm import LSTMState, activate, local_gradients, next_c
from lstm_jax.cells.platform import computed_once
from lstm_jax.cells.precision import accumulation_dtype, cast_like, upcast
from lstm_jax.cells.serialization import serializable


@serializable
class MogrifierLSTMParams(NamedTuple):
  """Weights of a Mogrifier LSTM; 4H is [i, f, g, o], each H wide.

  N is the number of rounds. With low rank, q and r are each a `LowRank`, whose
  arrays have an axis of rounds before those of one matrix.
  """

  w_x: jax.Array  # [D, 4H]
  w_h: jax.Array  # [H, 4H]
  b: jax.Array  # [4H]
  q: jax.Array | LowRank  # [⌈N/2⌉, H, D], of the odd rounds
  r: jax.Array | LowRank  # [⌊N/2⌋, D, H], of the even rounds


@serializable
class MogrifierLSTMResiduals(NamedTuple):
  """What `recur` saves for the backward, besides x."""

  gates: jax.Array  # [..., 4H], i, f, g, o
  c: jax.Array  # [..., H], before the step
  h: jax.Array  # [..., H], before the step
  factors: tuple[jax.Array, ...]  # uⁱ, [..., D] of odd and [..., H] of even i


takes_tokens = False  # x is multiplied by factors that depend on h


def project(params: MogrifierLSTMParams, x: jax.Array) -> jax.Array:
  """Return x, [..., D], in the weights' dtype, or float32 if that is wider.

  Raises:
    ValueError: x holds tokens.
  """
  if is_token(x):
    raise ValueError(
      f"x must be floats, since this cell takes no tokens, got {x.dtype}"
    )
  return x.astype(accumulation_dtype(params.b.dtype))


def recur(
  params: MogrifierLSTMParams, state: LSTMState, x: jax.Array
) -> tuple[LSTMState, jax.Array, MogrifierLSTMResiduals]:
  """Return the next state, given x [..., D].

  Returns:
    (state, x, residuals): the next state; x, in place of the gates; and the
    other arrays that the backward needs.
  """
  h, c = upcast(state)
  x_up, h_up, factors = x, h, []
  for i, w in enumerate(_matrices(params), start=1):
    if i % 2:
      u = computed_once(2 * sigmoid(low_rank.forward(h_up, w)))
      x_up = u * x_up
    else:
      u = computed_once(2 * sigmoid(low_rank.forward(x_up, w)))
      h_up = u * h_up
    factors.append(u)
  a = product(x_up, params.w_x) + product(h_up, params.w_h)
  # On a CPU, XLA would compute this again in each of its consumers.
  gates = computed_once(activate(a + as_row(params.b, a)))
  c_next, tanh_c = next_c(gates, c)
  o = gates[..., -c.shape[-1] :]
  h_next = o * tanh_c
  state_next = cast_like(LSTMState(h_next, c_next), state)
  return state_next, x, MogrifierLSTMResiduals(gates, c, h, tuple(factors))


def recur_backward(
  params: MogrifierLSTMParams,
  x: jax.Array,
  residuals: MogrifierLSTMResiduals,
  d_state: LSTMState,
) -> tuple[LSTMState, jax.Array, jax.Array, tuple[jax.Array, ...]]:
  """Return (d_state before the step, dx, da [..., 4H], daⁱ of every round)."""
  gates, c, h, factors = residuals
  xs, hs = _modulated(x, h, factors)
  _, tanh_c = next_c(gates, c)
  local_grads, h_wrt_c = local_gradients(gates, c, tanh_c)
  _, f, _, _ = jnp.split(gates, 4, axis=-1)
  dh_next, dc_next = d_state
  dc_sum = dc_next + dh_next * h_wrt_c
  da = jnp.concatenate([dc_sum, dc_sum, dc_sum, dh_next], axis=-1) * local_grads
  da = computed_once(da)
  dc = dc_sum * f
  dx = product_transposed(da, params.w_x)
  dh = product_transposed(da, params.w_h)
  round_das = []
  for i, w in reversed([*enumerate(_matrices(params), start=1)]):
    # uⁱ, and where xⁱ⁻² is in xs (i odd) or hⁱ⁻² in hs (i even).
    u, before = factors[i - 1], (i - 1) // 2
    if i % 2:
      du = dx * xs[before]
      da_i = computed_once(du * u * (1 - u / 2))
      dx = dx * u
      dh = dh + low_rank.backward(w, da_i)
    else:
      du = dh * hs[before]
      da_i = computed_once(du * u * (1 - u / 2))
      dh = dh * u
      dx = dx + low_rank.backward(w, da_i)
    round_das.append(da_i)
  return LSTMState(dh, dc), dx, da, tuple(round_das[::-1])


def parameter_gradients(
  params: MogrifierLSTMParams,
  x: jax.Array,
  h: jax.Array,
  residuals: MogrifierLSTMResiduals,
  dx: jax.Array,
  da: jax.Array,
  round_das: tuple[jax.Array, ...],
) -> tuple[MogrifierLSTMParams, jax.Array]:
  """Return (d_params, dx); d_params are sums over the rows of da and daⁱ."""
  del h  # the residuals have it
  xs, hs = _modulated(project(params, x), residuals.h, residuals.factors)
  dw_x = outer(xs[-1], da, params.w_x.dtype)
  dw_h = outer(hs[-1], da, params.w_h.dtype)
  db = total(da)
  of_rounds = [  # from hⁱ⁻¹ = hs[i // 2] (i odd) or xⁱ⁻¹ = xs[i // 2] (i even)
    low_rank.parameter_gradients((hs if i % 2 else xs)[i // 2], w, da_i)
    for i, (w, da_i) in enumerate(
      zip(_matrices(params), round_das, strict=True), start=1
    )
  ]
  dq = _stack(of_rounds[0::2], params.q)
  dr = _stack(of_rounds[1::2], params.r)
  return MogrifierLSTMParams(dw_x, dw_h, db, dq, dr), dx


def _modulated(
  x: jax.Array, h: jax.Array, factors: tuple[jax.Array, ...]
) -> tuple[list[jax.Array], list[jax.Array]]:
  """Return (xs, hs): x⁻¹, x¹, x³ and so on; h⁰, h², h⁴ and so on."""
  xs, hs = [x], [h]
  for u in factors[0::2]:
    xs.append(u * xs[-1])
  for u in factors[1::2]:
    hs.append(u * hs[-1])
  return xs, hs


def _matrices(params: MogrifierLSTMParams) -> list[Matrix]:
  """Return Q¹, R², Q³, R⁴ and so on, one for each round."""
  q, r = _unstack(params.q), _unstack(params.r)
  return [(r if k % 2 else q)[k // 2] for k in range(len(q) + len(r))]


def _unstack(w: Any) -> list[Matrix]:
  count = len(jax.tree.leaves(w)[0])
  return [jax.tree.map(lambda leaf: leaf[k], w) for k in range(count)]  # noqa: B023


def _stack(matrices: list[Matrix], like: Any) -> Any:
  """Stack matrices along a first axis; with none, return zeros like `like`."""
  if not matrices:
    return upcast(jax.tree.map(jnp.zeros_like, like))  # [0, ...]
  return jax.tree.map(lambda *each: jnp.stack(each), *matrices)


def init(
  key: jax.Array,
  input_size: int,
  hidden_size: int,
  dtype: DTypeLike = jnp.float32,
  *,
  rounds: int = 5,
  rank: int | None = None,
) -> MogrifierLSTMParams:
  """Return the LSTM's initial weights, and Qⁱ and Rⁱ as in `low_rank`.

  Args:
    key: a typed PRNG key.
    input_size: D.
    hidden_size: H.
    dtype: the dtype of every parameter.
    rounds: N; the odd rounds modulate x, the even ones h.
    rank: the rank of Qⁱ and Rⁱ, as products of two factors; None for whole
      matrices.

  Raises:
    ValueError: a size, rounds or rank is not an integer ≥ 1, or dtype is not a
      float dtype.
  """
  rounds = check_count("rounds", rounds)
  if rank is not None:
    rank = check_count("rank", rank)
  key_lstm, key_q, key_r = jax.random.split(key, 3)
  w_x, w_h, b = lstm.init(key_lstm, input_size, hidden_size, dtype)
  input_size, hidden_size = len(w_x), len(w_h)  # Python ints, for `matrices`

  def matrices(key, count, rows, columns):
    keys = jax.random.split(key, max(count, 1))  # 0 matrices need a shape too
    drawn = [low_rank.init(k, rows, columns, rank, dtype) for k in keys]
    return jax.tree.map(lambda *w: jnp.stack(w)[:count], *drawn)

  q = matrices(key_q, (rounds + 1) // 2, hidden_size, input_size)
  r = matrices(key_r, rounds // 2, input_size, hidden_size)
  return MogrifierLSTMParams(w_x, w_h, b, q, r)


initial_state = lstm.initial_state

forward, backward, step = one_step(
  initial_state, project, recur, recur_backward, parameter_gradients
)
