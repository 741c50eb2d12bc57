"""A language model in 8-bit weights inside a page, where model.js runs it.

A matrix is stored with a row for each output: W_x, W_h and W are transposed; a
row of the embedding is the vector of one token. Each row has a scale s:

  s = max |w| / 127 of the row,   q = round(w / s),   w ≈ q s

so that a weight is rounded by at most s / 2. Biases, peepholes and the gains of
a layer normalization are few, and stay float32.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.pages.packing import Blobs
from experiments.trainer.records import to_record
from experiments.trainer.trained import Trained
from lstm_jax.language import LanguageParams, Tokenizer, word_tokenizer
from lstm_jax.language.evaluate import stateful_loss

CELLS = (  # those that cells.js computes
  *("lstm", "layernorm_lstm", "coupled_lstm", "peephole_lstm"),
  *("gru", "gru_reset_before", "rnn", "relu_rnn"),
)
MAX_WEIGHTS = 32_000_000  # a byte each in a page; 200 MB in a browser's memory
MAX_COST = 0.05  # nats per token by which rounding may raise the loss
LEVELS = 127  # the largest |q|


class Quantized(NamedTuple):
  """A matrix in 8 bits."""

  levels: np.ndarray  # q, int8 [outputs, inputs]
  scales: np.ndarray  # s, float32 [outputs]


class Cost(NamedTuple):
  """The loss of a model on a text, in nats per token."""

  before: float  # with its own weights
  after: float  # with 8-bit weights
  num_tokens: int  # of the text


def quantize(w: np.ndarray) -> Quantized:
  """Return a matrix [outputs, inputs] in 8 bits."""
  w = np.asarray(w, np.float32)
  scales = np.abs(w).max(axis=1, initial=0) / np.float32(LEVELS)
  levels = np.rint(w / np.where(scales > 0, scales, 1)[:, None])
  return Quantized(levels.astype(np.int8), scales)


def dequantize(matrix: Quantized) -> np.ndarray:
  """Return q s, float32 [outputs, inputs]."""
  return matrix.levels * matrix.scales[:, None]


def quantize_params(params: LanguageParams) -> LanguageParams:
  """Return the weights with a `Quantized` in place of each matrix."""

  def by_outputs(leaf: jax.Array) -> Any:
    w = np.asarray(leaf, np.float32)
    return quantize(w.T) if w.ndim == 2 else w

  quantized: Any = jax.tree.map(by_outputs, params)
  return quantized._replace(embedding=quantize(np.asarray(params.embedding)))


def dequantize_params(params: LanguageParams) -> LanguageParams:
  """Return the weights that `quantize_params` rounded, as float32 arrays."""

  def as_array(leaf: Any) -> np.ndarray:
    return dequantize(leaf).T if isinstance(leaf, Quantized) else leaf

  arrays: Any = jax.tree.map(
    as_array, params, is_leaf=lambda leaf: isinstance(leaf, Quantized)
  )
  return arrays._replace(embedding=arrays.embedding.T)


def measure_cost(
  trained: Trained, params: LanguageParams, tokens: np.ndarray
) -> Cost:
  """Return the loss on a text before and after the weights are rounded.

  Each loss is that of one pass, which carries the state over the whole text.

  Args:
    trained: the model, whose products are float32 even if those of its training
      were bfloat16.
    params: its weights after rounding, from `dequantize_params`.
    tokens: the text, int32 [N], N ≥ 2.
  """
  before = stateful_loss(trained.model, trained.params, tokens)
  after = stateful_loss(trained.model, params, tokens)
  return Cost(before, after, len(tokens))


def check_cost(cost: Cost, unit: str) -> None:
  """Raise ValueError if rounding costs more than `MAX_COST`, or NaN.

  Args:
    cost: the loss before and after rounding.
    unit: what a token is, for the message.
  """
  change = cost.after - cost.before
  if not change <= MAX_COST:
    raise ValueError(
      f"8-bit weights may cost at most {MAX_COST} nats per {unit}, and cost "
      f"this model {change:.4f}: {cost.before:.4f} before, {cost.after:.4f} "
      "after"
    )


def check_model(trained: Trained) -> None:
  """Raise ValueError if a page cannot run the cell or hold the weights."""
  cell = recorded_cell(trained)
  if cell not in CELLS:
    raise ValueError(f"a page cannot run {cell}, only {', '.join(CELLS)}")
  size = num_weights(trained.params)
  if size > MAX_WEIGHTS:
    raise ValueError(
      f"a page may hold at most {MAX_WEIGHTS:,} weights, a byte each, and the "
      f"model has {size:,}"
    )


def recorded_cell(trained: Trained) -> str:
  """Return the name of a model's cell, such as "lstm"."""
  return to_record(trained.config.model)["cell"]


def num_weights(params: LanguageParams) -> int:
  """Return the number of weights of a model, its biases included."""
  return sum(leaf.size for leaf in jax.tree.leaves(params))


def describe_cost(cost: Cost, tokenizer: Tokenizer) -> str:
  """Return what rounding costs, as a part of a sentence."""
  change = f"{cost.after - cost.before:+.4f}".replace("-", "−")
  return (
    f"8-bit weights cost {change} nats per "
    f"{tokenizer.unit} ({cost.before:.4f} before, {cost.after:.4f} after), on "
    f"{cost.num_tokens:,} {tokenizer.unit}s"
  )


def pack_model(
  trained: Trained, tokens: np.ndarray, blobs: Blobs
) -> tuple[dict[str, Any], LanguageParams, Cost]:
  """Pack a model that `check_model` has passed into a page.

  Args:
    trained: the model.
    tokens: a text on which the cost of rounding is measured, int32 [N], N ≥ 2.
    blobs: takes the weights.

  Returns:
    (header, params, cost). The header has the page's entries "model" and
    "words": the rules of the tokenizer if it is one of words, else None. params
    are the rounded weights, and cost is what rounding costs.
  """
  quantized, tokenizer = quantize_params(trained.params), trained.tokenizer
  params = dequantize_params(quantized)
  header = {
    "words": word_rules() if tokenizer.unit == "word" else None,
    "model": pack_params(recorded_cell(trained), quantized, blobs),
  }
  return header, params, measure_cost(trained, params, tokens)


def pack_params(
  cell: str, quantized: LanguageParams, blobs: Blobs
) -> dict[str, Any]:
  """Return the header of the weights, whose bytes become blobs."""

  def pack(leaf: Any) -> Any:
    if isinstance(leaf, Quantized):
      return {
        "levels": blobs.add(leaf.levels),
        "scales": blobs.add(leaf.scales.astype("<f4")),
      }
    return blobs.add(leaf.astype("<f4"))

  embedding, layers, readout, bias = quantized
  return {
    "cell": cell,
    "embedding": pack(embedding),
    "layers": [
      {name: pack(leaf) for name, leaf in layer._asdict().items()}
      for layer in layers
    ],
    "readout": None if readout is None else pack(readout),
    "bias": pack(bias),
  }


def word_rules() -> dict[str, Any]:
  """Return the rules of the word tokenizer, which tokens.js follows."""
  return {
    "clipped_start": word_tokenizer.CLIPPED_START,
    "clipped_end": word_tokenizer.CLIPPED_END,
    "no_space_before": sorted(word_tokenizer.NO_SPACE_BEFORE),
    "no_space_after": sorted(word_tokenizer.NO_SPACE_AFTER),
    "quotes": sorted(word_tokenizer.QUOTES),
  }
