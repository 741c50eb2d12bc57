"""One recurrent layer in each JAX library, used as its documentation shows.

Each function in LAYERS takes the name of a cell and our weights, and returns a
`Layer`: the library's weights, the layer as a function of them, and the
conversion of our gradients to the library's. It raises `Unsupported` where the
library has no such cell, or cannot be used here.
"""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.benchmarks.proof import Unsupported
from experiments.trainer.config import CELLS
from lstm_jax.interop.cudnn import to_cudnn
from lstm_jax.interop.equinox import to_equinox
from lstm_jax.interop.flax import to_linen, to_nnx
from lstm_jax.interop.haiku import to_haiku
from lstm_jax.interop.keras import to_keras
from lstm_jax.sequence import Adjoint, Autodiff, Explicit, unroll

FLAX_CELLS = {
  "lstm": "OptimizedLSTMCell",
  "gru": "GRUCell",
  "rnn": "SimpleCell",
}


class Layer(NamedTuple):
  """A library's layer with our weights."""

  params: Any
  apply: Callable[[Any, jax.Array], jax.Array]  # (params, xs [T, B, D]) -> hs
  convert: Callable[[Any], Any]  # gradients of our weights -> of the library's


def ours(
  cell: str, weights: Any, adjoint: Adjoint = Explicit(), **options: Any
) -> Layer:
  """Return our `unroll` with these options as a layer."""
  module = CELLS[cell]

  def apply(params, xs):
    state = module.initial_state(params, xs.shape[1:-1])
    return unroll(module, params, state, xs, adjoint=adjoint, **options)[1]

  return Layer(weights, apply, lambda w: w)


def autodiff(cell: str, weights: Any) -> Layer:
  """Return the same forward as ours, differentiated by JAX."""
  return ours(cell, weights, adjoint=Autodiff())


def flax_linen(cell: str, weights: Any) -> Layer:
  """Return Flax linen's RNN over one of its cells."""
  from flax import linen as nn

  cell_class = getattr(nn, FLAX_CELLS[cell])
  layer = nn.RNN(cell_class(weights.w_h.shape[0]), time_major=True)

  def convert(w):
    return {"params": {"cell": to_linen(w)}}

  def apply(params: Any, xs: jax.Array) -> Any:
    return layer.apply(params, xs)

  return Layer(convert(weights), apply, convert)


def flax_nnx(cell: str, weights: Any) -> Layer:
  """Return Flax nnx's RNN over one of its cells."""
  from flax import nnx

  cell_class = getattr(nnx, FLAX_CELLS[cell])
  sizes = weights.w_x.shape[0], weights.w_h.shape[0]
  layer = nnx.RNN(cell_class(*sizes, rngs=nnx.Rngs(0)), time_major=True)
  graph, _, other = nnx.split(layer, nnx.Param, ...)  # type: ignore[misc]

  def convert(w):
    if cell == "gru":  # nnx's has no b_n: ours is 0; its gradient is left out
      w = w._replace(b_n=jnp.zeros_like(w.b_n))
    to_nnx(w, layer.cell)
    # A copy, since the next call of `convert` overwrites the layer's arrays.
    return jax.tree.map(lambda x: x, nnx.state(layer, nnx.Param))

  def apply(params, xs):
    zeros = jnp.zeros((*xs.shape[1:-1], sizes[1]), xs.dtype)
    carry = (zeros, zeros) if cell == "lstm" else zeros
    return nnx.merge(graph, params, other)(xs, initial_carry=carry)

  return Layer(convert(weights), apply, convert)


def haiku(cell: str, weights: Any) -> Layer:
  """Return Haiku's LSTM; its GRU and RNN have other equations."""
  import haiku as hk

  if cell != "lstm":
    raise Unsupported(
      "its GRU applies the reset gate before the product"
      if cell == "gru"
      else "its VanillaRNN uses a relu"
    )

  @hk.without_apply_rng
  @hk.transform
  def layer(xs):
    core = hk.LSTM(weights.w_h.shape[0])
    return hk.dynamic_unroll(core, xs, core.initial_state(xs.shape[1]))[0]

  # w holds gradients, which the forget bias of hk.LSTM does not shift.
  def convert(w):
    return to_haiku(w, forget_bias=0)

  return Layer(to_haiku(weights), layer.apply, convert)


def equinox(cell: str, weights: Any, starts: jax.Array | None = None) -> Layer:
  """Return a scan of Equinox's LSTMCell or GRUCell, vmapped over the batch.

  Args:
    cell: lstm, gru or rnn.
    weights: ours.
    starts: where the state is set to zero, bool [T, B]; None for nowhere.

  Raises:
    Unsupported: Equinox does not have the cell.
  """
  if cell == "rnn":
    raise Unsupported("it has no plain RNN cell")
  size = weights.w_h.shape[0]

  def apply(params, xs):
    step = jax.vmap(params)

    def body(state, inputs):
      x, start = inputs
      if start is not None:
        state = zero_at_starts(state, start)
      state = step(x, state)
      return state, state[0] if cell == "lstm" else state

    zeros = jnp.zeros((xs.shape[1], size), xs.dtype)
    state = (zeros, zeros) if cell == "lstm" else zeros
    return jax.lax.scan(body, state, (xs, starts))[1]

  return Layer(to_equinox(weights), apply, to_equinox)


def zero_at_starts(state: Any, start: jax.Array) -> Any:
  """Return a tree of arrays [B, H] with zeros in rows where `start` is True."""
  return jax.tree.map(
    lambda h: jnp.where(start[:, None], jnp.zeros_like(h), h), state
  )


def keras(cell: str, weights: Any) -> Layer:
  """Return Keras' LSTM, GRU or SimpleRNN, between transposes to [B, T, D]."""
  if os.environ.setdefault("KERAS_BACKEND", "jax") != "jax":
    raise Unsupported("KERAS_BACKEND is not jax")
  import keras as k

  layer_class = {
    "lstm": k.layers.LSTM,
    "gru": k.layers.GRU,
    "rnn": k.layers.SimpleRNN,
  }[cell]
  layer = layer_class(weights.w_h.shape[0], return_sequences=True)
  layer.build((None, None, weights.w_x.shape[0]))
  rest = [v.value for v in layer.non_trainable_variables]

  # w holds gradients. A GRU's b is [2, 3H], in the order z, r, n: the rows of
  # input and recurrence. Those of z and r, the first 2H, have equal gradients.
  def convert(w):
    w_x, w_h, b = to_keras(w)
    if cell == "gru":
      b[1, : -len(w.b_n)] = b[0, : -len(w.b_n)]
    return [w_x, w_h, b]

  def apply(params, xs):
    outputs, _ = layer.stateless_call(params, rest, jnp.swapaxes(xs, 0, 1))
    return jnp.swapaxes(outputs, 0, 1)

  return Layer([jnp.asarray(w) for w in to_keras(weights)], apply, convert)


def cudnn(cell: str, weights: Any) -> Layer:
  """Return cuDNN's LSTM, between transposes; for NVIDIA GPUs only."""
  from jax.experimental import rnn

  if cell != "lstm":
    raise Unsupported("it has an LSTM only")
  if jax.default_backend() != "gpu":
    raise Unsupported("it runs on a GPU only")
  sizes = weights.w_x.shape[0], weights.w_h.shape[0]

  def apply(params, xs):
    seq_len, batch_size, _ = xs.shape
    zeros = jnp.zeros((1, batch_size, sizes[1]), xs.dtype)
    lengths = jnp.full(batch_size, seq_len, jnp.int32)
    hs, _, _ = rnn.lstm(
      jnp.swapaxes(xs, 0, 1),
      zeros,
      zeros,
      params,
      lengths,
      *sizes,
      1,  # layer
      0.0,  # dropout
      False,  # not bidirectional
    )
    return jnp.swapaxes(hs, 0, 1)

  # w holds gradients. Those of the two biases are equal; the second is the end
  # of cuDNN's vector, where `to_cudnn` writes 0.
  def convert(w):
    return to_cudnn((w,)).at[-w.b.size :].set(w.b)

  return Layer(to_cudnn((weights,)), apply, convert)


# The functions that make a layer, each with the package that it needs.
LAYERS: dict[str, tuple[Callable[[str, Any], Layer], str]] = {
  "lstm_jax": (ours, "jax"),
  "autodiff": (autodiff, "jax"),
  "flax linen": (flax_linen, "flax"),
  "flax nnx": (flax_nnx, "flax"),
  "haiku": (haiku, "haiku"),
  "equinox": (equinox, "equinox"),
  "keras": (keras, "keras"),
  "jax.experimental.rnn": (cudnn, "jax"),
}
