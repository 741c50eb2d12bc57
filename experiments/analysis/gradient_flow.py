"""The gradient of each prediction with respect to earlier states.

Let ℓₜ = log p(xₜ₊₁ | x₀ … xₜ) be the log-likelihood of the token after token t,
and sˡₜ the state of layer l after token t. This module computes, for every t,

  dsˡ[t, k] = ∂ℓₜ/∂sˡₜ₋ₖ   for k = 0 … W − 1:

how much a small change of an earlier state changes the prediction at t. The
fields of a state, such as h and c, are changed one at a time, the others held
fixed. The change acts through the later time steps of its layer, and through
the layers above, which read h. The gradients come from the cell's own backward
pass. One scan over k computes them for many t in parallel: for the prediction
at t, its step k is the backward pass of the time step t − k. The norms of the
gradients over k are the *path* of the gradient from t back into the text.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.analysis.context import norm
from experiments.analysis.states import LayerTrace, readout
from lstm_jax.cells.affine import affine
from lstm_jax.cells.cell import Cell, State
from lstm_jax.cells.precision import upcast
from lstm_jax.language import LanguageParams, cross_entropy

# Predictions computed at once: few enough for the memory, and enough for matrix
# products at full speed.
CHUNK = 1024


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
  chunks, size = [], min(CHUNK, len(tokens))
  for start in range(0, len(tokens), size):
    # The last chunk repeats the last t, so that all chunks have one shape and
    # one compiled program.
    times = np.arange(start, start + size).clip(max=len(tokens) - 1)
    norms = _norms(cell, window, layers, d_top, times)
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
def _norms(
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
