"""A recurrent policy's sequence: a GRU over episodes that begin inside it.

This project's `unroll(..., reset=)` against what reinforcement-learning code
writes on Flax: a cell under `linen.scan` that replaces the carry by zeros where
an episode begins.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.peers import sequences
from experiments.benchmarks.peers.layers import Layer
from experiments.benchmarks.peers.proof import Peer
from lstm_jax import gru, unroll
from lstm_jax.interop.flax import to_linen

EPISODE = 32  # steps, on average


class Problem(NamedTuple):
  """One layer on random inputs, and where episodes begin."""

  sequence: sequences.Problem
  starts: jax.Array  # bool [T, B]


def make_problem(
  backward: bool, hidden: int, steps: int, batch: int
) -> Problem:
  """Return a GRU of those sizes, and what everyone must compute."""
  plain = sequences.make_problem("gru", backward, hidden, steps, batch)
  draw = np.random.default_rng(0)
  starts = jnp.asarray(draw.random((steps, batch)) < 1 / EPISODE)
  layer = _ours(plain.weights, starts)
  return Problem(
    sequences.solved(
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
  """This project's `unroll` with resets."""
  layer = _ours(problem.sequence.weights, problem.starts)
  return sequences.peer_of("lstm_jax", layer, problem.sequence)


def recompute(problem: Problem) -> Peer:
  """This project's, with the gates rebuilt from the states."""
  layer = _ours(problem.sequence.weights, problem.starts, residuals="recompute")
  return sequences.peer_of("recompute", layer, problem.sequence)


def autodiff(problem: Problem) -> Peer:
  """The same forward as ours, its gradient left to JAX."""
  layer = _ours(problem.sequence.weights, problem.starts, vjp="autodiff")
  return sequences.peer_of("autodiff", layer, problem.sequence)


def flax_scan(problem: Problem) -> Peer:
  """A Flax GRUCell scanned by hand, with the carry replaced at each start."""
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

  def port(w):
    return {"params": {"cell": to_linen(w)}}

  layer = Layer(port(weights), apply, port)
  return sequences.peer_of("flax scan", layer, problem.sequence)


def resets() -> dict[str, tuple[Callable[[Problem], Peer], str]]:
  """Return every program and the package it needs, ours first."""
  return {
    "lstm_jax": (lstm_jax, "jax"),
    "recompute": (recompute, "jax"),
    "autodiff": (autodiff, "jax"),
    "flax scan": (flax_scan, "flax"),
  }
