"""The norm of a model's weights or of their gradient, whole and by part."""

from typing import Any

import jax
import optax

from lstm_jax.cells.precision import upcast
from lstm_jax.language.model import LanguageParams


def global_norm(tree: Any) -> jax.Array:
  """Return the Euclidean norm over all arrays, [], in float32 or wider."""
  return optax.tree.norm(upcast(tree))


def part_norms(tree: LanguageParams) -> dict[str, jax.Array]:
  """Return the Euclidean norm of each part of a model, [].

  Args:
    tree: weights, or anything of the same structure, such as their gradient.

  Returns:
    The norms of "embedding", "layer1", "layer2", ... from the lowest, and
    "readout": its weights and bias, or its bias alone if it is tied; in float32
    or wider.
  """
  parts: dict[str, Any] = {"embedding": tree.embedding}
  parts |= {f"layer{n}": layer for n, layer in enumerate(tree.layers, start=1)}
  parts["readout"] = tree.readout, tree.bias
  return {name: global_norm(part) for name, part in parts.items()}
