"""How far back the context of a trained model reaches: its loss and gradient.

Context length: the model reads a text in windows that begin at the zero state.
Predictions are grouped by how many tokens of their window the model has read,
and the loss of each group is averaged. The model uses a longer context as long
as that lowers the loss.

Gradient flow: ‖∂ℓ_T/∂hₜ‖ against T − t, where ℓ_T is the loss of one token at
time T. The cell's own backward pass computes it. An LSTM has two such norms, of
h and of c, each with the other held fixed. `gradient_norms` averages them over
windows of a text, at the last token of each. `gradient_paths` computes them for
every token t of a text and every layer l: with ℓₜ = log p(xₜ₊₁ | x₀ … xₜ),

  dsˡ[t, k] = ∂ℓₜ/∂sˡₜ₋ₖ   for k = 0 … W − 1,

how much a small change of an earlier state changes the prediction at t, through
the later time steps of its layer and through the layers above, which read h.
One scan over k computes them for many t in parallel: for the prediction at t,
its step k is the backward pass of the time step t − k. The norms over k are the
*path* of the gradient from t back into the text.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.analysis.states import LayerTrace, embed, readout
from lstm_jax.cells.affine import affine
from lstm_jax.cells.cell import Cell, State
from lstm_jax.cells.precision import upcast
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


# Predictions computed at once: few enough for the memory, and enough for matrix
# products at full speed.
PREDICTIONS = 1024


def gradient_paths(
  cell: Cell,
  params: LanguageParams,
  layers: tuple[LayerTrace, ...],
  tokens: np.ndarray,
  window: int,
) -> tuple[State, ...]:
  """Return ‖∂ log p(xₜ₊₁)/∂sˡₜ₋ₖ‖ for every t, k, layer and field of the state.

  Args:
    cell: the cell of every layer.
    params: the model's weights.
    layers: the layers that `trace_layers` returns for these tokens.
    tokens: the text, integers [N], N ≥ 1.
    window: W ≥ 1.

  Returns:
    For each layer a state of arrays [N, W], indexed [t, k]. Entries with k > t,
    before the text, are 0, and so is the last row, which predicts nothing.
  """
  d_top = _d_top(params, layers[-1].states.h[:-1], tokens[1:])
  d_top = jnp.pad(d_top, ((0, 1), (0, 0)))
  chunks, size = [], min(PREDICTIONS, len(tokens))
  for start in range(0, len(tokens), size):
    # The last chunk repeats the last t, so that all chunks have one shape and
    # one compiled program.
    times = np.arange(start, start + size).clip(max=len(tokens) - 1)
    norms = _path_norms(cell, window, layers, d_top, times)
    chunks.append(jax.tree.map(np.asarray, norms))
  return jax.tree.map(lambda *x: np.concatenate(x)[: len(tokens)], *chunks)


@jax.jit
def _d_top(
  params: LanguageParams, hs: jax.Array, targets: jax.Array
) -> jax.Array:
  """Return ∂ log p(target)/∂h of the top layer's outputs hs, [N − 1, H]."""

  def log_p(hs):
    logits = affine(hs, readout(params), params.bias)
    # The sum gives each row the gradient of its own prediction.
    return -cross_entropy(logits, targets).sum()

  return upcast(jax.grad(log_p)(hs))


@partial(jax.jit, static_argnums=(0, 1))
def _path_norms(
  cell: Cell,
  window: int,
  layers: tuple[LayerTrace, ...],
  d_top: jax.Array,
  times: jax.Array,
) -> tuple[State, ...]:
  """Return each layer's norms [M, W], of the predictions at times t [M]."""

  def body(d_states, k):
    index = (times - k).clip(0)  # the time steps t − k
    d_states_before, norms, dx_above = [], [], None
    for layer, d in zip(reversed(layers), reversed(d_states), strict=True):
      xs, h, gates, residuals = jax.tree.map(
        lambda x: x[index],
        (layer.xs, layer.hs_before, layer.gates, layer.residuals),
      )
      if dx_above is not None:
        d = d._replace(h=d.h + dx_above)
      norms.append(jax.tree.map(norm, d))
      # What else it returns is for the gradients of weights and inputs.
      d_before, *das = cell.recur_backward(layer.params, gates, residuals, d)
      # Only dx is used: XLA drops the unused gradients of the weights.
      _, dx_above = cell.parameter_gradients(
        layer.params, xs, h, residuals, *das
      )
      d_states_before.append(d_before)
    in_text = times >= k
    norms = jax.tree.map(lambda n: jnp.where(in_text, n, 0), norms[::-1])
    return tuple(d_states_before[::-1]), tuple(norms)

  states = [cell.initial_state(layer.params, times.shape) for layer in layers]
  d_states = [jax.tree.map(jnp.zeros_like, upcast(s)) for s in states]
  d_states[-1] = d_states[-1]._replace(h=d_top[times])
  _, norms = lax.scan(body, tuple(d_states), jnp.arange(window))
  return jax.tree.map(lambda n: n.T, norms)
