"""The page that `experiments.explore` writes: a text as a model reads it.

Everything about that text is computed here and packed into the page. The
signals, which are the states and gates of each unit, and the gradient norms are
packed as one byte a number (`packing`). The page unpacks an array when it shows
it. If `packed_model` can pack the model, the page also holds its weights in 8
bits, and computes the same for a text that somebody types there: model.js and
cells.js have the forward pass, backward.js the gradients, texts.js both kinds
of texts.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.analysis.context import gradient_paths
from experiments.analysis.features import FEATURES, measure, scores, varies
from experiments.analysis.states import (
  is_gate,
  meaning,
  signals,
  trace_layers,
)
from experiments.pages.packed_model import (
  check_model,
  describe_cost,
  pack_model,
  recorded_cell,
)
from experiments.pages.packing import (
  Blobs,
  quantize_gate,
  quantize_norms,
  quantize_signed,
)
from experiments.trainer.format import counted
from experiments.trainer.trained import Trained
from lstm_jax.cells.cell import Cell
from lstm_jax.language import LanguageParams

TEMPLATE = Path(__file__).with_suffix(".html")
WINDOW = 96  # steps back of the gradient paths: about two lines of verse
TOP_TOKENS = 10  # likeliest next tokens that are listed


def make_page(trained: Trained, tokens: np.ndarray, source: str) -> str:
  """Return the page of a model that reads a text.

  Args:
    trained: the model.
    tokens: the text, integers [N], N ≥ 2.
    source: where the text is from, for the page's heading.

  Raises:
    ValueError: as `make_header`.
  """
  blobs, tokenizer = Blobs(), trained.tokenizer
  model = trained.config.model
  header = make_header(
    model.cell, trained.params, tokens, tokenizer.pieces(tokens), blobs
  )
  header |= pack_reader(trained, tokens, blobs)
  header |= {
    "about": describe(trained),
    "source": describe_text(trained, len(tokens), source),
    "unit": tokenizer.unit,
    "symbols": list(tokenizer.symbols),
  }
  return blobs.page(TEMPLATE, header)


def pack_reader(
  trained: Trained, tokens: np.ndarray, blobs: Blobs
) -> dict[str, Any]:
  """Return what the page needs to read a typed text.

  If a page cannot run the model (`check_model`), "model" is None, and
  "no_typing" says why. Else "cost" says what rounding the weights costs on
  `tokens`, int32 [N].
  """
  try:
    check_model(trained)
  except ValueError as error:
    reason = f"You cannot type a text here: {error}."
    return {"model": None, "no_typing": reason}
  packed, _, cost = pack_model(trained, tokens, blobs)
  cost_text = describe_cost(cost, trained.tokenizer)
  return packed | {"cost": f"{cost_text} of the page’s text."}


def describe(trained: Trained) -> str:
  """Return the first half of a page's heading: the model."""
  cell, model = recorded_cell(trained), trained.config.model
  units = counted(model.hidden_size, "unit")
  steps = counted(trained.step, "training step")
  return f"{cell}, {model.num_layers} × {units}, after {steps}"


def describe_text(trained: Trained, num_tokens: int, source: str) -> str:
  """Return the second half of a page's heading: the text."""
  return f"{num_tokens:,} {trained.tokenizer.unit}s of {source}"


def make_header(
  cell: Cell,
  params: LanguageParams,
  tokens: np.ndarray,
  pieces: list[str],
  blobs: Blobs,
) -> dict[str, Any]:
  """Return what the page shows of a model on a text, ready for JSON.

  Args:
    cell: the cell of every layer.
    params: the model's weights.
    tokens: the text, integers [N].
    pieces: the text that each token adds.
    blobs: takes the arrays; the header refers to them by number.

  Returns:
    A dictionary. "constant" names the features that do not vary in this text:
    only the others, "features", have scores. "next" is what `_next_tokens`
    returns.
    Each layer has "signals", the values of its units at each token
    (`pack_signal`), and "paths", the norms of the gradient of each prediction
    with respect to the states of the last "window" time steps (`pack_path`).

  Raises:
    ValueError: a part of the cell's state is not a vector [H]; or a state or a
      logit is infinite or NaN.
  """
  for name, value in cell.initial_state(params.layers[0])._asdict().items():
    if value.ndim != 1:
      raise ValueError(
        f"a page shows states that are vectors, got {name} {list(value.shape)}"
      )
  layers, logits = trace_layers(cell, params, jnp.asarray(tokens))
  _check_finite([logits, *(s for layer in layers for s in layer.states)])
  paths = gradient_paths(cell, params, layers, tokens, WINDOW)
  values = {feature.name: feature.of_pieces(pieces) for feature in FEATURES}
  varying = {n: v for n, v in values.items() if varies(v)}
  return {
    "pieces": pieces,
    "tokens": blobs.add(tokens.astype("<u4")),
    "window": WINDOW,
    "features": [
      {"name": name, "measure": measure(v)} for name, v in varying.items()
    ],
    "constant": [name for name in values if name not in varying],
    "next": _next_tokens(logits, tokens, blobs),
    "layers": [
      {
        "signals": [
          pack_signal(
            name,
            np.asarray(signal).T,
            [*varying.values()],
            blobs,
            signed=not is_gate(cell, name),
          )
          | {"meaning": meaning(cell, name)}
          for name, signal in signals(cell, layer).items()
        ],
        "paths": [
          pack_path(name, norms, blobs)
          for name, norms in path._asdict().items()
        ],
      }
      for layer, path in zip(layers, paths, strict=True)
    ],
  }


def _check_finite(values: list[jax.Array]) -> None:
  """Raise ValueError if an array [N, K] of a model has an infinity or a NaN."""
  finite = np.all([jnp.isfinite(v).all(axis=1) for v in values], axis=0)
  if not finite.all():
    raise ValueError(
      "a page shows finite states and predictions, and the model's are "
      f"infinite or NaN from token {finite.argmin() + 1:,} of the text on"
    )


def pack_signal(
  name: str,
  values: np.ndarray,
  features: list[np.ndarray],
  blobs: Blobs,
  *,
  signed: bool,
) -> dict[str, Any]:
  """Return the header of a signal, whose values become a blob, a byte each.

  Args:
    name: the signal's letter, such as "c".
    values: the signal of each unit at each token, [H, N].
    features: the features [N] with which each unit is scored.
    blobs: takes the bytes.
    signed: False for a gate, whose values are in [0, 1].
  """
  if signed:
    levels, scale = quantize_signed(values)
  else:
    levels, scale = quantize_gate(values), np.ones(len(values))
  return {
    "name": name,
    "signed": signed,
    "scale": scale.tolist(),
    "scores": [
      scores(levels, feature).round(4).tolist() for feature in features
    ],
    "blob": blobs.add(levels),
  }


def pack_path(name: str, norms: np.ndarray, blobs: Blobs) -> dict[str, Any]:
  """Return the header of gradient norms [N, W], which become a blob of bytes.

  Column k is of the state k time steps earlier. A norm that is infinite or NaN
  is stored as the largest finite norm, or as 1 if no finite norm is above 0: a
  larger value would push the others off the scale.
  """
  largest = float(norms[np.isfinite(norms)].max(initial=0.0)) or 1.0
  norms = np.nan_to_num(norms, nan=largest, posinf=largest)
  levels, low, high = quantize_norms(norms)
  return {"name": name, "low": low, "high": high, "blob": blobs.add(levels)}


def _next_tokens(
  logits: jax.Array, tokens: np.ndarray, blobs: Blobs
) -> dict[str, int]:
  """Return the header of the distributions of the next token.

  "count" is K. The others are numbers of blobs: "tokens", the K likeliest at
  each position, uint32 [N, K]; their "probabilities" in units of 1 / 65,535,
  uint16 [N, K]; and "actual", the probability of the text's own next token,
  float32 [N − 1].
  """
  count = min(TOP_TOKENS, logits.shape[-1])
  top_logits, top_tokens = jax.lax.top_k(logits, count)
  total = jax.nn.logsumexp(logits, axis=-1)
  probabilities = np.exp(np.asarray(top_logits - total[:, None]))
  log_p = logits[np.arange(len(tokens) - 1), tokens[1:]] - total[:-1]
  return {
    "count": count,
    "tokens": blobs.add(np.asarray(top_tokens).astype("<u4")),
    "probabilities": blobs.add(np.rint(65535 * probabilities).astype("<u2")),
    "actual": blobs.add(np.exp(np.asarray(log_p)).astype("<f4")),
  }
