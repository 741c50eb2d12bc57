"""A language model: embedding, stacked cells, linear readout, softmax.

  eₜ = onehot(xₜ) W_e
  hₜ = the top layer of the stack over e₁ … eₜ
  yₜ = hₜ W + b,   p(xₜ₊₁ | x₁ … xₜ) = softmax(yₜ)

With a small vocabulary, eₜ is never computed. The input product eₜ W_x of the
lowest layer, which has G gates, is row xₜ of the table W_e W_x, [V, G·H]. The
table is computed once for all time steps; the product becomes a gather.
A vocabulary is large if the table would have more rows than the batch (with
`groups`, one group of it) has tokens, as with words; for a single time step of
`apply`, as in sampling, only if it would have more than 1,024 as well; for
symbolic sizes (`jax.export`), if it would have more than 1,024. Then the rows
of W_e are gathered and multiplied by W_x, as they are for a cell that does not
take tokens (`takes_tokens` of a `Cell`).

With implementation="mosaic_gpu" a layer is one GPU kernel for all time steps.
Like `unroll`, the model's functions raise ValueError where the kernels cannot
run, or do not support the cell, a size, a dtype, the adjoint or zoneout. A
single time step (T = 1), as in sampling, is still a scan.

With tied=True the readout weights are the embedding, W = W_eᵀ (Press and Wolf
2017, Using the output embedding to improve language models). The embedding then
has the initial values of a readout, and eₜ is √E times its row, so that the
inputs keep their scale (Vaswani et al. 2017, section 3.4).

  >>> import jax, jax.numpy as jnp
  >>> model = language_model(ModelConfig(hidden_size=8), vocabulary_size=11)
  >>> params = model.init(jax.random.key(0))
  >>> state = model.initial_state((2,))
  >>> state, logits = model.apply(params, state, jnp.zeros((5, 2), int))
  >>> logits.shape
  (5, 2, 11)
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lstm_jax.cells.affine import affine, linear
from lstm_jax.cells.caching import one_at_a_time
from lstm_jax.cells.cell import Cell, State
from lstm_jax.cells.checks import check_count, check_shape
from lstm_jax.cells.precision import cast_matrices
from lstm_jax.cells.properties import zeros_like_traced
from lstm_jax.language import loss as losses
from lstm_jax.language.arguments import as_params, as_token_array
from lstm_jax.language.params import LanguageParams, ModelConfig, init_params
from lstm_jax.language.readout import (
  grouped_linear_cross_entropy,
  linear_cross_entropy,
)
from lstm_jax.language.regularizers import Regularizers
from lstm_jax.sequence.adjoint import Adjoint, Autodiff, Explicit
from lstm_jax.sequence.stack import unroll_stack

# A vocabulary of up to this size uses the table W_e W_x for a single time step
# of `apply`: in sampling, XLA moves the table out of the loop. Without it,
# sampling 1,000 characters took 1.1 times as long at H 512, 1.7 times at H 128.
# Several time steps, and losses, use it only for at least V tokens: in dynamic
# evaluation, whose weights change every 20 tokens, tables of 1,000 rows took
# half of the time, and in a training step of one token two thirds.
TABLE_ROWS = 1024


def reads_table(cell: Cell, vocabulary_size: int, num_tokens: Any) -> bool:
  """Return whether the lowest layer's inputs are rows of the table W_e W_x.

  Otherwise they are rows of W_e, each multiplied by W_x. For a single time step
  of `apply`, the model passes at least 1,024 as num_tokens.

  Args:
    cell: the model's cell; one that takes no tokens reads rows of W_e.
    vocabulary_size: V, the number of rows of the table.
    num_tokens: number of tokens in a batch, or in a group of its sequences; an
      integer, or symbolic (`jax.export`), which counts as 1,024.
  """
  most = num_tokens if isinstance(num_tokens, int) else TABLE_ROWS
  return getattr(cell, "takes_tokens", False) and vocabulary_size <= most


class LanguageModel(NamedTuple):
  """A language model as pure functions, with an explicit recurrent state.

  Attributes:
    init: (key) -> params.
    initial_state: (batch_shape) -> the zero state, a tuple with one element for
      each layer.
    apply: (params, state, tokens [T, ...]) -> (state, logits [T, ..., V]).
    loss: (params, state, tokens [T, ...], targets) -> (mean nats per token,
      state). Targets are tokens [T, ...], or distributions over them [T, ...,
      V]. Pass the returned state to the next call for truncated
      backpropagation through time.
    training_loss: (params, state, tokens, targets, key) -> (training loss,
      (mean nats per token, state)). The training loss is the mean nats per
      token under dropout, plus the penalties of the model's `Regularizers`.
      The key may be None only if the model has no `Regularizers`.

  The three functions that take a state take None for the zero state. They raise
  ValueError if tokens are not integers [T, ...], or if params do not fit the
  vocabulary, the embedding size or the cell.
  """

  init: Callable[[jax.Array], LanguageParams]
  initial_state: Callable[..., tuple[State, ...]]
  apply: Callable[..., tuple[tuple[State, ...], jax.Array]]
  loss: Callable[..., tuple[jax.Array, tuple[State, ...]]]
  training_loss: Callable[..., tuple[jax.Array, tuple]]


def language_model(
  config: ModelConfig,
  vocabulary_size: int,
  *,
  regularizers: Regularizers | None = None,
  adjoint: Adjoint = Explicit(),
  groups: int = 1,
) -> LanguageModel:
  """Return the language model of a configuration.

  Calls with equal arguments return the same functions, so that what JAX
  compiled for one model serves all equal ones. The 64 models that were used
  last are kept.

  Args:
    config: sizes, cell and initial weights.
    vocabulary_size: V, the number of distinct tokens.
    regularizers: dropout and penalties of `training_loss`; None for none.
    adjoint: how the cells' gradient is computed, as in `unroll`; `Autodiff`
      leaves the embedding, the readout and the loss to JAX as well.
    groups: number of groups of neighbouring sequences: where devices share the
      batch, their number. Except with `Autodiff`, and where it is no divisor of
      B, the readout's gradient is summed in each group first, so that devices
      exchange it once (`grouped_linear_cross_entropy`). The number of tokens in
      one group decides whether the table W_e W_x is used (`reads_table`).

  Raises:
    ValueError: vocabulary_size or groups is not an integer ≥ 1.
  """
  vocabulary_size = check_count("vocabulary_size", vocabulary_size)
  groups = check_count("groups", groups)
  # Cells that are NamedTuples of different types may be equal; the structures
  # of their trees differ.
  cell_types = jax.tree.structure(config.cell)
  return _language_model(
    config, vocabulary_size, regularizers, adjoint, groups, cell_types
  )


# The cache is limited because a model keeps its compiled programs alive.
@one_at_a_time  # else two threads could get two models
@functools.lru_cache(maxsize=64)
def _language_model(
  config: ModelConfig,
  vocabulary_size: int,
  regularizers: Regularizers | None,
  adjoint: Adjoint,
  groups: int,
  cell_types: Any,
) -> LanguageModel:
  del cell_types  # a part of the cache's key
  explicit = not isinstance(adjoint, Autodiff)
  compute_dtype = config.compute_dtype

  def dense(x: jax.Array, w: jax.Array, b: jax.Array) -> jax.Array:
    if explicit:
      return linear(x, w, b, compute_dtype)
    return affine(x, cast_matrices(w, compute_dtype), b)

  def init(key: jax.Array) -> LanguageParams:
    return init_params(config, vocabulary_size, key)

  def initial_state(batch_shape: tuple[int, ...] = ()) -> tuple[State, ...]:
    def state(layers: tuple[Any, ...]) -> tuple[State, ...]:
      return tuple(config.cell.initial_state(w, batch_shape) for w in layers)

    # A cell may compute the state from weights; none are drawn. JAX keeps the
    # trace of `init`, so that only the first call takes its time.
    shapes = jax.eval_shape(init, jax.random.key(0))
    return zeros_like_traced(state, shapes.layers)

  def scaled(rows: jax.Array) -> jax.Array:
    """Return rows of W_e, [..., E], times √E if the readout is tied."""
    if not config.tied:
      return rows
    return rows * jnp.asarray(rows.shape[-1] ** 0.5, rows.dtype)

  def hidden_states(
    params: LanguageParams,
    state: tuple[State, ...],
    tokens: jax.Array,
    *,
    in_loop: bool = False,
    **noise: Any,
  ) -> tuple[tuple[State, ...], jax.Array]:
    """Return (state, hs): the top layer's outputs, [T, ..., H].

    With `in_loop`, XLA may move the table out of a loop around a single time
    step.
    """
    tokens = as_token_array(tokens)
    embedding, (lowest, *others) = params.embedding, params.layers
    num_tokens = tokens.size
    if isinstance(num_tokens, int):  # else T or B is symbolic (`jax.export`)
      num_tokens //= groups
      if in_loop and tokens.shape[0] == 1:
        num_tokens = max(num_tokens, TABLE_ROWS)
    if reads_table(config.cell, len(embedding), num_tokens):
      w_x = getattr(lowest, "w_x", None)
      check_shape("params.layers[0].w_x", w_x, embedding.shape[1], "n")
      no_bias = jnp.zeros(lowest.w_x.shape[1:], lowest.w_x.dtype)
      table = dense(scaled(embedding), lowest.w_x, no_bias)
      # The table's dtype may be wider than w_x's: sums are float32 or wider.
      lowest = lowest._replace(w_x=table)
      xs = tokens
    else:
      no_bias = jnp.zeros(embedding.shape[1:], embedding.dtype)
      gathered = (linear if explicit else affine)(tokens, embedding, no_bias)
      xs = scaled(gathered.astype(embedding.dtype))
    layers = (lowest, *others)
    return unroll_stack(
      config.cell,
      layers,
      state,
      xs,
      adjoint=adjoint,
      compute_dtype=compute_dtype,
      # For one time step, a kernel has nothing to keep between time steps.
      implementation=None if tokens.shape[0] == 1 else config.implementation,
      **noise,
    )

  def readout_weights(params: LanguageParams) -> tuple[jax.Array, jax.Array]:
    w = params.embedding.T if params.readout is None else params.readout
    return w, params.bias

  def mean_nats(
    readout: tuple[jax.Array, jax.Array], hs: jax.Array, targets: jax.Array
  ) -> jax.Array:
    targets = jnp.asarray(targets)
    if explicit and groups > 1 and hs.ndim > 2 and not hs.shape[1] % groups:
      return grouped_linear_cross_entropy(
        hs, *readout, targets, groups, compute_dtype
      )
    if explicit:
      return linear_cross_entropy(hs, *readout, targets, compute_dtype)
    return losses.forward(dense(hs, *readout), targets)[0].mean()

  def apply(
    params: LanguageParams, state: tuple[State, ...], tokens: jax.Array
  ) -> tuple[tuple[State, ...], jax.Array]:
    params = as_params(config, vocabulary_size, params)
    state, hs = hidden_states(params, state, tokens, in_loop=True)
    return state, dense(hs, *readout_weights(params))

  def loss(
    params: LanguageParams,
    state: tuple[State, ...],
    tokens: jax.Array,
    targets: jax.Array,
  ) -> tuple[jax.Array, tuple[State, ...]]:
    params = as_params(config, vocabulary_size, params)
    state, hs = hidden_states(params, state, tokens)
    return mean_nats(readout_weights(params), hs, targets), state

  def training_loss(
    params: LanguageParams,
    state: tuple[State, ...],
    tokens: jax.Array,
    targets: jax.Array,
    key: jax.Array | None,
  ) -> tuple[jax.Array, tuple]:
    if regularizers is None:
      nats, state = loss(params, state, tokens, targets)
      return nats, (nats, state)
    if key is None:
      raise ValueError("a model with regularizers needs a key, got None")
    tokens = as_token_array(tokens)
    params = as_params(config, vocabulary_size, params)
    key_weights, key_stack, key_outputs, key_reset = jax.random.split(key, 4)
    if state is None:
      state = initial_state(tokens.shape[1:])
    elif regularizers.state_reset:
      zero = initial_state(tokens.shape[1:])
      state = regularizers.reset_states(key_reset, state, zero)
    readout = readout_weights(params)  # before token_dropout drops rows of W_e
    params = regularizers.drop_weights(key_weights, params)
    noise = regularizers.stack_options(key_stack, state, tokens.shape[0])
    state, hs = hidden_states(params, state, tokens, **noise)
    dropped_hs = regularizers.drop_outputs(key_outputs, hs)
    nats = mean_nats(readout, dropped_hs, targets)
    return nats + regularizers.penalty(hs, dropped_hs), (nats, state)

  return LanguageModel(init, initial_state, apply, loss, training_loss)
