"""What a trained model holds after each character: states and gates, by name.

  sₜ, kₜ = recur(sₜ₋₁, xₜ W_x)   for t = 1 … N, layer by layer

The states are the cell's own. The gates are what it keeps for its backward,
which is the gates themselves for every LSTM. A GRU keeps r and z, and of the
candidate n only 1 − n², so n is computed anew. A plain RNN has none.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lstm_jax.cells import (
  coupled_lstm,
  gru,
  layernorm_lstm,
  lstm,
  peephole_lstm,
  projected_lstm,
)
from lstm_jax.cells.activations import tanh
from lstm_jax.cells.affine import affine, as_row, product
from lstm_jax.cells.cell import Cell, Params, State, Tape
from lstm_jax.language import LanguageParams

KEPT: dict[Any, str] = {  # the gates that a cell keeps, in their order
  lstm: "ifgo",
  layernorm_lstm: "ifgo",
  projected_lstm: "ifgo",
  peephole_lstm: "ifgo",
  coupled_lstm: "fgo",
}
MEANING = {
  "h": "output",
  "c": "memory",
  "i": "input gate",
  "f": "forget gate",
  "g": "candidate",
  "o": "output gate",
  "r": "reset gate",
  "z": "update gate",
  "n": "candidate",
}
SIGNED = "hcgn"  # the others are of a sigmoid, in [0, 1]


class Layer(NamedTuple):
  """A layer that has read a text of N tokens."""

  params: Params
  xs: jax.Array  # its inputs, [N, D]
  before: jax.Array  # h before each step, [N, H]
  states: State  # after each step, [N, H]
  kept: jax.Array  # what each step keeps for its backward, [N, G·H]
  tape: Tape  # and what else, [N, ...]


@partial(jax.jit, static_argnums=0)
def read(
  cell: Cell, params: LanguageParams, tokens: jax.Array
) -> tuple[tuple[Layer, ...], jax.Array]:
  """Read a text from the zero state and keep everything.

  Args:
    cell: of every layer.
    params: the model's weights.
    tokens: the text, integers [N].

  Returns:
    (layers, logits): the lowest layer first, and the next token's logits after
    each, [N, V].
  """
  xs = params.embedding[tokens]
  if params.readout is None:  # tied: the rows are √E times as large
    xs = xs * jnp.asarray(xs.shape[-1] ** 0.5, xs.dtype)
  layers = []
  for weights in params.layers:
    layers.append(_layer(cell, weights, xs))
    xs = layers[-1].states.h
  return tuple(layers), affine(xs, readout(params), params.bias)


def readout(params: LanguageParams) -> jax.Array:
  """Return the weights of the readout, [H, V]."""
  return params.embedding.T if params.readout is None else params.readout


def signals(cell: Cell, layer: Layer) -> dict[str, jax.Array]:
  """Return the states and gates of a layer by their letters, each [N, H]."""
  found = layer.states._asdict()
  if cell in KEPT:
    names = KEPT[cell]
    gates = jnp.split(layer.kept, len(names), axis=-1)
    found |= dict(zip(names, gates, strict=True))
  elif cell is gru:
    found |= {
      "r": layer.tape.n_by_s,
      "z": layer.tape.h_by_h,
      "n": _candidate(layer),
    }
  return found


def _layer(cell: Cell, weights: Params, xs: jax.Array) -> Layer:
  def body(state, ax):
    after, kept, tape = cell.recur(weights, state, ax)
    return after, (state.h, after, kept, tape)

  start = cell.initial_state(weights)
  _, found = lax.scan(body, start, cell.project(weights, xs))
  return Layer(weights, xs, *found)


def _candidate(layer: Layer) -> jax.Array:
  """Return a GRU's n = tanh(xₙ + r ⊙ (h Uₙ + bₙ)), [N, H]."""
  params, split = layer.params, -len(layer.params.b_n)
  b, w_h = params.b[split:], params.w_h[:, split:]
  xn = gru.project(params, layer.xs)[:, split:]
  un = product(layer.before, w_h)
  s = un + as_row(params.b_n, un)
  return tanh(xn + as_row(b, xn) + layer.tape.n_by_s * s)
