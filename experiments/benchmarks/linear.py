"""A layer with a linear recurrence, computed in several ways.

Our `unroll` of a minimal GRU, a minimal LSTM and a linear recurrent unit is
compared with the same equations as a user of JAX writes them: after one matrix
product for the inputs of all time steps, a `lax.scan` or a
`lax.associative_scan` over time, which JAX differentiates. "scan of steps" is
`unroll` with `Autodiff()`: a scan of whole time steps, with their products.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from experiments.benchmarks import sequences
from experiments.benchmarks.layers import Layer, autodiff, ours
from experiments.benchmarks.proof import Makers

Recurrence = Callable[[jax.Array, jax.Array], jax.Array]


def loop(decay: jax.Array, increment: jax.Array) -> jax.Array:
  """Return hₜ = λₜ ⊙ hₜ₋₁ + uₜ from λ and u, h₀ = 0, by `lax.scan`.

  All are [T, B, H].
  """

  def body(h, inputs):
    decay, increment = inputs
    h = decay * h + increment
    return h, h

  return lax.scan(body, jnp.zeros_like(decay[0]), (decay, increment))[1]


def parallel(decay: jax.Array, increment: jax.Array) -> jax.Array:
  """Return what `loop` returns, by `lax.associative_scan`."""

  def combine(earlier, later):
    decay, increment = earlier
    return decay * later[0], increment * later[0] + later[1]

  return lax.associative_scan(combine, (decay, increment))[1]


def _min_gru(params: Any, a: jax.Array) -> tuple[jax.Array, jax.Array]:
  az, an = jnp.split(a, 2, axis=-1)
  z = jax.nn.sigmoid(az)
  return 1 - z, z * an


def _min_lstm(params: Any, a: jax.Array) -> tuple[jax.Array, jax.Array]:
  af, ai, an = jnp.split(a, 3, axis=-1)
  f, i = jax.nn.sigmoid(af), jax.nn.sigmoid(ai)
  return f / (f + i), i / (f + i) * an


def _lru(params: Any, a: jax.Array) -> tuple[jax.Array, jax.Array]:
  decay = jnp.exp(-jnp.exp(params.nu))
  return jnp.broadcast_to(decay, a.shape), jnp.sqrt(1 - decay**2) * a


# (params, pre-activations [T, B, ...]) -> (λ, u) [T, B, H] of each cell.
COEFFICIENTS = {"min_gru": _min_gru, "min_lstm": _min_lstm, "lru": _lru}


def written_out(recurrence: Recurrence) -> Callable[[str, Any], Layer]:
  """Return the maker of a layer with this recurrence."""

  def make(cell: str, weights: Any) -> Layer:
    def apply(params, xs):
      a = xs @ params.w_x + params.b
      return recurrence(*COEFFICIENTS[cell](params, a))

    return Layer(weights, apply, lambda w: w)

  return make


LAYERS: dict[str, Callable[[str, Any], Layer]] = {
  "lstm_jax": ours,
  "scan of steps, autodiff": autodiff,
  "lax.scan, autodiff": written_out(loop),
  "associative_scan, autodiff": written_out(parallel),
}


def linear() -> Makers:
  """Return the makers of all peers."""
  return {
    name: (sequences.jax_peer(name, make), "jax")
    for name, make in LAYERS.items()
  }
