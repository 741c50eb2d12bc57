"""Initial gate biases that fit the time over which a cell has to remember.

A unit whose forget gate is f = σ(b) keeps a share fᵈ of its memory over d time
steps. With b = log(u), f = u / (u + 1), and the memory decays over about u time
steps. Chrono initialisation draws u uniformly between 1 and T − 1 for each
unit, where T is the longest time to bridge. An input gate, where the cell has
one, gets −b, so that new inputs replace as much as is forgotten.

Reference: Tallec and Ollivier (2018), Can recurrent neural networks warp time?,
section 2, equation 16.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lstm_jax.language import LanguageParams


class GateBiases(NamedTuple):
  """Which parts of a cell's b, [num_gates·H], decide how long it remembers."""

  num_gates: int
  signs: dict[int, int]  # gate → 1 if it keeps the memory, −1 if it replaces it


LSTM = GateBiases(4, {0: -1, 1: 1})  # [i, f, g, o]
GRU = GateBiases(3, {1: 1})  # [r, z, n]; z keeps h
GATE_BIASES = {
  "lstm": LSTM,
  "layernorm_lstm": LSTM,
  "projected_lstm": LSTM,
  "peephole_lstm": LSTM,
  "mogrifier_lstm": LSTM,
  "slstm": LSTM,  # b of i scales c and n alike: it has no effect on c / n
  "coupled_lstm": GateBiases(3, {0: 1}),  # [f, g, o]
  "gru": GRU,
  "gru_reset_before": GRU,
  "min_gru": GateBiases(2, {0: -1}),  # [z, n]; here z replaces h
  "min_lstm": GateBiases(3, {0: 1, 1: -1}),  # [f, i, n]
}


def with_chrono_biases(
  params: LanguageParams, cell: str, key: jax.Array, longest: int
) -> LanguageParams:
  """Return the weights of a model with chrono initialisation of its gates.

  Args:
    params: initial weights; all layers have the same cell.
    cell: the name of this cell, one of `GATE_BIASES`.
    key: draws the time of each unit.
    longest: T, the longest time to bridge, in time steps.

  Raises:
    ValueError: the cell has no gate that keeps its memory, or T is below 2.
  """
  if cell not in GATE_BIASES:
    known = ", ".join(GATE_BIASES)
    raise ValueError(
      f"cell must have a gate that keeps its memory ({known}), got {cell}"
    )
  if longest < 2:
    raise ValueError(f"longest must be at least 2, got {longest}")
  num_gates, signs = GATE_BIASES[cell]
  layers = []
  for index, layer in enumerate(params.layers):
    b = layer.b.reshape(num_gates, -1)
    times = jax.random.uniform(
      jax.random.fold_in(key, index), b.shape[1:], b.dtype, 1, longest - 1
    )
    for gate, sign in signs.items():
      b = b.at[gate].set(sign * jnp.log(times))
    layers.append(layer._replace(b=b.reshape(layer.b.shape)))
  return params._replace(layers=tuple(layers))
