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
from experiments.benchmarks.peers.proof import Peer
from lstm_jax import Autodiff, Explicit, gru, unroll
from lstm_jax.interop.flax import to_linen

EPISODE_LENGTH = 32  # time steps, on average


class Problem(NamedTuple):
  """A layer with random inputs, and where episodes begin."""

  sequence: sequences.Problem
  starts: jax.Array  # bool [T, B]


def make_problem(
  backward: bool, hidden_size: int, seq_len: int, batch_size: int
) -> Problem:
  """Return a GRU of these sizes, with its expected results."""
  plain = sequences.make_problem(
    "gru", backward, hidden_size, seq_len, batch_size
  )
  rng = np.random.default_rng(0)
  starts = jnp.asarray(rng.random((seq_len, batch_size)) < 1 / EPISODE_LENGTH)
  layer = _ours(plain.weights, starts)
  return Problem(
    sequences.with_expected(
      layer, "gru", backward, plain.weights, plain.xs, plain.dhs
    ),
    starts,
  )


def _ours(weights: Any, starts: jax.Array, **options: Any) -> Layer:
  def apply(params, xs):
    state = gru.initial_state(params, xs.shape[1:-1])
    return unroll(gru, params, state, xs, reset=starts, **options)[1]

  return Layer(weights, apply, lambda w: w)


def lstm_jax(problem: Problem) -> Peer:
  """Our `unroll` with resets."""
  layer = _ours(problem.sequence.weights, problem.starts)
  return sequences.make_peer("lstm_jax", layer, problem.sequence)


def recompute(problem: Problem) -> Peer:
  """Our `unroll`, which recomputes the gates from the states."""
  adjoint = Explicit(residuals="recompute")
  layer = _ours(problem.sequence.weights, problem.starts, adjoint=adjoint)
  return sequences.make_peer("recompute", layer, problem.sequence)


def autodiff(problem: Problem) -> Peer:
  """The same forward as ours, differentiated by JAX."""
  layer = _ours(problem.sequence.weights, problem.starts, adjoint=Autodiff())
  return sequences.make_peer("autodiff", layer, problem.sequence)


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


def resets() -> dict[str, tuple[Callable[[Problem], Peer], str]]:
  """Return each peer's maker and required package, ours first."""
  return {
    "lstm_jax": (lstm_jax, "jax"),
    "recompute": (recompute, "jax"),
    "autodiff": (autodiff, "jax"),
    "flax scan": (flax_scan, "flax"),
  }
