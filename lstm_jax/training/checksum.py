"""Checksums: the SHA-256 of each array and of a description."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


def text_checksum(description: Any) -> str:
  """Return the SHA-256 of a JSON value, whatever the order of its keys."""
  text = json.dumps(description, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def array_checksums(trees: Mapping[str, Any]) -> dict[str, str]:
  """Return the SHA-256 of each array's bytes, by the array's name."""
  return {
    name: hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest()
    for name, leaf in named_leaves(trees).items()
  }


def named_leaves(tree: Any) -> dict[str, Any]:
  """Return the leaves by their paths, such as "layers.0.w_x"."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  keystr = jax.tree_util.keystr
  return {keystr(k, simple=True, separator="."): leaf for k, leaf in leaves}
