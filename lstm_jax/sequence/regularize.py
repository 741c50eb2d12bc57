"""Regularisers of recurrent networks: noise drawn by a key, as pure functions.

  name            what is dropped                        over time
  dropout         units of a sequence                    drawn at each step
  locked_dropout  units of a sequence (variational)      drawn once
  factors         units of the state, for `unroll`       drawn once
  zoneout         updates of the state, for `unroll`     drawn at each step
  drop_connect    weights of w_h (weight-drop)           drawn once

The same key draws the same; a rate of 0 draws nothing and changes nothing. What
is not dropped is divided by 1 − rate, so that expectations stay; zoneout has an
expectation of its own, `unroll(..., zoneout=rates)`.

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

import jax
import jax.numpy as jnp

from lstm_jax.cells.cell import Params, State


def dropout(key: jax.Array, x: jax.Array, rate: float) -> jax.Array:
  """Return x with each element 0 at the rate, and scaled up otherwise.

  Raises:
    ValueError: the rate is not in [0, 1); so do all functions here.
  """
  return x * factors(key, x.shape, rate, x.dtype) if _drops(rate) else x


def locked_dropout(key: jax.Array, xs: jax.Array, rate: float) -> jax.Array:
  """Return xs [T, ...] with the same units of every step dropped."""
  if not _drops(rate):
    return xs
  return xs * factors(key, (1, *xs.shape[1:]), rate, xs.dtype)


def factors(
  key: jax.Array, shape: tuple[int, ...], rate: float, dtype=jnp.float32
) -> jax.Array:
  """Return an array of 0 at the rate, and 1 / (1 − rate) otherwise."""
  if not _drops(rate):
    return jnp.ones(shape, dtype)
  kept = jax.random.bernoulli(key, 1 - rate, shape)
  return kept.astype(dtype) / jnp.asarray(1 - rate, dtype)


def drop_connect(key: jax.Array, params: Params, rate: float) -> Params:
  """Return a cell's params with elements of w_h dropped, once for all steps."""
  return params._replace(w_h=dropout(key, params.w_h, rate))


def zoneout(key: jax.Array, state: State, steps: int, rates: State) -> State:
  """Draw what each step keeps, for `unroll(..., zoneout=)`.

  Args:
    key: a typed PRNG key.
    state: the cell's state, for its shapes: leaves [..., H].
    steps: T.
    rates: a state of floats in [0, 1): how often a unit keeps its value.

  Returns:
    A state of bool [T, ..., H].
  """
  keys = jax.random.split(key, len(state))
  kept = [
    jax.random.bernoulli(k, r, (steps, *s.shape))
    if _drops(r)
    else jnp.zeros((steps, *s.shape), bool)
    for k, s, r in zip(keys, state, rates, strict=True)
  ]
  return type(state)(*kept)


def _drops(rate: float) -> bool:
  """Return whether anything is dropped, after a check of the rate."""
  if not 0 <= rate < 1:
    raise ValueError(f"a rate must be in [0, 1), got {rate}")
  return rate > 0
