"""An identity that decides where `jax.vmap` puts its axis.

A function with a custom gradient has a body, which JAX computes where nothing
is differentiated, and a forward rule, which it computes elsewhere. Under `grad`
of `vmap` of `jit`, jax 0.10 to 0.12 assume that the results of both have their
mapped axes at the same places. Where the places differ, axes are exchanged:
this raises an error if the axes differ in size, and otherwise gives wrong
numbers. So body and rule pass their results through `aligned`, which puts every
mapped axis at the same place inside the program. What `vmap` returns stays the
same:

  >>> import jax, jax.numpy as jnp
  >>> x = jnp.ones((7, 2))
  >>> jax.vmap(lambda x: aligned(x, 1, x), in_axes=1, out_axes=1)(x).shape
  (7, 2)
"""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Tree = TypeVar("Tree")


def aligned(tree: Tree, axis: int, inputs: Any) -> Tree:
  """Return a pytree unchanged, with `vmap`'s axis at one place in all arrays.

  Args:
    tree: a pytree of arrays, computed from the inputs.
    axis: where `vmap` puts its axis in each array. An array that does not
      depend on what is mapped is repeated along it.
    inputs: a pytree of all arrays that the tree may depend on.
  """
  leaves, structure = jax.tree.flatten(tree)
  operands = *leaves, *jax.tree.leaves(inputs)
  return jax.tree.unflatten(
    structure, _aligned.bind(*operands, axis=axis, count=len(leaves))
  )


def _first(*operands, axis, count):
  del axis
  return list(operands[:count])


def _jvp(primals, tangents, *, axis, count):
  return _aligned.bind(*primals, axis=axis, count=count), tangents[:count]


def _transpose(cotangents, *operands, axis, count):
  """Return the cotangents of the leaves; the inputs have none.

  `jax.linear_transpose` of a backward needs this. There the leaves, and the
  inputs that tell what is mapped, can be cotangents.
  """
  del axis
  others = [None] * (len(operands) - count)
  pairs = zip(operands, [*cotangents, *others], strict=True)
  return [d if ad.is_undefined_primal(x) else None for x, d in pairs]


def _batch(operands, mapped_axes, *, axis, count):
  """Move the mapped axis of each of the first `count` operands to `axis`.

  An operand without a mapped axis is repeated along a new one.
  """
  mapped = zip(operands, mapped_axes, strict=True)
  size = next(x.shape[n] for x, n in mapped if n is not None)

  def moved(x, mapped_axis):
    if mapped_axis is not None:
      return jnp.moveaxis(x, mapped_axis, axis)
    shape = *x.shape[:axis], size, *x.shape[axis:]
    return jnp.broadcast_to(jnp.expand_dims(x, axis), shape)

  leaves = map(moved, operands[:count], mapped_axes[:count])
  operands = *leaves, *operands[count:]
  # Bound again, for a `vmap` around this one.
  return _aligned.bind(*operands, axis=axis, count=count), [axis] * count


_aligned = Primitive("aligned_batch_axes")
_aligned.multiple_results = True
_aligned.def_impl(_first)
_aligned.def_abstract_eval(_first)
ad.primitive_jvps[_aligned] = _jvp
ad.primitive_transposes[_aligned] = _transpose
batching.primitive_batchers[_aligned] = _batch
mlir.register_lowering(_aligned, lambda _, *xs, **how: _first(*xs, **how))
