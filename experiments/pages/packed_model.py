"""A language model in 8-bit weights inside a page, where model.js runs it."""

from typing import Any

import jax
import numpy as np

from experiments.pages.packing import Blobs
from experiments.pages.quantized import (
  Cost,
  Quantized,
  dequantize_params,
  measure_cost,
  quantize_params,
)
from experiments.trainer.records import to_record
from experiments.trainer.trained import Trained
from lstm_jax.language import LanguageParams, Tokenizer, word_tokenizer

CELLS = (  # those that cells.js computes
  *("lstm", "layernorm_lstm", "coupled_lstm", "peephole_lstm"),
  *("gru", "gru_reset_before", "rnn", "relu_rnn"),
)
MAX_WEIGHTS = 32_000_000  # a byte each in a page; 200 MB in a browser's memory


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
