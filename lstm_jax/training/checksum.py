"""Checksums: the SHA-256 of each array or shard, and of a JSON value.

An array has one checksum, by its name. An array that is split over devices has
one for each of its shards, by the name and the slice of the array that the
shard holds: "params.layers.0.w_h[0:64,0:512]".
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def json_checksum(value: Any) -> str:
  """Return the SHA-256 of a JSON value; the order of its keys does not matter.

  Keys count as the strings that JSON makes of them.
  """
  text = json.dumps(json.loads(json.dumps(value)), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def array_checksums(trees: Mapping[str, Any]) -> dict[str, str]:
  """Return the SHA-256 of the bytes of each array, or of each of its shards.

  All processes must call it, since each has shards that the others need. The
  checksum of an array that every device holds whole is that of process 0.

  Args:
    trees: trees of arrays. A tree's key is the first part of the names of its
      arrays: those of the tree "params" are named "params.embedding",
      "params.layers.0.w_h", ...

  Raises:
    ValueError: two arrays have the same name.
  """
  checksums = {}
  for name, leaf in named_leaves(trees).items():
    if is_whole(leaf):
      if jax.process_index() == 0:
        checksums[name] = _checksum(leaf)
      continue
    for shard in leaf.addressable_shards:
      if shard.replica_id == 0:
        ranges = zip(shard.index, leaf.shape, strict=True)
        index = ",".join("{}:{}".format(*s.indices(n)) for s, n in ranges)
        checksums[f"{name}[{index}]"] = _checksum(shard.data)
  return _union_of_processes(checksums)


def find_damaged(
  trees: Mapping[str, Any], checksums: Mapping[str, str]
) -> str | None:
  """Return the name of an array that does not match its checksums or lacks one.

  Bytes alone are compared, not dtypes; the shapes must be those of the saved
  arrays. An array without elements needs no checksum.

  Args:
    trees: trees of whole arrays, with keys as in `array_checksums`.
    checksums: from `array_checksums` of trees with the same keys, whatever the
      shards were; checksums of other trees are ignored.

  Returns:
    The name of one such array; None if all arrays match.
  """
  leaves = {n: np.asarray(leaf) for n, leaf in named_leaves(trees).items()}
  # Elements that no checksum has covered yet.
  missing = {name: leaf.size for name, leaf in leaves.items()}
  for entry, checksum in checksums.items():
    name, _, index = entry.removesuffix("]").rpartition("[")
    if entry in leaves:  # a whole array, whose own name may end in brackets
      name, index = entry, ""
    if name not in leaves:
      continue
    ranges = (part.split(":") for part in index.split(",") if part)
    part = leaves[name][tuple(slice(int(a), int(b)) for a, b in ranges)]
    if _checksum(part) != checksum:
      return name
    missing[name] -= part.size
  return next((name for name, size in missing.items() if size), None)


def is_whole(leaf: Any) -> bool:
  """Return whether every device of an array, if it has any, holds all of it."""
  return not isinstance(leaf, jax.Array) or leaf.is_fully_replicated


def _checksum(leaf: Any) -> str:
  return hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest()


def _union_of_processes(own: dict[str, str]) -> dict[str, str]:
  """Return the entries of all processes."""
  if jax.process_count() == 1:
    return own
  text = np.frombuffer(json.dumps(own).encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.int32(text.size))
  padded = np.zeros(sizes.max(), np.uint8)
  padded[: text.size] = text
  rows = multihost_utils.process_allgather(padded)
  union: dict[str, str] = {}
  for row, size in zip(np.asarray(rows), sizes, strict=True):
    union |= json.loads(row[:size].tobytes())
  return union


def named_leaves(tree: Any) -> dict[str, Any]:
  """Return the leaves by their paths, such as "layers.0.w_x".

  Raises:
    ValueError: two leaves have the same path, as in {"a.b": x, "a": {"b": y}}.
  """
  named: dict[str, Any] = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    name = jax.tree_util.keystr(path, simple=True, separator=".")
    if name in named:
      raise ValueError(
        f"two arrays have the name {name}: dots join the keys of a path"
      )
    named[name] = leaf
  return named
