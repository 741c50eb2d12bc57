"""How far back the context of a trained model reaches: its loss and gradient.

Context length: the model reads a text in windows that begin at the zero state.
Predictions are grouped by how many tokens of their window the model has read,
and the loss of each group is averaged. The model uses a longer context as long
as that lowers the loss.

Gradient flow: ‖∂ℓ_T/∂hₜ‖ against T − t, where ℓ_T is the loss of one token at
time T. The cell's own backward pass computes it (`state_cotangents`). An LSTM
has two such norms, of h and of c, each with the other held fixed.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from experiments.analysis.states import embed, readout
from lstm_jax.cells.affine import affine
from lstm_jax.cells.cell import Cell
from lstm_jax.language import LanguageModel, LanguageParams, cross_entropy
from lstm_jax.language.evaluate import cold_nats
from lstm_jax.sequence import state_cotangents, unroll

# The text is cut into windows of W tokens many times, each time W // SHIFTS
# tokens later (at least 1), for a large W about SHIFTS times: a window has only
# one prediction for each context length.
SHIFTS = 32
# Windows whose gradients are computed at once: at 200 steps of 160 units, each
# takes 1 MB.
CHUNK = 256


def bins(window: int) -> list[int]:
  """Return the largest context length of each bin: 1, 2, 4, …, window."""
  powers = [2**k for k in range(window.bit_length()) if 2**k < window]
  return [*powers, window]


def nats_by_context(
  model: LanguageModel, params: LanguageParams, tokens: np.ndarray, window: int
) -> list[float]:
  """Return the mean loss of the predictions in each bin of context length.

  Bin k holds the predictions that have read more than bins[k − 1] tokens of
  their window, and at most bins[k].

  Args:
    model: reads every window from the zero state.
    params: its weights.
    tokens: the text, int32 [N], longer than a window.
    window: W, the longest context.

  Returns:
    Nats per token, one for each of `bins(window)`.

  Raises:
    ValueError: the text is not longer than a window.
  """
  if len(tokens) <= window:
    raise ValueError(
      f"a context of {window} needs a text of at least {window + 1} tokens, "
      f"got {len(tokens)}"
    )
  ends = bins(window)
  total, count = np.zeros(len(ends)), np.zeros(len(ends))
  # All shifts have the same number of windows, so that one program reads them.
  num_windows = max(1, (len(tokens) - window) // window)
  for shift in range(0, window, max(1, window // SHIFTS)):
    part = tokens[shift : shift + num_windows * window + 1]
    if len(part) <= num_windows * window:  # in a text below two windows
      break
    nats = cold_nats(model, params, part, window)
    index = np.searchsorted(ends, np.arange(len(nats)) % window + 1)
    total += np.bincount(index, nats, len(ends))
    count += np.bincount(index, minlength=len(ends))
  return (total / count).tolist()


def gradient_norms(
  cell: Cell, params: LanguageParams, tokens: np.ndarray, steps: int
) -> dict[str, list[float]]:
  """Return ‖∂ℓ_T/∂sₜ‖ for T − t = 0 … steps, for each field of the state s.

  The text is cut into consecutive windows of `steps` + 1 tokens. The model
  reads each from the zero state and predicts its last token. The norms are
  averaged over the windows.

  Args:
    cell: the cell of the model's one layer.
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
  windows = tokens[: count * (steps + 1)].reshape(count, steps + 1)
  chunks, size = [], min(CHUNK, count)
  for start in range(0, count, size):
    # The last chunk repeats the last window, so that all have one shape.
    rows = np.arange(start, start + size).clip(max=count - 1)
    chunks.append(_norms(cell, params, windows[rows].T)._asdict())
  means = {}
  for name in chunks[0]:
    norms = np.concatenate([chunk[name] for chunk in chunks], axis=1)
    means[name] = norms[::-1, :count].mean(axis=1, dtype=float).tolist()
  return means


@partial(jax.jit, static_argnums=0)
def _norms(cell, params, windows):
  """Return ‖∂ℓ_T/∂sₜ‖, [T + 1, B] for each field, of windows [T + 1, B]."""
  (weights,) = params.layers
  state = cell.initial_state(weights, windows.shape[1:])
  xs, targets = embed(params, windows[:-1]), windows[-1]

  def loss(state):
    logits = affine(state.h, readout(params), params.bias)
    # The sum over the batch gives each window the gradient of its own loss.
    return cross_entropy(logits, targets).sum()

  last, _ = unroll(cell, weights, state, xs)
  d_states = state_cotangents(cell, weights, state, xs, jax.grad(loss)(last))
  return jax.tree.map(norm, d_states)


def norm(d: jax.Array) -> jax.Array:
  """Return the norm ‖d‖ over the last axis, of d [..., H].

  The vector is scaled first: float32 squares of entries below 1e-19 would
  underflow.
  """
  largest = jnp.abs(d).max(axis=-1, keepdims=True)
  scaled = d / jnp.where(largest > 0, largest, 1)
  return largest[..., 0] * jnp.linalg.norm(scaled, axis=-1)
