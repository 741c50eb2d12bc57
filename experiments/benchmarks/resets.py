"""The GRU of a recurrent policy: a layer with episodes that begin inside.

Our `unroll(..., reset=)` is compared with the usual code of reinforcement
learning in Flax: a cell under `linen.scan` that sets the carry to zero where an
episode begins. The starts of the episodes are a constant of each program, so
XLA may compute with them while it compiles. The GPU benchmark uses `flax_layer`
and `draw_starts`, and `experiments.policies` uses `scanned_rnn`, also with
other cells.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import sequences
from experiments.benchmarks.layers import (
  FLAX_CELLS,
  Layer,
  ours,
  zero_at_starts,
)
from experiments.benchmarks.proof import Makers, Peer
from lstm_jax import Autodiff, Explicit
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
  """Return the problem of a GRU, with the results of our `unroll` as expected.

  Args:
    backward: True to time all gradients, False to time the outputs alone.
    hidden_size: H, also the size of the inputs.
    seq_len: T, in time steps.
    batch_size: B.
  """
  sizes = hidden_size, seq_len, batch_size
  weights, xs, dhs = sequences.draw_layer("gru", *sizes)
  starts = draw_starts(np.random.default_rng(0), seq_len, batch_size)
  layer = ours("gru", weights, reset=starts)
  return Problem(
    sequences.with_expected(layer, "gru", backward, weights, xs, dhs), starts
  )


def draw_starts(
  rng: np.random.Generator, seq_len: int, batch_size: int
) -> jax.Array:
  """Return where episodes begin, bool [T, B]."""
  return jnp.asarray(rng.random((seq_len, batch_size)) < 1 / EPISODE_LENGTH)


def our_peer(name: str, adjoint: Adjoint) -> Callable[[Problem], Peer]:
  """Return the maker of the peer of our `unroll` with this adjoint."""

  def make(problem: Problem) -> Peer:
    weights = problem.sequence.weights
    layer = ours("gru", weights, adjoint, reset=problem.starts)
    return sequences.make_peer(name, layer, problem.sequence)

  return make


def scanned_rnn(cell: str, dtype: Any = None) -> Any:
  """Return a class ScannedRNN of Flax's cell, as agents in Flax define it.

  Args:
    cell: lstm, gru or rnn.
    dtype: in which Flax computes; None for the dtype of weights and inputs.
  """
  from flax import linen as nn

  cell_class = getattr(nn, FLAX_CELLS[cell])

  class ScannedRNN(nn.Module):
    @partial(nn.scan, variable_broadcast="params", split_rngs={"params": False})
    @nn.compact
    def __call__(self, carry, x):
      ins, resets = x
      carry = zero_at_starts(carry, resets)
      size = jax.tree.leaves(carry)[0].shape[-1]
      return cell_class(size, dtype=dtype)(carry, ins)

    @staticmethod
    def initialize_carry(batch_size, hidden_size):
      module = cell_class(hidden_size, parent=None)
      sizes = batch_size, hidden_size
      return module.initialize_carry(jax.random.key(0), sizes)

  return ScannedRNN


def flax_layer(
  cell: str, weights: Any, starts: jax.Array, dtype: Any = None
) -> Layer:
  """Return a layer: a Flax cell under `linen.scan`, with resets of its carry.

  Args:
    cell: lstm, gru or rnn.
    weights: ours.
    starts: where the carry is set to zero, bool [T, B].
    dtype: in which Flax computes; None for the dtype of weights and inputs.
  """
  scanned = scanned_rnn(cell, dtype)()
  size = weights.w_h.shape[0]

  def apply(params, xs):
    zeros = jnp.zeros((xs.shape[1], size), dtype or xs.dtype)
    carry = (zeros, zeros) if cell == "lstm" else zeros
    return scanned.apply(params, carry, (xs, starts))[1]

  def convert(w):
    return {"params": {f"{FLAX_CELLS[cell]}_0": to_linen(w)}}

  return Layer(convert(weights), apply, convert)


def flax_scan(problem: Problem) -> Peer:
  """Return the peer of a Flax GRUCell under `linen.scan`, in float32."""
  weights = problem.sequence.weights
  layer = flax_layer("gru", weights, problem.starts)
  return sequences.make_peer("flax scan", layer, problem.sequence)


def reset_peers() -> Makers:
  """Return the makers of all peers."""
  adjoints: dict[str, Adjoint] = {
    "lstm_jax": Explicit(),
    # The forward saves states only; the backward computes the gates again.
    "recompute": Explicit(residuals="recompute"),
    "autodiff": Autodiff(),
  }
  peers = {name: (our_peer(name, a), "jax") for name, a in adjoints.items()}
  return {**peers, "flax scan": (flax_scan, "flax")}
