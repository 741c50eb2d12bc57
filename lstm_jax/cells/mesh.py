"""Hand-derived gradients for arrays on a mesh of devices.

The type of a JAX array says how the array is sharded, in two ways. A custom VJP
must return cotangents with the types of its primals.

Under `jax.shard_map` (manual axes), the type says over which mesh axes the
value varies: a shard of the batch varies over `data`, replicated weights over
none. The gradient of the weights, computed from one shard of the batch, varies
as the batch does, and only its sum over the devices is replicated again.
`vary_alike` casts the weights to varying before they reach the custom VJP: then
the cotangents have the right types, and the transpose of the cast is that sum,
taken once for the whole sequence.

On a mesh with explicit axes, the type holds the sharding of every axis, and an
operation whose output sharding is ambiguous must be given one. `auto_sharded`
leaves all operations inside a function to the compiler's partitioner, as on a
mesh with automatic axes, and states only the shardings of the results.

Without a mesh, neither function changes anything.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

Tree = TypeVar("Tree")


def vary_alike(tree: Tree) -> Tree:
  """Cast the arrays of a tree to vary over all axes that any varies over."""
  leaves = jax.tree.leaves(tree)
  # `mat`, the manual axis type, has the axes that a value varies over.
  axes = frozenset().union(*(jax.typeof(x).mat.varying for x in leaves))

  def cast(x):
    missing = tuple(sorted(axes - jax.typeof(x).mat.varying))
    return lax.pcast(x, missing, to="varying") if missing else x

  return jax.tree.map(cast, tree) if axes else tree


def leading_sharding(x: jax.Array, count: int) -> NamedSharding:
  """Return the sharding of arrays that share the first `count` axes of x.

  Their other axes are replicated.
  """
  sharding = jax.typeof(x).sharding
  spec = PartitionSpec(*sharding.spec[:count])
  return NamedSharding(sharding.mesh, spec)


def batch_sharding(
  params: Any, state: Any, x: jax.Array, start: int = 0
) -> NamedSharding:
  """Return the sharding of arrays [*B, ...] on the explicit mesh, if any.

  The batch axes are sharded as in x, or as in state.h if x shards none of them.

  Args:
    params: the weights and any other arrays, such as a mask. They may be the
      only arrays on an explicit mesh.
    state: a cell's state, with h [*B, H].
    x: an array [..., *B, ...].
    start: the number of axes of x before the batch.
  """
  # Use h alone: other arrays of the state may have more axes after the batch.
  h = state.h
  leaves = x, h, *jax.tree.leaves(params)
  meshes = [jax.typeof(leaf).sharding.mesh for leaf in leaves]
  mesh = next((m for m in meshes if m.explicit_axes), meshes[0])
  batch = jax.typeof(x).sharding.spec[start : start + jnp.ndim(h) - 1]
  if not any(batch):
    batch = jax.typeof(h).sharding.spec[:-1]
  return NamedSharding(mesh, PartitionSpec(*batch))


def auto_sharded(f: Callable, out_sharding: Any) -> Callable:
  """Return f, computed with automatic axes on a mesh that has explicit ones.

  Args:
    f: a function of trees of arrays.
    out_sharding: one sharding for each result, for all arrays of that result.
  """
  axes = jax.tree.leaves(out_sharding)[0].mesh.explicit_axes
  if not axes:
    return f
  return jax.sharding.auto_axes(f, axes=axes, out_sharding=out_sharding)
