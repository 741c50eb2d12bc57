"""The states and gates of a trained model after each token of a text.

  sₜ, gatesₜ, residualsₜ = recur(sₜ₋₁, project(xₜ))   for t = 1 … N,

layer by layer. The states are those that the cell carries. The gates come from
what `recur` saves for the backward pass:

  LSTM and its variants     i, f, g and o. A coupled LSTM has no i, since it is
                            1 − f. A Mogrifier LSTM has them among its residuals
  sLSTM                     g, o and q = log(f / i), from which i and f are
                            computed; the larger of the two is 1
  both GRUs                 r and z; the candidate n is computed again
  RNN, LRU                  none
  minGRU, minLSTM           not recorded: their local gradients are saved, with
                            z among them, but without f and i
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lstm_jax.cells import (
  coupled_lstm,
  gru,
  gru_reset_before,
  layernorm_lstm,
  lstm,
  mogrifier_lstm,
  peephole_lstm,
  projected_lstm,
  slstm,
)
from lstm_jax.cells.activations import tanh
from lstm_jax.cells.affine import affine, as_row, product
from lstm_jax.cells.cell import Cell, Params, Residuals, State
from lstm_jax.language import LanguageParams

GATES: dict[Cell, str] = {  # and candidates, in the order of pre-activations
  lstm: "ifgo",
  layernorm_lstm: "ifgo",
  projected_lstm: "ifgo",
  peephole_lstm: "ifgo",
  coupled_lstm: "fgo",
  mogrifier_lstm: "ifgo",
  slstm: "ifgo",
}
MEANINGS = {
  "h": "output",
  "c": "cell state",
  "i": "input gate",
  "f": "forget gate",
  "g": "candidate",
  "o": "output gate",
  "r": "reset gate",
  "z": "update gate",
  "n": "candidate",
  "m": "stabiliser",
}


class LayerTrace(NamedTuple):
  """What one layer computes on a text of N tokens."""

  params: Params
  xs: jax.Array  # its inputs, [N, D]
  hs_before: jax.Array  # h before each step, [N, H]; if projected, [N, P]
  states: State  # after each step, [N, H] each; if projected, h is [N, P]
  # [N, K], the second result of `recur`: gates, or local gradients such as
  # ∂h'/∂a. In the letters of the cells' equations: q, ∂p/∂a_f, g and o for an
  # sLSTM, the input x for a Mogrifier LSTM, the pre-activation a for an LRU.
  gates: jax.Array
  residuals: Residuals  # what else the backward pass needs, [N, ...]


@partial(jax.jit, static_argnums=0)
def trace_layers(
  cell: Cell, params: LanguageParams, tokens: jax.Array
) -> tuple[tuple[LayerTrace, ...], jax.Array]:
  """Run a language model on a text, from the zero state, and record each layer.

  Products are in the dtype of the weights, whatever the model's compute_dtype.

  Args:
    cell: the cell of every layer.
    params: the model's weights.
    tokens: the text, integers [N].

  Returns:
    (layers, logits): the traces, lowest layer first, and the logits of the next
    token after each token, [N, V].
  """
  # As in `language.model`, which does not return the states of every layer.
  xs = embed(params, tokens)
  layers = []
  for weights in params.layers:
    layers.append(_trace_layer(cell, weights, xs))
    xs = layers[-1].states.h
  return tuple(layers), affine(xs, readout(params), params.bias)


def embed(params: LanguageParams, tokens: jax.typing.ArrayLike) -> jax.Array:
  """Return the inputs of the lowest layer, [..., E], for tokens [...]."""
  xs = params.embedding[tokens]
  if params.readout is None:  # tied: inputs are scaled by √E
    xs = xs * jnp.asarray(xs.shape[-1] ** 0.5, xs.dtype)
  return xs


def readout(params: LanguageParams) -> jax.Array:
  """Return the readout matrix of a model, tied or not, [H, V]."""
  return params.embedding.T if params.readout is None else params.readout


def signals(cell: Cell, layer: LayerTrace) -> dict[str, jax.Array]:
  """Return the states and gates of a layer by their letters.

  Each is [N, H]; h of a projected LSTM is [N, P].
  """
  values = layer.states._asdict()
  if cell in GATES:
    names = GATES[cell]
    gates = jnp.split(_gates(cell, layer), len(names), axis=-1)
    values |= dict(zip(names, gates, strict=True))
  elif cell in CANDIDATES:
    values |= {
      "r": layer.residuals.r,
      "z": layer.residuals.z,
      "n": CANDIDATES[cell](layer),
    }
  return values


def meaning(cell: Cell, letter: str) -> str:
  """Return what a signal of a cell is, in words."""
  if (cell, letter) == (slstm, "n"):
    return "normaliser"
  # In other cells, only h and c are sure to have their usual meaning.
  known = cell in GATES or cell in CANDIDATES or letter in "hc"
  return MEANINGS.get(letter, "state") if known else "state"


def is_gate(cell: Cell, letter: str) -> bool:
  """Return whether a signal of a cell is a gate, in [0, 1]."""
  gates = "rz" if cell in CANDIDATES else GATES.get(cell, "")
  return letter in gates and letter != "g"


def _gates(cell: Cell, layer: LayerTrace) -> jax.Array:
  """Return the gates and the candidate of a cell in GATES, [N, G·H]."""
  if cell is mogrifier_lstm:
    return layer.residuals.gates
  if cell is slstm:
    q, _, g, o = jnp.split(layer.gates, 4, axis=-1)
    return jnp.concatenate([*slstm.i_and_f(q), g, o], axis=-1)
  return layer.gates


def _trace_layer(cell: Cell, weights: Params, xs: jax.Array) -> LayerTrace:
  def body(state, ax):
    after, gates, residuals = cell.recur(weights, state, ax)
    return after, (state.h, after, gates, residuals)

  zero_state = cell.initial_state(weights)
  _, recorded = lax.scan(body, zero_state, cell.project(weights, xs))
  return LayerTrace(weights, xs, *recorded)


def _gru_candidate(layer: LayerTrace) -> jax.Array:
  """Return a GRU's candidate n, [N, H], by the equations of `gru`."""
  xn, w_n = _candidate_parts(gru, layer)
  un = product(layer.hs_before, w_n)
  return tanh(xn + layer.residuals.r * (un + as_row(layer.params.b_n, un)))


def _reset_before_candidate(layer: LayerTrace) -> jax.Array:
  """Return the candidate n of `gru_reset_before`, [N, H]."""
  xn, w_n = _candidate_parts(gru_reset_before, layer)
  return tanh(xn + product(layer.residuals.r * layer.hs_before, w_n))


def _candidate_parts(
  cell: Cell, layer: LayerTrace
) -> tuple[jax.Array, jax.Array]:
  """Return what n gets from the input, [N, H], and n's columns of W_h, [H, H].

  The columns of r and z come before those of n.
  """
  params, split = layer.params, 2 * len(layer.params.w_h)
  xn = cell.project(params, layer.xs)[:, split:]
  return xn + as_row(params.b[split:], xn), params.w_h[:, split:]


CANDIDATES: dict[Cell, Callable[[LayerTrace], jax.Array]] = {
  gru: _gru_candidate,
  gru_reset_before: _reset_before_candidate,
}
