"""A recurrent policy: a GRU over sequences in which new episodes begin.

Our `unroll(..., reset=)` against the usual code of reinforcement learning in
Flax: a cell under `linen.scan` that sets the carry to zero where an episode
begins.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.peers import sequences
from experiments.benchmarks.peers.layers import Layer
from experiments.benchmarks.peers.proof import Makers, Peer
from lstm_jax import Autodiff, Explicit, gru, unroll
from lstm_jax.interop.flax import to_linen
from lstm_jax.sequence import Adjoint

EPISODE_LENGTH = 32  # time steps, on average


class Problem(NamedTuple):
  """A layer with random inputs, and where episodes begin."""

  sequence: sequences.Problem
  starts: jax.Array  # bool [T, B]


def make_problem(
  backward: bool, hidden_size: int, seq_len: int, batch_size: int
) -> Problem:
  """Return a GRU of these sizes, with the results that ours computes."""
  plain = sequences.make_problem(
    "gru", backward, hidden_size, seq_len, batch_size
  )
  rng = np.random.default_rng(0)
  starts = jnp.asarray(rng.random((seq_len, batch_size)) < 1 / EPISODE_LENGTH)
  layer = _ours(plain.weights, starts, Explicit())
  return Problem(
    sequences.with_expected(
      layer, "gru", backward, plain.weights, plain.xs, plain.dhs
    ),
    starts,
  )


def _ours(weights: Any, starts: jax.Array, adjoint: Adjoint) -> Layer:
  def apply(params, xs):
    state = gru.initial_state(params, xs.shape[1:-1])
    return unroll(gru, params, state, xs, reset=starts, adjoint=adjoint)[1]

  return Layer(weights, apply, lambda w: w)


def our_peer(name: str, adjoint: Adjoint) -> Callable[[Problem], Peer]:
  """Return the maker of our `unroll` with resets and this adjoint."""

  def make(problem: Problem) -> Peer:
    layer = _ours(problem.sequence.weights, problem.starts, adjoint)
    return sequences.make_peer(name, layer, problem.sequence)

  return make


def flax_scan(problem: Problem) -> Peer:
  """A Flax GRUCell under `linen.scan`, whose carry is reset at each start."""
  from flax import linen as nn

  class Policy(nn.Module):
    features: int

    @nn.compact
    def __call__(self, carry, inputs):
      x, start = inputs
      carry = jnp.where(start[:, None], jnp.zeros_like(carry), carry)
      return nn.GRUCell(self.features, name="cell")(carry, x)

  weights, starts = problem.sequence.weights, problem.starts
  scanned = nn.scan(
    Policy, variable_broadcast="params", split_rngs={"params": False}
  )(weights.w_h.shape[0])

  def apply(params, xs):
    zeros = jnp.zeros((xs.shape[1], weights.w_h.shape[0]), xs.dtype)
    return scanned.apply(params, zeros, (xs, starts))[1]

  def convert(w):
    return {"params": {"cell": to_linen(w)}}

  layer = Layer(convert(weights), apply, convert)
  return sequences.make_peer("flax scan", layer, problem.sequence)


def resets() -> Makers:
  """Return the makers of all peers."""
  adjoints: dict[str, Adjoint] = {
    "lstm_jax": Explicit(),
    "recompute": Explicit(residuals="recompute"),
    "autodiff": Autodiff(),
  }
  ours = {name: (our_peer(name, a), "jax") for name, a in adjoints.items()}
  return {**ours, "flax scan": (flax_scan, "flax")}
