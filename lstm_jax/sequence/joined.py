"""A tree of arrays joined to fewer: a GPU needs one kernel to store each."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class _Place(NamedTuple):
  """Where an array of the tree lies in the arrays of `Joined`."""

  kind: str  # key into `arrays`, made of its dtype and leading axes
  start: int  # along the last axis
  stop: int
  is_scalar: bool  # without a last axis


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Joined:
  """A tree of arrays [..., K], as one array [..., ΣK] for each kind.

  Arrays are of one kind if they have the same dtype and the same leading axes.
  """

  arrays: dict[str, jax.Array]
  structure: Any = dataclasses.field(metadata={"static": True})
  places: tuple[_Place, ...] = dataclasses.field(metadata={"static": True})

  def __getitem__(self, index: int) -> "Joined":
    """Return one element of a joined tuple, still in the same arrays."""
    children = self.structure.children()
    first = sum(child.num_leaves for child in children[:index])
    last = first + children[index].num_leaves
    return Joined(self.arrays, children[index], self.places[first:last])


def join(tree: Any) -> Joined:
  """Return the arrays of a tree, joined along their last axis."""
  leaves, structure = jax.tree.flatten(tree)
  groups: dict[str, list[jax.Array]] = {}
  stops: dict[str, int] = {}
  places = []
  for leaf in leaves:
    vector = jnp.atleast_1d(leaf)
    kind = f"{leaf.dtype} {vector.shape[:-1]}"
    start = stops.get(kind, 0)
    stops[kind] = start + vector.shape[-1]
    groups.setdefault(kind, []).append(vector)
    places.append(_Place(kind, start, stops[kind], leaf.ndim == 0))
  arrays = {kind: jnp.concatenate(group, -1) for kind, group in groups.items()}
  return Joined(arrays, structure, tuple(places))


def separate(ys: Any) -> Any:
  """Return the tree that was joined; any other tree as it is."""
  if not isinstance(ys, Joined):
    return ys
  leaves = []
  for kind, start, stop, is_scalar in ys.places:
    leaf = lax.slice_in_dim(ys.arrays[kind], start, stop, axis=-1)
    leaves.append(leaf[..., 0] if is_scalar else leaf)
  return jax.tree.unflatten(ys.structure, leaves)
