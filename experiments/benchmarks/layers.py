"""One recurrent layer in each library, used as its documentation shows.

A function that makes a layer takes the name of a cell and our weights, and
returns a `Layer`: the library's weights, the layer as a function of them, and
the conversion of our gradients to the library's. It raises `Unsupported` where
the library has no such cell, or cannot be used here. `torch_layer` returns
PyTorch's module itself.

Minimal GRU, minimal LSTM and linear recurrent unit are compared with the same
equations as a user of JAX writes them (`written_out`): after one matrix product
for the inputs of all time steps, a `lax.scan` or a `lax.associative_scan` over
time, which JAX differentiates.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.benchmarks.timing import Unsupported
from experiments.trainer.config import CELLS
from lstm_jax.interop import torch as interop
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
  # (params, xs [T, B, D]) -> hs. Where episodes may begin inside a sequence,
  # also (params, xs, starts bool [T, B]) -> hs: they begin with a zero state.
  apply: Callable[..., jax.Array]
  convert: Callable[[Any], Any]  # gradients of our weights -> of the library's


def ours(
  cell: str, weights: Any, adjoint: Adjoint = Explicit(), **options: Any
) -> Layer:
  """Return our `unroll` with these options as a layer."""
  module = CELLS[cell]

  def apply(params, xs, starts=None):
    state = module.initial_state(params, xs.shape[1:-1])
    _, hs = unroll(
      module, params, state, xs, reset=starts, adjoint=adjoint, **options
    )
    return hs

  return Layer(weights, apply, lambda w: w)


def autodiff(cell: str, weights: Any, **options: Any) -> Layer:
  """Return the same forward as ours, differentiated by JAX."""
  return ours(cell, weights, Autodiff(), **options)


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
      carry = _zero_at_starts(carry, resets)
      size = jax.tree.leaves(carry)[0].shape[-1]
      return cell_class(size, dtype=dtype)(carry, ins)

    @staticmethod
    def initialize_carry(batch_size, hidden_size):
      module = cell_class(hidden_size, parent=None)
      sizes = batch_size, hidden_size
      return module.initialize_carry(jax.random.key(0), sizes)

  return ScannedRNN


def flax_scan(cell: str, weights: Any, dtype: Any = None) -> Layer:
  """Return Flax's cell under `linen.scan`, which sets the carry to zero.

  Its `apply` needs the starts of episodes; dtype is that of `scanned_rnn`.
  """
  scanned = scanned_rnn(cell, dtype)()
  size = weights.w_h.shape[0]

  def apply(params, xs, starts):
    zeros = jnp.zeros((xs.shape[1], size), dtype or xs.dtype)
    carry = (zeros, zeros) if cell == "lstm" else zeros
    return scanned.apply(params, carry, (xs, starts))[1]

  def convert(w):
    return {"params": {f"{FLAX_CELLS[cell]}_0": to_linen(w)}}

  return Layer(convert(weights), apply, convert)


def equinox(cell: str, weights: Any) -> Layer:
  """Return a scan of Equinox's LSTMCell or GRUCell, vmapped over the batch.

  Raises:
    Unsupported: Equinox does not have the cell.
  """
  if cell == "rnn":
    raise Unsupported("it has no plain RNN cell")
  size = weights.w_h.shape[0]

  def apply(params, xs, starts=None):
    step = jax.vmap(params)

    def body(state, inputs):
      x, start = inputs
      if start is not None:
        state = _zero_at_starts(state, start)
      state = step(x, state)
      return state, state[0] if cell == "lstm" else state

    zeros = jnp.zeros((xs.shape[1], size), xs.dtype)
    state = (zeros, zeros) if cell == "lstm" else zeros
    return lax.scan(body, state, (xs, starts))[1]

  return Layer(to_equinox(weights), apply, to_equinox)


def _zero_at_starts(state: Any, start: jax.Array) -> Any:
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


Recurrence = Callable[[jax.Array, jax.Array], jax.Array]


def loop(decay: jax.Array, increment: jax.Array) -> jax.Array:
  """Return hₜ = λₜ ⊙ hₜ₋₁ + uₜ from λ and u, h₀ = 0, by `lax.scan`.

  All are [T, B, H].
  """

  def body(h, inputs):
    decay, increment = inputs
    h = decay * h + increment
    return h, h

  return lax.scan(body, jnp.zeros_like(decay[0]), (decay, increment))[1]


def parallel(decay: jax.Array, increment: jax.Array) -> jax.Array:
  """Return what `loop` returns, by `lax.associative_scan`."""

  def combine(earlier, later):
    decay, increment = earlier
    return decay * later[0], increment * later[0] + later[1]

  return lax.associative_scan(combine, (decay, increment))[1]


def _min_gru(params: Any, a: jax.Array) -> tuple[jax.Array, jax.Array]:
  az, an = jnp.split(a, 2, axis=-1)
  z = jax.nn.sigmoid(az)
  return 1 - z, z * an


def _min_lstm(params: Any, a: jax.Array) -> tuple[jax.Array, jax.Array]:
  af, ai, an = jnp.split(a, 3, axis=-1)
  f, i = jax.nn.sigmoid(af), jax.nn.sigmoid(ai)
  return f / (f + i), i / (f + i) * an


def _lru(params: Any, a: jax.Array) -> tuple[jax.Array, jax.Array]:
  decay = jnp.exp(-jnp.exp(params.nu))
  return jnp.broadcast_to(decay, a.shape), jnp.sqrt(1 - decay**2) * a


# (params, pre-activations [T, B, ...]) -> (λ, u) [T, B, H] of each cell.
COEFFICIENTS = {"min_gru": _min_gru, "min_lstm": _min_lstm, "lru": _lru}


def written_out(recurrence: Recurrence) -> Callable[[str, Any], Layer]:
  """Return the maker of a linear cell's layer with this recurrence."""

  def make(cell: str, weights: Any) -> Layer:
    def apply(params, xs):
      a = xs @ params.w_x + params.b
      return recurrence(*COEFFICIENTS[cell](params, a))

    return Layer(weights, apply, lambda w: w)

  return make


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
# The same of cells with a linear recurrence, in JAX alone. "scan of steps" is a
# scan of whole time steps, with their products.
LINEAR_LAYERS: dict[str, tuple[Callable[[str, Any], Layer], str]] = {
  "lstm_jax": (ours, "jax"),
  "scan of steps, autodiff": (autodiff, "jax"),
  "lax.scan, autodiff": (written_out(loop), "jax"),
  "associative_scan, autodiff": (written_out(parallel), "jax"),
}


def torch_device() -> str:
  """Return the device of PyTorch's layers: a CPU or GPU, as JAX has.

  Raises:
    Unsupported: JAX has a GPU, and PyTorch none.
  """
  import torch

  if jax.default_backend() == "cpu":
    return "cpu"
  if not torch.cuda.is_available():
    raise Unsupported("PyTorch finds no GPU")
  return "cuda"


def as_tensor(array: Any) -> Any:
  """Return an array as a tensor on `torch_device()`."""
  import torch

  return torch.tensor(np.array(array), device=torch_device())


def torch_layer(cell: str, weights: tuple) -> Any:
  """Return PyTorch's float32 module with our weights, on `torch_device()`.

  Args:
    cell: lstm, gru or rnn.
    weights: our parameters of each of its layers, the lowest first.
  """
  import torch

  layer_class = {
    "lstm": torch.nn.LSTM,
    "gru": torch.nn.GRU,
    "rnn": torch.nn.RNN,
  }[cell]
  input_size, hidden_size = weights[0].w_x.shape[0], weights[0].w_h.shape[0]
  layer = layer_class(input_size, hidden_size, len(weights)).to(torch_device())
  arrays = interop.to_torch(weights)
  layer.load_state_dict({n: torch.tensor(a) for n, a in arrays.items()})
  return layer
