"""How far back a trained model reaches: in its loss, and in its gradient.

Context length: the held-out text is read in windows that begin at the zero
state, and the nats of each prediction are gathered by how many characters the
model has seen. Where more context no longer lowers them, it is not used.

Gradient flow: ‖∂ℓ_T/∂hₜ‖ against T − t, for the loss ℓ_T of one character T,
from the cell's own backward (`lstm_jax.sequence.flow`). An LSTM has two such
norms, of h and of c; each is taken with the other held fixed.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax.cells.cell import Cell
from lstm_jax.language import LanguageModel, LanguageParams, cross_entropy
from lstm_jax.language.evaluate import cold_nats
from lstm_jax.sequence import state_cotangents, unroll

SHIFTS = 32  # of the windows: more predictions in the bins of short contexts


def bins(window: int) -> list[int]:
  """Return the bins' last context lengths: 1, 2, 4 … and the window's own."""
  powers = [2**k for k in range(window.bit_length()) if 2**k < window]
  return [*powers, window]


def nats_by_context(
  model: LanguageModel, params: LanguageParams, tokens: np.ndarray, window: int
) -> list[float]:
  """Return the mean nats of predictions in each bin of context length.

  Bin k has the predictions that see more than bins[k − 1] characters of their
  window and at most bins[k].

  Args:
    model: reads every window from the zero state.
    params: its weights.
    tokens: the text, int32 [N], longer than a window.
    window: W, the longest context.

  Raises:
    ValueError: the text has no whole window.
  """
  if len(tokens) <= window:
    raise ValueError(
      f"a context of {window} needs a text of at least {window + 1} tokens, "
      f"got {len(tokens)}"
    )
  last = bins(window)
  total, count = np.zeros(len(last)), np.zeros(len(last))
  # As many windows at every shift: one program reads them all.
  num_windows = max(1, (len(tokens) - window) // window)
  for shift in range(0, window, max(1, window // SHIFTS)):
    part = tokens[shift : shift + num_windows * window + 1]
    if len(part) <= num_windows * window:
      break
    nats = cold_nats(model, params, part, window)
    where = np.searchsorted(last, np.arange(len(nats)) % window + 1)
    total += np.bincount(where, nats, len(last))
    count += np.bincount(where, minlength=len(last))
  return (total / count).tolist()


def gradient_norms(
  cell: Cell, params: LanguageParams, tokens: np.ndarray, steps: int
) -> dict[str, list[float]]:
  """Return ‖∂ℓ_T/∂sₜ‖ of each field of the state, for T − t = 0 … steps.

  The mean over windows of `steps` + 1 characters that follow one another, of
  which the last is predicted, each read from the zero state.

  Args:
    cell: of a model of one layer.
    params: the model's weights.
    tokens: the text, int32 [N].
    steps: T ≥ 1.

  Raises:
    ValueError: the model has several layers, or the text has no whole window.
  """
  if len(params.layers) != 1:
    raise ValueError(f"one layer is needed, got {len(params.layers)}")
  count = len(tokens) // (steps + 1)
  if not count:
    raise ValueError(
      f"{steps} steps need a text of at least {steps + 1} tokens, "
      f"got {len(tokens)}"
    )
  windows = tokens[: count * (steps + 1)].reshape(count, steps + 1).T
  norms = _norms(cell, params, windows)
  return {
    name: np.asarray(norm, float)[::-1].tolist()
    for name, norm in norms._asdict().items()
  }


@partial(jax.jit, static_argnums=0)
def _norms(cell, params, windows):
  (weights,) = params.layers
  state = cell.initial_state(weights, windows.shape[1:])
  xs, targets = params.embedding[windows[:-1]], windows[-1]

  def loss(last):
    logits = last.h @ params.readout + params.bias[None, :]
    return cross_entropy(logits, targets).sum()  # each row is its own loss

  last, _ = unroll(cell, weights, state, xs)
  d_states = state_cotangents(cell, weights, state, xs, jax.grad(loss)(last))
  return jax.tree.map(lambda d: norm(d).mean(axis=-1), d_states)


def norm(d: jax.Array) -> jax.Array:
  """Return ‖d‖ of d [..., H], which float32 squares would lose below 1e-19."""
  largest = jnp.abs(d).max(axis=-1, keepdims=True)
  unit = d / jnp.where(largest > 0, largest, 1)
  return largest[..., 0] * jnp.linalg.norm(unit, axis=-1)
