"""The path of a prediction's gradient back through time and down the layers.

For ℓₜ = log p(xₜ₊₁ | x₁ … xₜ) of every t at once, with sˡ the state of layer l,

  dsˡₜ₋ₖ = ∂ℓₜ/∂sˡₜ₋ₖ   for k = 0 … W − 1

is what a small change of that state would do to the prediction: a change that
goes on in time, and up to the layer above, which reads h. The gradient is the
cell's own backward. One scan goes over k, with all t side by side: step k of
prediction t undoes step t − k of the text.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.analysis.context import norm
from experiments.analysis.states import Layer, readout
from lstm_jax.cells.affine import affine
from lstm_jax.cells.cell import Cell, State
from lstm_jax.cells.precision import wide
from lstm_jax.language import LanguageParams, cross_entropy

AT_ONCE = 1024  # predictions: bounds the memory, and fills a product


def gradient_paths(
  cell: Cell,
  params: LanguageParams,
  layers: tuple[Layer, ...],
  tokens: np.ndarray,
  window: int,
) -> tuple[State, ...]:
  """Return ‖∂ log p(xₜ₊₁)/∂sˡₜ₋ₖ‖ of every t, of each layer's fields.

  Args:
    cell: of every layer.
    params: the model's weights.
    layers: what `signals.read` returns for these tokens.
    tokens: the text, integers [N].
    window: W ≥ 1.

  Returns:
    For each layer a state of arrays [N, W]: row t, column k. They are 0 where
    t < k, which is before the text, and for t = N, after which there is none.
  """
  d_top = _d_top(params, layers[-1].states.h[:-1], tokens[1:])
  d_top = jnp.pad(d_top, ((0, 1), (0, 0)))  # the last has no prediction
  found, at_once = [], min(AT_ONCE, len(tokens))
  for start in range(0, len(tokens), at_once):
    # One shape, and so one program: the last place is taken again and again.
    places = np.arange(start, start + at_once).clip(max=len(tokens) - 1)
    norms = _norms(cell, window, layers, d_top, places)
    found.append(jax.tree.map(np.asarray, norms))
  return jax.tree.map(lambda *x: np.concatenate(x)[: len(tokens)], *found)


@jax.jit
def _d_top(
  params: LanguageParams, hs: jax.Array, targets: jax.Array
) -> jax.Array:
  """Return ∂ log p(target)/∂h, [N, H], through the readout alone."""

  def log_p(hs):
    logits = affine(hs, readout(params), params.bias)
    return -cross_entropy(logits, targets).sum()  # each row is its own

  return wide(jax.grad(log_p)(hs))


@partial(jax.jit, static_argnums=(0, 1))
def _norms(
  cell: Cell,
  window: int,
  layers: tuple[Layer, ...],
  d_top: jax.Array,
  places: jax.Array,
) -> tuple[State, ...]:
  """Return the norms of some predictions, each [M, W], given their t [M]."""

  def body(d_states, back):
    here = (places - back).clip(0)
    d_before, norms, from_above = [], [], None
    for layer, d in zip(reversed(layers), reversed(d_states), strict=True):
      xs, h, kept, tape = jax.tree.map(
        lambda x: x[here], (layer.xs, layer.before, layer.kept, layer.tape)
      )
      if from_above is not None:
        d = d._replace(h=d.h + from_above)
      norms.append(jax.tree.map(norm, d))
      before, *das = cell.recur_backward(layer.params, kept, tape, d)
      # Of all weights' gradients only the input's is read, so only it is made.
      _, from_above = cell.parameter_gradients(layer.params, xs, h, tape, *das)
      d_before.append(before)
    inside = places >= back
    norms = jax.tree.map(lambda n: jnp.where(inside, n, 0), norms[::-1])
    return tuple(d_before[::-1]), tuple(norms)

  zeros = [
    wide(cell.initial_state(layer.params, places.shape)) for layer in layers
  ]
  zeros[-1] = zeros[-1]._replace(h=d_top[places])
  _, norms = lax.scan(body, tuple(zeros), jnp.arange(window))
  return jax.tree.map(lambda n: n.T, norms)
