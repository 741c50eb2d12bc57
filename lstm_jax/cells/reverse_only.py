"""Say what to do where forward mode meets a gradient by hand.

A custom VJP has no forward mode, and JAX's error does not say what this library
has instead. `reverse_only` is the identity, and its tangent is the identity to
transposition (reverse mode), but an error to evaluation (forward mode).

  >>> import jax
  >>> f = lambda x: reverse_only(x, "no forward mode") ** 2
  >>> float(jax.grad(f)(3.0))
  6.0
"""

from typing import TypeVar

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Tree = TypeVar("Tree")


def reverse_only(tree: Tree, message: str) -> Tree:
  """Return tree as it is; its forward-mode derivative is a TypeError.

  Forward mode of a gradient by reverse mode, as in `jax.hessian`, is none.
  """
  leaves, structure = jax.tree.flatten(tree)
  return jax.tree.unflatten(
    structure, [_identity.bind(leaf, message=message) for leaf in leaves]
  )


def _jvp(primals, tangents, *, message):
  (x,), (dx,) = primals, tangents
  if isinstance(dx, ad.Zero):
    return x, dx
  return x, _tangent.bind(dx, message=message)


def _refuse(*_, message, **__):
  raise TypeError(message)


def _itself(x, **_):
  return x


_identity, _tangent = Primitive("reverse_only"), Primitive("reverse_only_dx")
for primitive in (_identity, _tangent):
  primitive.def_abstract_eval(_itself)
  batching.defvectorized(primitive)
_identity.def_impl(_itself)
_tangent.def_impl(_refuse)
mlir.register_lowering(_identity, lambda _, x, **__: [x])
mlir.register_lowering(_tangent, _refuse)
ad.primitive_jvps[_identity] = _jvp
ad.deflinear2(_tangent, lambda ct, _, **__: [ct])
