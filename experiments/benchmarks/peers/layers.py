"""One recurrent layer in each JAX library, as its own users write it.

Each maker takes the name of a cell and our weights, and returns the library's
weights, the layer as a function of them, and how our weights (or their
gradients) look in that library. A library that has no such cell says so.
"""

import importlib.util
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.peers.proof import Missing
from experiments.trainer.config import CELLS
from lstm_jax.interop.flax import to_linen
from lstm_jax.sequence._unroll import Rule, unroll


class Layer(NamedTuple):
  """A library's layer that holds our weights."""

  params: Any
  apply: Callable[[Any, jax.Array], jax.Array]  # (params, xs [T, B, D]) -> hs
  port: Callable[[Any], Any]  # our weights or gradients -> the library's


def ours(
  cell: str, weights: Any, vjp: Rule = "explicit", compute_dtype: Any = None
) -> Layer:
  """This project's `unroll`."""
  module = CELLS[cell]

  def apply(params, xs):
    state = module.initial_state(params, xs.shape[1:-1])
    return unroll(
      module, params, state, xs, vjp=vjp, compute_dtype=compute_dtype
    )[1]

  return Layer(weights, apply, lambda w: w)


def autodiff(cell: str, weights: Any) -> Layer:
  """The same forward as ours, its gradient left to JAX."""
  return ours(cell, weights, vjp="autodiff")


def flax_linen(cell: str, weights: Any) -> Layer:
  """Flax linen: RNN over OptimizedLSTMCell, GRUCell or SimpleCell."""
  from flax import linen as nn

  kinds = {
    "lstm": nn.OptimizedLSTMCell,
    "gru": nn.GRUCell,
    "rnn": nn.SimpleCell,
  }
  layer = nn.RNN(kinds[cell](weights.w_h.shape[0]), time_major=True)

  def port(w):
    return {"params": {"cell": to_linen(w)}}

  def apply(params: Any, xs: jax.Array) -> Any:
    return layer.apply(params, xs)

  return Layer(port(weights), apply, port)


def flax_nnx(cell: str, weights: Any) -> Layer:
  """Flax nnx: the same cells under its RNN."""
  from flax import nnx

  kinds = {
    "lstm": nnx.OptimizedLSTMCell,
    "gru": nnx.GRUCell,
    "rnn": nnx.SimpleCell,
  }
  sizes = weights.w_x.shape[0], weights.w_h.shape[0]
  layer = nnx.RNN(kinds[cell](*sizes, rngs=nnx.Rngs(0)), time_major=True)
  graph, state, other = nnx.split(layer, nnx.Param, ...)  # type: ignore[misc]
  biased = "dense_h" if cell == "lstm" else "dense_i"  # a GRU's b_n is 0 here

  def port(w):
    flat: dict[tuple[str, ...], Any] = {
      ("cell", "dense_i", "kernel"): w.w_x,
      ("cell", "dense_h", "kernel"): w.w_h,
      ("cell", biased, "bias"): w.b,
    }
    return jax.tree_util.tree_map_with_path(
      lambda path, _: flat[
        tuple(str(p.key) for p in path if hasattr(p, "key"))
      ],
      state,
    )

  def apply(params, xs):
    zeros = jnp.zeros((*xs.shape[1:-1], sizes[1]), xs.dtype)
    carry = (zeros, zeros) if cell == "lstm" else zeros
    return nnx.merge(graph, params, other)(xs, initial_carry=carry)

  return Layer(port(weights), apply, port)


def haiku(cell: str, weights: Any) -> Layer:
  """Haiku: dynamic_unroll over LSTM; its other cells are other functions."""
  import haiku as hk

  if cell != "lstm":
    raise Missing(
      "its GRU resets before the product"
      if cell == "gru"
      else "its VanillaRNN has a relu"
    )

  @hk.without_apply_rng
  @hk.transform
  def layer(xs):
    core = hk.LSTM(weights.w_h.shape[0])
    return hk.dynamic_unroll(core, xs, core.initial_state(xs.shape[1]))[0]

  def port(w):  # its gates are i, g, f, o
    rows = jnp.concatenate([w.w_x, w.w_h, w.b[None]])
    i, f, g, o = jnp.split(rows, 4, axis=-1)
    rows = jnp.concatenate([i, g, f, o], axis=-1)
    return {"lstm/linear": {"w": rows[:-1], "b": rows[-1]}}

  params = port(weights)  # and it adds 1 to the forget gate in the step
  size = weights.w_h.shape[0]
  b = params["lstm/linear"]["b"].at[2 * size : 3 * size].add(-1)
  params["lstm/linear"]["b"] = b
  return Layer(params, layer.apply, port)


def equinox(cell: str, weights: Any) -> Layer:
  """Equinox: LSTMCell or GRUCell, vmapped over the batch, in a scan."""
  import equinox as eqx

  if cell == "rnn":
    raise Missing("it has no such cell")
  kind = {"lstm": eqx.nn.LSTMCell, "gru": eqx.nn.GRUCell}[cell]
  sizes = weights.w_x.shape[0], weights.w_h.shape[0]
  arrays, static = eqx.partition(
    kind(*sizes, key=jax.random.key(0)), eqx.is_array
  )

  def port(w):
    found = eqx.tree_at(
      lambda c: (c.weight_ih, c.weight_hh, c.bias),
      arrays,
      (w.w_x.T, w.w_h.T, w.b),
    )
    if cell == "gru":
      found = eqx.tree_at(lambda c: c.bias_n, found, w.b_n)
    return found

  def apply(params, xs):
    step = jax.vmap(eqx.combine(params, static))
    zeros = jnp.zeros((xs.shape[1], sizes[1]), xs.dtype)

    def lstm_body(state, x):
      state = step(x, state)
      return state, state[0]

    def gru_body(h, x):
      h = step(x, h)
      return h, h

    if cell == "lstm":
      return jax.lax.scan(lstm_body, (zeros, zeros), xs)[1]
    return jax.lax.scan(gru_body, zeros, xs)[1]

  return Layer(port(weights), apply, port)


def keras(cell: str, weights: Any) -> Layer:
  """Keras on JAX: its LSTM, GRU or SimpleRNN layer; batch-major inside."""
  if os.environ.setdefault("KERAS_BACKEND", "jax") != "jax":
    raise Missing("KERAS_BACKEND is not jax")
  import keras as k

  kind = {
    "lstm": k.layers.LSTM,
    "gru": k.layers.GRU,
    "rnn": k.layers.SimpleRNN,
  }[cell]
  layer = kind(weights.w_h.shape[0], return_sequences=True)
  layer.build((None, None, weights.w_x.shape[0]))
  rest = [v.value for v in layer.non_trainable_variables]

  def port(w):
    if cell != "gru":
      return [w.w_x, w.w_h, w.b]
    # Its gates are z, r, n; its second row of biases is the recurrent one.
    gates = _gates(w, "rzn")
    w_x, w_h, b = (
      jnp.concatenate([gates[letter][k] for letter in "zrn"], axis=-1)
      for k in range(3)
    )
    recurrent = b.at[-len(w.b_n) :].set(w.b_n)
    return [w_x, w_h, jnp.stack([b, recurrent])]

  params = port(weights)
  if cell == "gru":  # the r and z rows would be added twice
    size = len(weights.b_n)
    params[2] = params[2].at[1, : 2 * size].set(0)

  def apply(params, xs):
    outputs, _ = layer.stateless_call(params, rest, jnp.swapaxes(xs, 0, 1))
    return jnp.swapaxes(outputs, 0, 1)

  return Layer(params, apply, port)


def cudnn(cell: str, weights: Any) -> Layer:
  """jax.experimental.rnn: cuDNN's LSTM; batch-major, on NVIDIA GPUs only."""
  from jax.experimental import rnn

  if cell != "lstm":
    raise Missing("it has the LSTM only")
  if jax.default_backend() != "gpu":
    raise Missing("it runs on a GPU only")
  sizes = weights.w_x.shape[0], weights.w_h.shape[0]

  def apply(params, xs):
    steps, batch, _ = xs.shape
    zeros = jnp.zeros((1, batch, sizes[1]), xs.dtype)
    lengths = jnp.full(batch, steps, jnp.int32)
    hs, _, _ = rnn.lstm(
      jnp.swapaxes(xs, 0, 1),
      zeros,
      zeros,
      params,
      lengths,
      *sizes,
      1,
      0.0,
      False,
    )
    return jnp.swapaxes(hs, 0, 1)

  return Layer(cudnn_weights(weights, second_bias=False), apply, cudnn_weights)


def cudnn_weights(w: Any, second_bias: bool = True) -> jax.Array:
  """Return our LSTM's weights as cuDNN's one vector.

  Its second bias is a copy of the first (so that gradients compare), or zero.
  """
  leaves = w.w_x.T, w.w_h.T, w.b, w.b if second_bias else jnp.zeros_like(w.b)
  return jnp.concatenate([leaf.ravel() for leaf in leaves])


def _gates(weights: Any, letters: str) -> dict[str, tuple]:
  """Return each gate's (w_x, w_h, b), by its letter."""
  parts = (jnp.split(w, len(letters), axis=-1) for w in weights[:3])
  return dict(zip(letters, zip(*parts, strict=True), strict=True))


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


def is_installed(package: str) -> bool:
  """Return whether a package can be imported."""
  return importlib.util.find_spec(package) is not None


def torch_layer(cell: str, weights: tuple, device: str) -> Any:
  """PyTorch's nn.LSTM, nn.GRU or nn.RNN over one or more layers of ours."""
  import torch

  kind = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}[cell]
  size, hidden = weights[0].w_x.shape[0], weights[0].w_h.shape[0]
  layer = kind(size, hidden, len(weights)).to(device)
  with torch.no_grad():
    for k, w in enumerate(weights):
      other = np.zeros_like(np.asarray(w.b))
      if cell == "gru":
        other[-hidden:] = w.b_n
      for name, value in (
        (f"weight_ih_l{k}", np.asarray(w.w_x).T),
        (f"weight_hh_l{k}", np.asarray(w.w_h).T),
        (f"bias_ih_l{k}", np.asarray(w.b)),
        (f"bias_hh_l{k}", other),
      ):
        getattr(layer, name).copy_(torch.tensor(value.copy()))
  return layer
