"""The programs of one layer that are timed, by name.

Ours are the GPU kernel; a scan, whose gradient is also derived by hand; and the
same scan differentiated by JAX, autodiff. They also run with products in
bfloat16, as does the Flax cell with resets. The libraries' layers cannot reset
the state inside a sequence: for cases with resets, a hand-written scan over the
library's cell sets the state to zero.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from experiments.benchmarks import layers, resets
from experiments.benchmarks.gpu.case import compute_dtype, operands_of
from experiments.benchmarks.layers import Layer
from experiments.benchmarks.proof import Unsupported
from lstm_jax.sequence import Autodiff, Explicit

# (cell, weights, starts of episodes [T, B] or None) -> the layer
Make = Callable[[str, Any, Any], Layer]


class Peer(NamedTuple):
  """How to make a program of a layer; `proof.Peer` is a made program."""

  make: Make
  package: str  # that it needs
  operands: str  # of its products, for tables
  dtype: str = "float32"  # of these operands
  kernel: bool = False  # whether it is the GPU kernel
  hs_bytes: int = 4  # bytes of each number of its outputs
  ours: bool = False  # whether its gradient is derived by hand


def _ours(kind: str, dtype: str) -> Peer:
  def make(cell, weights, starts):
    return layers.ours(
      cell,
      weights,
      Autodiff() if kind == "autodiff" else Explicit(),
      reset=starts,
      compute_dtype=compute_dtype(dtype),
      implementation="mosaic_gpu" if kind == "kernel" else None,
    )

  operands = operands_of(dtype)
  by_hand = kind != "autodiff"
  return Peer(make, "jax", operands, dtype, kind == "kernel", ours=by_hand)


def _library(name: str) -> Peer:
  make_layer, package = layers.LAYERS[name]

  def make(cell, weights, starts):
    if starts is None:
      return make_layer(cell, weights)
    if name == "flax linen":
      return resets.flax_layer(cell, weights, starts)
    if name == "equinox":
      return layers.equinox(cell, weights, starts)
    raise Unsupported("with resets, only Flax linen and Equinox are compared")

  return Peer(make, package, operands_of("float32"))


def _flax_bfloat16(cell: str, weights: Any, starts: Any) -> Layer:
  if starts is None:
    raise Unsupported("compared in float32 only")
  return resets.flax_layer(cell, weights, starts, jnp.bfloat16)


PEERS: dict[str, Peer] = {
  "kernel bfloat16": _ours("kernel", "bfloat16"),
  "scan bfloat16": _ours("scan", "bfloat16"),
  "autodiff bfloat16": _ours("autodiff", "bfloat16"),
  "flax bfloat16": Peer(
    _flax_bfloat16, "flax", "bfloat16", "bfloat16", hs_bytes=2
  ),
  "kernel": _ours("kernel", "float32"),
  "scan": _ours("scan", "float32"),
  "autodiff": _ours("autodiff", "float32"),
  "flax linen": _library("flax linen"),
  "flax nnx": _library("flax nnx"),
  "haiku": _library("haiku"),
  "equinox": _library("equinox"),
  # cuDNN's LSTM: by default JAX allows it TF32, as it does for products
  "jax.experimental.rnn": _library("jax.experimental.rnn"),
}
REFERENCE = "scan"  # computes the expected results, without TF32
