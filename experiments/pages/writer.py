"""The page that `experiments.export --format=html` writes: a model that writes.

The page holds the model in 8-bit weights (`packed_model`), and computes
everything itself: cells.js has the forward pass of each cell, model.js that of
the model, sampling.js how a token is drawn, tokens.js the tokenizers, track.js
a text as the model reads it. The other scripts are the interface. writing.js,
units.js and controls.js are the first half of the page, where the model writes;
reading.js is the second, where it scores a text; view.js has what both show,
and page.js starts both.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np

from experiments.analysis.features import FEATURES, measure, scores, varies
from experiments.analysis.states import meaning, trace_layers
from experiments.pages.packed_model import (
  Cost,
  check_cost,
  describe_cost,
  num_weights,
  pack_model,
  recorded_cell,
)
from experiments.pages.packing import Blobs, quantize_signed
from experiments.trainer.data import default_prompt
from experiments.trainer.format import counted
from experiments.trainer.trained import Trained
from lstm_jax.language import LanguageParams

TEMPLATE = Path(__file__).with_suffix(".html")
MEASURED = 20_000  # tokens on which the cost of rounding is measured
TRACED = 5_000  # tokens on which the units are scored
EXCERPT = 240  # most characters of the text that the page scores at first


def make_page(trained: Trained, text: str, source: str) -> tuple[str, Cost]:
  """Return the page of a model, and what its 8-bit weights cost.

  Args:
    trained: the model, which `check_model` has passed.
    text: a split of the corpus, on which the cost is measured and the units are
      scored.
    source: where the text is from, for the page's line about the cost.

  Raises:
    ValueError: the text has fewer than two tokens, or rounding costs too much.
  """
  tokenizer, blobs = trained.tokenizer, Blobs()
  tokens = tokenizer.encode(text)[:MEASURED]
  packed, params, cost = pack_model(trained, tokens, blobs)
  check_cost(cost, tokenizer.unit)
  cell = trained.config.model.cell
  layers, follows = score_units(
    cell, params, tokens[:TRACED], tokenizer.pieces(tokens[:TRACED])
  )
  header = {
    "about": describe(trained),
    "cost": f"{describe_cost(cost, tokenizer)} of {source}.",
    "unit": tokenizer.unit,
    "symbols": list(tokenizer.symbols),
    "start": int(default_prompt(tokenizer)[0]),
    "excerpt": excerpt(text),
    "layers": layers,
    "follows": follows,
  }
  return blobs.page(TEMPLATE, packed | header), cost


def describe(trained: Trained) -> str:
  """Return a line about the model of a page."""
  cell, model = recorded_cell(trained), trained.config.model
  units = counted(model.hidden_size, "unit")
  steps = counted(trained.step, "training step")
  return (
    f"{cell}, {model.num_layers} × {units}, {num_weights(trained.params):,} "
    f"weights, after {steps}. The model is in this page, and runs in your "
    "browser."
  )


def score_units(
  cell: Any, params: LanguageParams, tokens: np.ndarray, pieces: list[str]
) -> tuple[list[list[dict[str, Any]]], list[dict[str, Any]]]:
  """Return the states of each layer, and which unit follows each feature best.

  A feature is a property of a text, such as the position in the line
  (`experiments.analysis.features`).

  Args:
    cell: the cell of every layer.
    params: the weights of the page.
    tokens: a text, int32 [N].
    pieces: the text of each token, [N].

  Returns:
    (layers, follows): of each layer, its states with each unit's largest
    magnitude; and of each feature that varies in the text, its best unit.
  """
  traces, _ = trace_layers(cell, params, tokens)
  values = {f.name: f.of_pieces(pieces) for f in FEATURES}
  varying = {name: value for name, value in values.items() if varies(value)}
  best: dict[str, dict[str, Any]] = {}
  layers = []
  for number, trace in enumerate(traces):
    states = []
    for name, state in trace.states._asdict().items():
      levels, largest = quantize_signed(np.asarray(state).T)
      states.append(
        {
          "name": name,
          "meaning": meaning(cell, name),
          "scale": [float(f"{v:.4g}") for v in largest],
        }
      )
      for feature, value in varying.items():
        score, kind = scores(levels, value), measure(value)
        # 0 for no relation, 1 for the strongest, by AUC as by r.
        strength = np.abs(2 * score - 1 if kind == "AUC" else score)
        unit = int(strength.argmax())
        if strength[unit] > best.get(feature, {"strength": 0})["strength"]:
          best[feature] = {
            "feature": feature,
            "measure": kind,
            "score": float(score[unit]),
            "strength": float(strength[unit]),
            "layer": number,
            "signal": name,
            "unit": unit,
          }
    layers.append(states)
  return layers, list(best.values())


def excerpt(text: str) -> str:
  """Return at most EXCERPT characters from near the beginning of a text.

  Blanks at the text's beginning do not count. The excerpt starts after the
  first line break of the text's first 2 EXCERPT characters, or else at the
  beginning. If more text follows, it is cut at the last line break in its
  second half, or else at the last space there, or else after EXCERPT
  characters.
  """
  text = text.strip()  # so that something follows each line break
  breaks = [m.end() for m in re.finditer(r"\n\n?", text[: 2 * EXCERPT])]
  start = min(breaks, default=0)
  part = text[start : start + EXCERPT + 1]
  if len(part) <= EXCERPT:
    return part
  ends = [part.rfind(space) for space in ("\n", " ")]
  end = next((end for end in ends if end > EXCERPT // 2), EXCERPT)
  return part[:end].rstrip()
