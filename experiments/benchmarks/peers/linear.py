"""A layer with a linear recurrence, in the ways in which it can be computed.

Our `unroll` of a minimal GRU against the same equations as a user of JAX writes
them: after the product of all inputs, a `lax.scan` or a `lax.associative_scan`
over time, which JAX differentiates.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from experiments.benchmarks.peers import sequences
from experiments.benchmarks.peers.layers import Layer, autodiff, ours
from experiments.benchmarks.peers.proof import Makers

CELL = "min_gru"


def loop(decay: jax.Array, increment: jax.Array) -> jax.Array:
  """Return hₜ = λₜ ⊙ hₜ₋₁ + uₜ, [T, B, H], by `lax.scan`."""

  def body(h, inputs):
    decay, increment = inputs
    h = decay * h + increment
    return h, h

  return lax.scan(body, jnp.zeros_like(decay[0]), (decay, increment))[1]


def parallel(decay: jax.Array, increment: jax.Array) -> jax.Array:
  """Return hₜ = λₜ ⊙ hₜ₋₁ + uₜ, [T, B, H], by `lax.associative_scan`."""

  def combine(earlier, later):
    decay, increment = earlier
    return decay * later[0], increment * later[0] + later[1]

  return lax.associative_scan(combine, (decay, increment))[1]


def written_out(recurrence: Callable) -> Callable[[str, Any], Layer]:
  """Return the maker of a minimal GRU with this recurrence."""

  def make(cell: str, weights: Any) -> Layer:
    del cell

    def apply(params, xs):
      az, an = jnp.split(xs @ params.w_x + params.b, 2, axis=-1)
      z = jax.nn.sigmoid(az)
      return recurrence(1 - z, z * an)

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
