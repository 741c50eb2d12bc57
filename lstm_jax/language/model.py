"""A language model: tokens, embedding, stacked cells, linear readout, softmax.

  eₜ = onehot(xₜ) E
  hₜ = the top layer of the stack over e₁ … eₜ
  yₜ = hₜ W + b,   p(xₜ₊₁ | x₁ … xₜ) = softmax(yₜ)

Of a small vocabulary the lowest layer never sees eₜ: its input product eₜ W_x
is row xₜ of the table E W_x, [V, G·H], made once for all steps. What remains of
the largest product of a one-layer model is a gather. A large vocabulary, such
as of words, has more rows than a block has tokens: then rows of E are gathered,
and the layer multiplies those.

Tied, the readout is the embedding, W = Eᵀ (Press and Wolf 2017, Using the
output embedding to improve language models), drawn as a readout is, and eₜ is
√E times its row, so that inputs keep their size (Vaswani et al. 2017, section
3.4).

  >>> import jax, jax.numpy as jnp
  >>> model = language_model(ModelConfig(vocabulary_size=11, hidden_size=8))
  >>> params = model.init(jax.random.key(0))
  >>> state = model.initial_state((2,))
  >>> state, logits = model.apply(params, state, jnp.zeros((5, 2), int))
  >>> logits.shape
  (5, 2, 11)
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lstm_jax.cells import lstm
from lstm_jax.cells.affine import affine, linear
from lstm_jax.cells.cell import Cell, Params, State
from lstm_jax.cells.precision import lower
from lstm_jax.language import loss as losses
from lstm_jax.language.readout import (
  grouped_linear_cross_entropy,
  linear_cross_entropy,
)
from lstm_jax.language.regularizers import Regularizers
from lstm_jax.sequence._unroll import Rule
from lstm_jax.sequence.stack import init_stack, unroll_stack

# Rows of a table that is made for any block, as it leaves the loop of sampling:
# without it 1,000 characters took 1.1 times as long at H 512, 1.7 at H 128.
TABLE = 1024


@dataclass(frozen=True)
class ModelConfig:
  """What a language model is made of.

  Attributes:
    vocabulary_size: V, the number of tokens.
    cell: the recurrent cell of every layer.
    embedding_size: E, the length of a token's vector.
    hidden_size: H, of every layer.
    num_layers: layers in the stack.
    init_std: None for each cell's own initial weights; else every weight but
      the readout is Gaussian with this deviation and every bias 0, that of the
      forget gate too.
    readout_std: deviation of the readout's initial weights; None for 1/√H.
    tied: read out with the embedding; E must be the size of the top outputs.
    dtype: of the parameters.
    compute_dtype: of the products' operands, such as `jnp.bfloat16`; None for
      that of the parameters. Sums, states and gradients keep their dtypes.

  Raises:
    ValueError: a size is below 1, or a deviation is negative.
  """

  vocabulary_size: int
  cell: Cell = lstm
  embedding_size: int = 64
  hidden_size: int = 256
  num_layers: int = 1
  init_std: float | None = None
  readout_std: float | None = None
  tied: bool = False
  dtype: Any = jnp.float32
  compute_dtype: Any = None

  def __post_init__(self):
    sizes = "vocabulary_size", "embedding_size", "hidden_size", "num_layers"
    for name in sizes:
      if getattr(self, name) < 1:
        raise ValueError(f"{name} must be ≥ 1, got {getattr(self, name)}")
    for name in ("init_std", "readout_std"):
      value = getattr(self, name)
      if value is not None and not value >= 0:
        raise ValueError(f"{name} must be ≥ 0, got {value}")


class LanguageParams(NamedTuple):
  """The weights of a language model."""

  embedding: jax.Array  # E [V, E]
  layers: tuple[Params, ...]  # the lowest first
  readout: Any  # W [H, V]; None where it is tied
  bias: jax.Array  # b [V]


class LanguageModel(NamedTuple):
  """A language model as pure functions; its state is always explicit.

  Attributes:
    init: (key) -> params.
    initial_state: (batch_shape) -> the zero state, a tuple over layers.
    apply: (params, state, tokens [T, ...]) -> (state, logits [T, ..., V]).
    loss: (params, state, tokens [T, ...], targets [T, ...]) -> (mean nats per
      token, state). The state returned, passed to the next call, is truncated
      backpropagation through time.
    training_loss: (params, state, tokens, targets, key) -> (what training
      minimises, (mean nats per token under its noise, state)): with the
      `Regularizers` that the model was made with.
  """

  init: Callable[[jax.Array], LanguageParams]
  initial_state: Callable[[tuple[int, ...]], tuple[State, ...]]
  apply: Callable[..., tuple[tuple[State, ...], jax.Array]]
  loss: Callable[..., tuple[jax.Array, tuple[State, ...]]]
  training_loss: Callable[..., tuple[jax.Array, tuple]]


def language_model(
  config: ModelConfig,
  *,
  regularizers: Regularizers | None = None,
  vjp: Rule = "explicit",
  groups: int = 1,
) -> LanguageModel:
  """Return the model that `config` describes.

  Args:
    config: sizes, cell and initial weights.
    regularizers: what `training_loss` adds to the loss; None for nothing.
    vjp: whose gradient the cells have, as in `unroll`; "autodiff" leaves the
      embedding, the readout and the loss to JAX as well.
    groups: of streams, which `loss` and `training_loss` read out each by
      itself: as many as devices share the streams. It must divide B.
  """
  explicit = vjp != "autodiff"
  compute_dtype = config.compute_dtype

  def dense(x: jax.Array, w: jax.Array, b: jax.Array) -> jax.Array:
    if explicit:
      return linear(x, w, b, compute_dtype)
    return affine(x, lower(w, compute_dtype), b)

  def init(key: jax.Array) -> LanguageParams:
    return _init(config, key)

  def initial_state(batch_shape: tuple[int, ...] = ()) -> tuple[State, ...]:
    shapes = jax.eval_shape(init, jax.random.key(0))
    return tuple(
      config.cell.initial_state(layer, batch_shape) for layer in shapes.layers
    )

  def sized(rows: jax.Array) -> jax.Array:
    """Return rows of E, [..., E], as inputs: √E times as large where tied."""
    if not config.tied:
      return rows
    return rows * jnp.asarray(rows.shape[-1] ** 0.5, rows.dtype)

  def outputs(
    params: LanguageParams,
    state: tuple[State, ...],
    tokens: jax.Array,
    **noise: Any,
  ) -> tuple[tuple[State, ...], jax.Array]:
    embedding, (lowest, *others) = params.embedding, params.layers
    if len(embedding) <= max(tokens.size // groups, TABLE):
      no_bias = jnp.zeros(lowest.w_x.shape[1:], lowest.w_x.dtype)
      table = dense(sized(embedding), lowest.w_x, no_bias)
      lowest = lowest._replace(w_x=table.astype(lowest.w_x.dtype))
      xs = tokens
    else:
      no_bias = jnp.zeros(embedding.shape[1:], embedding.dtype)
      rows = (linear if explicit else affine)(tokens, embedding, no_bias)
      xs = sized(rows.astype(embedding.dtype))
    layers = (lowest, *others)
    rule = {"vjp": vjp, "compute_dtype": compute_dtype}
    return unroll_stack(config.cell, layers, state, xs, **noise, **rule)

  def readout_of(params: LanguageParams) -> tuple[jax.Array, jax.Array]:
    w = params.embedding.T if params.readout is None else params.readout
    return w, params.bias

  def nats_of(
    readout: tuple[jax.Array, jax.Array], hs: jax.Array, targets: jax.Array
  ) -> jax.Array:
    if explicit and groups > 1:
      return grouped_linear_cross_entropy(
        hs, *readout, targets, groups, compute_dtype
      )
    if explicit:
      return linear_cross_entropy(hs, *readout, targets, compute_dtype)
    return losses.forward(dense(hs, *readout), targets)[0].mean()

  def apply(
    params: LanguageParams, state: tuple[State, ...], tokens: jax.Array
  ) -> tuple[tuple[State, ...], jax.Array]:
    state, hs = outputs(params, state, tokens)
    return state, dense(hs, *readout_of(params))

  def loss(
    params: LanguageParams,
    state: tuple[State, ...],
    tokens: jax.Array,
    targets: jax.Array,
  ) -> tuple[jax.Array, tuple[State, ...]]:
    state, hs = outputs(params, state, tokens)
    return nats_of(readout_of(params), hs, targets), state

  def training_loss(
    params: LanguageParams,
    state: tuple[State, ...],
    tokens: jax.Array,
    targets: jax.Array,
    key: jax.Array,
  ) -> tuple[jax.Array, tuple]:
    if regularizers is None:
      nats, state = loss(params, state, tokens, targets)
      return nats, (nats, state)
    key_weights, key_stack, key_outputs = jax.random.split(key, 3)
    readout = readout_of(params)  # whose rows are not dropped
    params = regularizers.drop_weights(key_weights, params)
    noise = regularizers.of_stack(key_stack, state, len(tokens))
    state, hs = outputs(params, state, tokens, **noise)
    read_out = regularizers.drop_outputs(key_outputs, hs)
    nats = nats_of(readout, read_out, targets)
    return nats + regularizers.penalty(hs, read_out), (nats, state)

  return LanguageModel(init, initial_state, apply, loss, training_loss)


def _init(config: ModelConfig, key: jax.Array) -> LanguageParams:
  key_embedding, key_layers, key_readout, key_gauss = jax.random.split(key, 4)
  size, dtype = config.embedding_size, config.dtype
  sizes = (config.hidden_size,) * config.num_layers
  layers: tuple[Params, ...] = init_stack(
    config.cell, key_layers, size, sizes, dtype=dtype
  )
  hidden = layers[-1].w_h.shape[0]
  if config.tied and size != hidden:
    raise ValueError(
      "a tied readout needs an embedding_size of the top layer's outputs, "
      f"{hidden}, got {size}"
    )
  std = config.readout_std
  std = hidden**-0.5 if std is None else std
  vocabulary = config.vocabulary_size
  readout = std * jax.random.normal(key_readout, (hidden, vocabulary), dtype)
  params = LanguageParams(
    embedding=readout.T
    if config.tied
    else jax.random.normal(key_embedding, (vocabulary, size), dtype),
    layers=layers,
    readout=None if config.tied else readout,
    bias=jnp.zeros((vocabulary,), dtype),
  )
  if config.init_std is None:
    return params
  return params._replace(
    **_gaussian(config.init_std, key_gauss, params.embedding, params.layers)
  )


def _gaussian(std, key, embedding, layers):
  """Redraw the matrices with deviation std, and set the biases to 0."""
  tree = embedding, layers
  leaves, structure = jax.tree.flatten(tree)
  paths = [path[-1] for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
  keys = jax.random.split(key, len(leaves))
  drawn = []
  for k, path, leaf in zip(keys, paths, leaves, strict=True):
    if leaf.ndim > 1:
      leaf = std * jax.random.normal(k, leaf.shape, leaf.dtype)
    elif not getattr(path, "name", "").startswith("gain"):
      leaf = jnp.zeros_like(leaf)
    drawn.append(leaf)
  embedding, layers = jax.tree.unflatten(structure, drawn)
  return {"embedding": embedding, "layers": layers}
