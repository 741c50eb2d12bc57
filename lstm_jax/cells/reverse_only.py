"""An identity that raises an error with a given message in forward mode.

A function with a custom VJP has no forward mode, and JAX's error does not say
what to use instead. `reverse_only`, applied to the arguments of such a
function, returns them unchanged, and passes their tangents through an operation
of its own. All that reverse mode does with this operation is to transpose it,
and the transpose is the identity. Forward mode evaluates, compiles or batches
the operation, and each of these raises the error.

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
  """Return a pytree unchanged; its forward-mode derivative raises TypeError.

  Forward mode over reverse mode, as in `jax.hessian`, raises no error: it
  differentiates the forward and backward of the custom VJP, and these are
  ordinary JAX functions.

  Args:
    tree: a pytree of arrays.
    message: the text of the error.
  """
  leaves, structure = jax.tree.flatten(tree)
  # One operation for all arrays, as one call of the custom VJP takes them all.
  # For ∂²L/∂w∂x by forward mode in x over reverse mode in w, reverse mode then
  # differentiates both. An operation of x alone would be left to forward mode.
  return jax.tree.unflatten(structure, _identity.bind(*leaves, message=message))


def _jvp(primals, tangents, *, message):
  return list(primals), [
    dx if isinstance(dx, ad.Zero) else _tangent.bind(dx, message=message)
    for dx in tangents
  ]


def _batch(xs, dims, *, message):
  return _identity.bind(*xs, message=message), dims


def _raise(*_, message, **__):
  raise TypeError(message)


def _same(*xs, **_):
  return list(xs)


_identity, _tangent = Primitive("reverse_only"), Primitive("reverse_only_dx")
_identity.multiple_results = True
_identity.def_abstract_eval(_same)
_identity.def_impl(_same)
mlir.register_lowering(_identity, lambda _, *xs, **__: xs)
batching.primitive_batchers[_identity] = _batch
ad.primitive_jvps[_identity] = _jvp
_tangent.def_abstract_eval(lambda dx, **_: dx)
_tangent.def_impl(_raise)
mlir.register_lowering(_tangent, _raise)
# JAX, too, refuses to batch tangents of a custom VJP, but with another error.
batching.primitive_batchers[_tangent] = _raise
ad.deflinear2(_tangent, lambda ct, _, **__: [ct])
