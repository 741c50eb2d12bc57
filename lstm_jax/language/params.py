"""The configuration and the weights of a language model.

>>> config = ModelConfig(hidden_size=8, num_layers=2)
>>> params = init_params(config, 11, jax.random.key(0))
>>> params.embedding.shape, params.readout.shape, len(params.layers)
((11, 64), (8, 11), 2)
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lstm_jax.cells import lstm
from lstm_jax.cells.cell import Cell, Params
from lstm_jax.cells.precision import accumulation_dtype, check_float
from lstm_jax.cells.properties import output_size
from lstm_jax.cells.serialization import serializable
from lstm_jax.language.options import check_options, option
from lstm_jax.sequence.arguments import check_cell
from lstm_jax.sequence.implementation import Implementation
from lstm_jax.sequence.stack import init_stack


@dataclass(frozen=True)
class ModelConfig:
  """The sizes, the cell and the initial weights of a language model.

  Raises:
    ValueError: cell is not a cell, a size is not an integer ≥ 1, a standard
      deviation is negative or not finite, a dtype is not floating-point, or the
      implementation is unknown.
  """

  cell: Cell = option(lstm, "Recurrent cell of every layer.")
  embedding_size: int = option(
    64, "Size of a token's embedding vector, E.", bounds="[1, inf)"
  )
  hidden_size: int = option(
    256, "Hidden units of each layer, H.", bounds="[1, inf)"
  )
  num_layers: int = option(1, "Number of recurrent layers.", bounds="[1, inf)")
  init_std: float | None = option(
    None,
    "Standard deviation of Gaussian initial weights, except the readout's. "
    "Vectors then start at 0: every bias, also the forget gate's, and peephole "
    "weights, but not gains and decay rates. If not given, the layers have the "
    "initial weights of the cell itself, and an embedding that is not tied has "
    "standard deviation 1.",
    bounds="[0, inf)",
  )
  readout_std: float | None = option(
    None,
    "Standard deviation of the initial readout weights; if not given, 1/√n for "
    "a top layer with n outputs.",
    bounds="[0, inf)",
  )
  tied: bool = option(
    False,
    "Use the embedding as the readout weights too. Then embedding_size must "
    "equal the size of the top layer's outputs.",
  )
  dtype: Any = option(jnp.float32, "Data type of the parameters.")
  compute_dtype: Any = option(
    None,
    "Data type of the operands of matrix products, such as bfloat16; if not "
    "given, that of the parameters. Sums, states and gradients keep their own.",
  )
  implementation: Implementation | None = option(
    None,
    "Program of the layers: mosaic_gpu for one GPU kernel for all time steps "
    "of a layer, on an H100 or H200 (docs/gpu.md says what it supports); xla, "
    "the default, for a scan over time, on any device. A single time step, as "
    "in sampling, is always a scan.",
    choices=("xla", "mosaic_gpu"),
  )

  def __post_init__(self):
    check_cell(self.cell)
    check_options(self)
    check_float("dtype", self.dtype)
    if self.compute_dtype is not None:
      check_float("compute_dtype", self.compute_dtype)


@serializable  # gives the class a name for `jax.export`
class LanguageParams(NamedTuple):
  """The weights of a language model."""

  embedding: jax.Array  # W_e [V, E]
  layers: tuple[Params, ...]  # the lowest layer first
  readout: Any  # W [n, V], n outputs of the top layer; None if it is tied
  bias: jax.Array  # b [V]


def init_params(
  config: ModelConfig, vocabulary_size: int, key: jax.Array
) -> LanguageParams:
  """Return the initial weights of a language model.

  Args:
    config: sizes, cell and standard deviations.
    vocabulary_size: V, the number of distinct tokens.
    key: a typed PRNG key.

  Raises:
    ValueError: the readout is tied, and embedding_size is not the size of the
      top layer's outputs.
  """
  key_embedding, key_layers, key_readout, key_gauss = jax.random.split(key, 4)
  size, dtype = config.embedding_size, config.dtype
  sizes = (config.hidden_size,) * config.num_layers
  layers: tuple[Params, ...] = init_stack(
    config.cell, key_layers, size, sizes, dtype=dtype
  )
  hidden = output_size(config.cell, layers[-1])
  if config.tied and size != hidden:
    raise ValueError(
      "for a tied readout, embedding_size must equal the size of the top "
      f"layer's outputs, {hidden}, got {size}"
    )
  std = config.readout_std
  std = hidden**-0.5 if std is None else std
  shape = hidden, vocabulary_size
  readout = _normal(key_readout, std, shape, dtype)
  params = LanguageParams(
    embedding=readout.T
    if config.tied
    else _normal(key_embedding, 1.0, (vocabulary_size, size), dtype),
    layers=layers,
    readout=None if config.tied else readout,
    bias=jnp.zeros((vocabulary_size,), dtype),
  )
  if config.init_std is None:
    return params
  return _gaussian(config.init_std, key_gauss, params)


def _gaussian(
  std: float, key: jax.Array, params: LanguageParams
) -> LanguageParams:
  """Redraw the embedding and the layers' matrices with standard deviation std.

  Vectors become 0, but for the gains of a layer normalization and the decay
  rates ν of an LRU, which are kept, as is a tied embedding: it is the readout.
  """
  tree = params.embedding, params.layers
  leaves, structure = jax.tree.flatten(tree)
  paths = [path[-1] for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
  keys = jax.random.split(key, len(leaves))
  drawn = []
  for k, path, leaf in zip(keys, paths, leaves, strict=True):
    if leaf.ndim > 1:
      leaf = _normal(k, std, leaf.shape, leaf.dtype)
    elif not getattr(path, "name", "").startswith(("gain", "nu")):
      leaf = jnp.zeros_like(leaf)
    drawn.append(leaf)
  embedding, layers = jax.tree.unflatten(structure, drawn)
  if params.readout is None:
    embedding = params.embedding
  return params._replace(embedding=embedding, layers=layers)


def _normal(
  key: jax.Array, std: float, shape: tuple[int, ...], dtype: Any
) -> jax.Array:
  """Return Gaussian numbers of mean 0 and standard deviation std.

  They are drawn in float32 or wider: in bfloat16, JAX draws one of 128 numbers,
  whose mean is −0.012 standard deviations.
  """
  drawn = jax.random.normal(key, shape, accumulation_dtype(jnp.dtype(dtype)))
  return (std * drawn).astype(dtype)
