"""Calls of a function that `jax.vmap` maps by a rule of their own.

Such a call is an operation of its own in a program. `vmap` replaces it by what
the rule returns, also where JAX traces the call first and maps it later, as
within `jit`, a scan or the backward of a custom VJP. To compile or evaluate the
operation, and in general to differentiate or transpose it, JAX takes the
program of the function.

`jax.custom_batching.custom_vmap` is not enough: its rule does not get the
`spmd_axis_name` of `vmap`, and it has no derivative in reverse mode.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

from lstm_jax.cells.platform import platform, traced_for

# (axis, leaves, dims, **params) -> (the leaves of the outputs, their dims): as
# JAX's `batching.fancy_primitive_batchers`, with the params of `call`. `axis`
# is JAX's `AxisData`, with the size of `vmap`'s axis. `dims` says where this
# axis is in each leaf: None for a leaf that is not mapped.
Rule = Callable[..., tuple[Any, Any]]


class Operation(Primitive):
  """An operation whose program `checkify` looks into.

  It does so where the parameter that has the program is called `call_jaxpr`.
  Then it calls `bind` with a function, the program with checks, in `subfuns`.
  """

  def bind(self, *args, subfuns=(), **params):
    """Return the leaves of the outputs."""
    if subfuns:
      return subfuns[0].call_wrapped(*args)
    return super().bind(*args, **params)


def operation(name: str, rule: Rule) -> Operation:
  """Return an operation that `vmap` maps by a rule, if it maps an input."""

  def map_it(axis, leaves, dims, **params):
    if any(dim is not None for dim in dims):
      return rule(axis, leaves, dims, **params)
    outputs = made.bind(*leaves, **params)
    return outputs, [None] * len(outputs)

  made = Operation(name)
  made.multiple_results = True
  made.def_impl(_evaluate)
  made.def_abstract_eval(lambda *_, call_jaxpr, **__: call_jaxpr.out_avals)
  mlir.register_lowering(made, mlir.lower_fun(_evaluate))
  ad.primitive_jvps[made] = _jvp
  ad.primitive_transposes[made] = _transpose
  batching.fancy_primitive_batchers[made] = map_it
  return made


def call(operation: Operation, run: Callable, *inputs: Any, **params: Any):
  """Return `run(*inputs)`, as an operation.

  It is not one where `run` has effects, uses the name of an axis or closes over
  a traced value: JAX then maps `run` itself. Nor is it with `jax.disable_jit`,
  so that a cell can print its values.

  Args:
    operation: what `operation` returned.
    run: the function; its inputs and outputs are trees of arrays.
    inputs: its inputs.
    params: further parameters of the operation. Its rule gets these and three
      more: `run`, with the precision and the platform of this call; the tree
      of the inputs, `structure`; and `run` as a program, `call_jaxpr`. If one
      is named `plain`, JAX differentiates and transposes that function, not the
      program.
  """
  config: Any = jax.config
  if config.jax_disable_jit:
    return run(*inputs)
  program, shapes = jax.make_jaxpr(run, return_shape=True)(*inputs)
  # The name of an axis is an effect. `vmap` could not map a traced value that
  # `run` closes over, since it is no argument.
  closed_over = any(isinstance(c, jax.core.Tracer) for c in program.consts)
  if closed_over or program.effects:
    return run(*inputs)
  leaves, structure = jax.tree.flatten(inputs)
  outputs = operation.bind(
    *leaves,
    call_jaxpr=program,
    run=in_this_context(run),
    structure=structure,
    **params,
  )
  return jax.tree.unflatten(jax.tree.structure(shapes), outputs)


def from_leaves(run: Callable, structure: Any) -> Callable:
  """Return `run` from the leaves of its inputs to those of its outputs."""
  return lambda *leaves: jax.tree.leaves(
    run(*jax.tree.unflatten(structure, leaves))
  )


def mapped_over(axis: Any, run: Callable, structure: Any, dims, places):
  """Return `jax.vmap` of `run` from its leaves, over the axis that a rule gets.

  Args:
    axis: of `vmap`.
    run: the function.
    structure: the tree of its inputs.
    dims: where the axis is in each leaf of the inputs.
    places: where it is in each leaf of the outputs.
  """
  return jax.vmap(
    from_leaves(run, structure),
    dims,
    places,
    axis_size=axis.size,
    spmd_axis_name=axis.spmd_name,
  )


def in_this_context(run: Callable) -> Callable:
  """Return `run` with the precision and the platform of this call.

  `vmap` calls it later, when their contexts have been left. Others, such as
  `jax.enable_x64`, are not kept.
  """
  config: Any = jax.config
  precision, name = config.jax_default_matmul_precision, platform()

  def in_context(*inputs):
    with jax.default_matmul_precision(precision), traced_for(name):
      return run(*inputs)

  return in_context


def _evaluate(*leaves, call_jaxpr, **_):
  return jaxpr_as_fun(call_jaxpr)(*leaves)


def _jvp(primals, tangents, **params):
  # The inputs that have a tangent.
  moved = [k for k, t in enumerate(tangents) if not isinstance(t, ad.Zero)]
  return jax.jvp(
    _of_some(primals, moved, **params),
    [primals[k] for k in moved],
    [tangents[k] for k in moved],
  )


def _transpose(cotangents, *operands, **params):
  """Return the cotangents of the inputs in which the function is linear.

  They are those of its VJP at 0. JAX cannot transpose the function itself where
  a value in it is chosen by whether an input is finite (`sequence.linear`).
  """
  linear = [k for k, x in enumerate(operands) if ad.is_undefined_primal(x)]
  zeros = [ad.zeros_like_aval(operands[k].aval) for k in linear]
  _, vjp = jax.vjp(_of_some(operands, linear, **params), *zeros)
  transposed = vjp([ad.instantiate_zeros(d) for d in cotangents])
  found = dict(zip(linear, transposed, strict=True))
  return [found.get(k) for k in range(len(operands))]


def _of_some(leaves, places, *, call_jaxpr, structure, plain=None, **_):
  """Return what is differentiated, as a function of the leaves at some places.

  That is `plain`, if the operation has it, and otherwise its program.
  """
  program = from_leaves(plain, structure) if plain else jaxpr_as_fun(call_jaxpr)

  def run(*values):
    given = dict(zip(places, values, strict=True))
    return program(*(given.get(k, leaf) for k, leaf in enumerate(leaves)))

  return run
