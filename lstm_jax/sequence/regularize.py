"""Dropout and zoneout for recurrent networks, as pure functions of a key.

  name            what is dropped                        drawn
  dropout         units of a sequence                    at each time step
  locked_dropout  units of a sequence (variational)      once per sequence
  factors         units of h, for `state_dropout`        once, or at each step
  zoneout         updates of the state, for `zoneout`    at each time step
  drop_connect    weights of w_h (weight-drop)           once per sequence

`factors` and `zoneout` draw arguments of `unroll`: factors of shape [B, H] once
per sequence, of shape [T, B, H] at each time step. A rate must be a concrete
number in [0, 1), not traced; all functions here refuse others. The same key
draws the same noise; a rate of 0 draws nothing and changes nothing. Except in
zoneout, what is not dropped is divided by 1 − rate, so that the expectation
stays the same. Dropping multiplies by 0, so that a dropped NaN or infinity
becomes NaN. Zoneout needs no rescaling: at evaluation, pass the rates
themselves as `zoneout`, and each step updates the state by its expectation.

  >>> import jax, jax.numpy as jnp
  >>> hs = locked_dropout(jax.random.key(0), jnp.ones((3, 1, 100)), 0.5)
  >>> bool((hs == hs[:1]).all()), sorted(set(hs.ravel().tolist()))
  (True, [0.0, 2.0])

References:
  Srivastava et al. (2014), Dropout. Gal and Ghahramani (2016), A theoretically
  grounded application of dropout in recurrent neural networks. Merity, Keskar
  and Socher (2018), Regularizing and optimizing LSTM language models: weight-
  drop and locked dropout. Krueger et al. (2017), Zoneout.
"""

from numbers import Real
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from lstm_jax.cells.cell import Params
from lstm_jax.cells.checks import check_arrays, check_same_type
from lstm_jax.cells.precision import as_array, check_float

StateT = TypeVar("StateT", bound=tuple)  # a NamedTuple, with at least h


def dropout(key: jax.Array, x: jax.Array, rate: float) -> jax.Array:
  """Return x with elements dropped with probability `rate`, others scaled up.

  Raises:
    ValueError: the rate is not in [0, 1), or x is not of floats.
  """
  x = _floats("x", x)
  return x * factors(key, x.shape, rate, x.dtype) if _drops(rate) else x


def locked_dropout(key: jax.Array, xs: jax.Array, rate: float) -> jax.Array:
  """Return xs [T, ...] with the same units dropped at every time step.

  Raises:
    ValueError: as `dropout`, or xs has no time axis.
  """
  xs = _floats("xs", xs)
  if not xs.ndim:
    raise ValueError("xs must be [T, ...], got a scalar")
  if not _drops(rate):
    return xs
  return xs * factors(key, (1, *xs.shape[1:]), rate, xs.dtype)


def factors(
  key: jax.Array,
  shape: tuple[int, ...],
  rate: float,
  dtype: DTypeLike = jnp.float32,
) -> jax.Array:
  """Return factors: 0 with probability `rate`, 1 / (1 − rate) otherwise.

  Raises:
    ValueError: the rate is not in [0, 1), or the dtype is not one of floats.
  """
  check_float("dtype", dtype)
  if not _drops(rate):
    return jnp.ones(shape, dtype)
  rate = float(rate)  # else drawn in its dtype, such as float16
  keep = jax.random.bernoulli(key, 1 - rate, shape)
  # Not keep / (1 − rate): if 1 − rate is 0 in float16, that may be 0 / 0. Nor
  # the quotient of a rounded 1 − rate: in bfloat16 it can be off by 0.6 %.
  scale = jnp.asarray(1 / (1 - rate), float).astype(dtype)
  return jnp.where(keep, scale, 0)


def drop_connect(key: jax.Array, params: Params, rate: float) -> Params:
  """Return a cell's params with elements of the matrix w_h dropped.

  Raises:
    ValueError: the rate is not in [0, 1); or it is not 0, and the cell has no
      matrix w_h.
  """
  if not _drops(rate):
    return params
  if not has_w_h(params):
    raise ValueError(
      "drop_connect needs a cell with a matrix w_h, got "
      + type(params).__name__
    )
  return params._replace(w_h=dropout(key, params.w_h, rate))


def has_w_h(params: Params) -> bool:
  """Return whether a cell's params have recurrent weights w_h in a matrix."""
  # In a cell of one's own, it may be a tree of arrays, such as `LowRank`.
  return getattr(getattr(params, "w_h", None), "ndim", 0) >= 2


def zoneout(key: jax.Array, state: StateT, steps: int, rates: StateT) -> StateT:
  """Return which units keep their value, for `unroll(..., zoneout=)`.

  Args:
    key: a typed PRNG key.
    state: a state of the cell, for its shapes [..., H].
    steps: T.
    rates: a state of numbers in [0, 1): the probability that a unit keeps
      its value at a time step.

  Returns:
    A state of bool [T, ..., H], True where a unit keeps its value.

  Raises:
    ValueError: the state is not a cell's, the rates are of another type than
      it, or one is not in [0, 1).
  """
  if not hasattr(state, "_fields"):  # such as None, or PyTorch's (h, c)
    raise ValueError(
      "state must be that of a cell, as initial_state returns it, got "
      + type(state).__name__
    )
  check_arrays("state", state)
  check_same_type("rates", rates, state)
  keys = jax.random.split(key, len(state))
  keep = [
    jax.random.bernoulli(k, float(r), (steps, *s.shape))
    if _drops(r)
    else jnp.zeros((steps, *s.shape), bool)
    for k, s, r in zip(keys, state, rates, strict=True)
  ]
  return type(state)(*keep)


def _floats(name: str, x: Any) -> jax.Array:
  """Return x as a JAX array; raise ValueError unless it holds floats."""
  x = as_array(f"{name} must hold floats", x)
  if not jnp.issubdtype(x.dtype, jnp.floating):
    raise ValueError(f"{name} must hold floats, got {x.dtype}")
  return x


def check_rate(name: str, rate: float) -> None:
  """Raise ValueError unless a rate is a number in [0, 1)."""
  number = hasattr(rate, "dtype") or isinstance(rate, Real)
  if not number or np.iscomplexobj(rate) or np.ndim(rate) or not 0 <= rate < 1:
    raise ValueError(f"{name} must be a number in [0, 1), got {rate}")


def _drops(rate: float) -> bool:
  """Return whether the rate is not 0; raise ValueError outside [0, 1)."""
  check_rate("a rate", rate)
  return rate > 0
