"""`jax.vmap` over rows that share their weights: one more batch axis.

JAX maps a custom VJP by mapping its forward and its backward. The backward then
makes the gradients of the weights of each row, [V, D, 4H] for V rows and an
LSTM, and JAX adds them up afterwards. Over a batch axis, the products of the
backward add them up themselves.

So a call of such a function is an operation of its own (`cells.operation`),
`shared_rows`, within `vmap`, and within a function that JAX traces and may map
later, such as the body of a scan. `vmap` replaces this operation by a call of
the function with one more batch axis.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import find_top_trace

from lstm_jax.cells.operation import call, mapped_over, operation

Run = Callable[[Any, Any, jax.Array, Any], tuple[Any, Any]]


def over_batch(
  run: Run, start: int, params: Any, state: Any, x: jax.Array, extras: Any
) -> tuple[Any, Any]:
  """Return `run(params, state, x, extras)`; an axis of `vmap` is a batch axis.

  This is so where `vmap` maps x and none of the weights, and is applied before
  the gradient is taken: in `grad` of `vmap` of `unroll`, for example, also with
  `jit`, `checkpoint` or a scan between the two. Elsewhere, JAX maps `run`. So
  it does where a cell has effects, uses the name of an axis or closes over a
  traced value, where `vmap` has an `spmd_axis_name`, and where the state has an
  array without axes, such as a counter, which may be one for all rows.

  Args:
    run: returns (state, outputs) for any number of batch axes. The outputs are
      an array, or (), with as many axes before the batch as x.
    start: that number of axes: 1 for a sequence, 0 for a time step.
    params: the weights.
    state: a cell's state, with h [..., H].
    x: inputs [*start, ..., D], or tokens [*start, ...].
    extras: a tree of arrays [*start, ...], or [*start, ..., K] with axes of
      size 1 for what is repeated.
  """
  inputs = params, state, x, extras
  if not _may_be_mapped() or not all(map(jnp.ndim, jax.tree.leaves(state))):
    return run(*inputs)
  return call(_shared_rows, run, *inputs, start=start)


def _may_be_mapped() -> bool:
  """Return whether `vmap`, or tracing, is the innermost transformation.

  Within a derivative, each row that a later `vmap` maps has its own gradient.
  """
  return type(find_top_trace(())) in _traces()


@cache
def _traces() -> tuple[type, ...]:
  """Return the types that JAX has for tracing a function, and for `vmap`."""
  found: list[type] = []

  def record(_):
    found.append(type(find_top_trace(())))

  one = jax.ShapeDtypeStruct((1,), bool)
  jax.eval_shape(record, one)
  jax.eval_shape(jax.vmap(record), one)
  return tuple(found)


def _batch(axis, leaves, dims, **params):
  """Return the results for mapped leaves, and where `vmap`'s axis is in each.

  In the state, this axis is the first; in the outputs, the first after time.
  """
  # `run`, not the program: outside of `jit`, the program could be evaluated
  # operation by operation, while `unroll` compiles what its `run` calls.
  run, start, structure = (params[k] for k in ("run", "start", "structure"))
  are_mapped = [dim is not None for dim in dims]
  leaves = [
    x if dim is None else jnp.moveaxis(x, dim, 0)
    for x, dim in zip(leaves, dims, strict=True)
  ]
  state = jax.tree.unflatten(structure, leaves)[1]
  of_params, _, of_x, _ = jax.tree.unflatten(structure, are_mapped)
  num_state = len(jax.tree.leaves(state))
  num_outputs = len(params["call_jaxpr"].out_avals)
  places = [0] * num_state + [start] * (num_outputs - num_state)
  if any(jax.tree.leaves(of_params)) or not of_x or axis.spmd_name is not None:
    first = [0 if is_mapped else None for is_mapped in are_mapped]
    return mapped_over(axis, run, structure, first, places)(*leaves), places
  inputs = _with_batch_axis(axis.size, leaves, are_mapped, start, structure)
  return jax.tree.leaves(over_batch(run, start, *inputs)), places


def _with_batch_axis(size, leaves, are_mapped, start, structure):
  """Return (params, state, x, extras), where `vmap`'s axis is a batch axis.

  Args:
    size: of that axis.
    leaves: of these four, with the axis first in those that are mapped.
    are_mapped: which are; x is, and no weights are.
    start: the number of axes before the batch in x and the extras.
    structure: the tree of the leaves.
  """
  params, state, x, extras = jax.tree.unflatten(structure, leaves)
  _, of_state, _, of_extras = jax.tree.unflatten(structure, are_mapped)

  def in_state(x, is_mapped):
    return x if is_mapped else jnp.broadcast_to(x, (size, *x.shape))

  state = jax.tree.map(in_state, state, of_state)

  def in_extras(x, is_mapped):
    if is_mapped:
      return jnp.moveaxis(x, 0, start)
    # A mask has no axis K. (h has the new batch axis already, x has not.)
    is_mask = x.ndim + 1 < start + state.h.ndim
    shape = [*x.shape[:start], size if is_mask else 1, *x.shape[start:]]
    return jnp.broadcast_to(jnp.expand_dims(x, start), shape)

  extras = jax.tree.map(in_extras, extras, of_extras)
  return params, state, jnp.moveaxis(x, 0, start), extras


_shared_rows = operation("shared_rows", _batch)
