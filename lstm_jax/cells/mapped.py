"""`jax.vmap` over rows that share their weights: one more batch axis.

JAX maps a custom VJP by mapping its forward and its backward. The backward then
makes the gradients of the weights of each row, [V, D, 4H] for V rows and an
LSTM, and JAX adds them up afterwards. Over a batch axis, the products of the
backward add them up themselves.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.extend.core import find_top_trace, jaxpr_as_fun

Run = Callable[[Any, Any, jax.Array, Any], tuple[Any, Any]]


def over_batch(
  run: Run, start: int, params: Any, state: Any, x: jax.Array, extras: Any
) -> tuple[Any, Any]:
  """Return `run(params, state, x, extras)`; an axis of `vmap` is a batch axis.

  This is so where `vmap` maps x and none of the weights, and is the innermost
  transformation: in `grad` of `vmap` of `unroll`, for example. Elsewhere, JAX
  maps `run`; so it does where `vmap` has an axis name, which a cell may use,
  where a cell closes over a value that `vmap` maps, and where the state has a
  number, which may be one for all rows.

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
  if not _is_mapped(x) or any(map(_is_mapped, jax.tree.leaves(params))):
    return run(*inputs)
  if not all(map(jnp.ndim, jax.tree.leaves(state))):
    return run(*inputs)
  closed, shapes = jax.make_jaxpr(run, return_shape=True)(*inputs)
  if any(map(_is_mapped, closed.consts)):
    return run(*inputs)

  @custom_vmap
  def mapped(*inputs):  # `run`, which need not be traced again
    outputs = jaxpr_as_fun(closed)(*jax.tree.leaves(inputs))
    return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

  @mapped.def_vmap
  def rule(size, are_mapped, params, state, x, extras):
    _, state_mapped, _, extras_mapped = are_mapped

    def in_state(x, is_mapped):
      return x if is_mapped else jnp.broadcast_to(x, (size, *x.shape))

    state = jax.tree.map(in_state, state, state_mapped)

    def in_extras(x, is_mapped):
      if is_mapped:
        return jnp.moveaxis(x, 0, start)
      is_mask = x.ndim + 1 < start + state.h.ndim  # it has no axis K
      shape = [*x.shape[:start], size if is_mask else 1, *x.shape[start:]]
      return jnp.broadcast_to(jnp.expand_dims(x, start), shape)

    x = jnp.moveaxis(x, 0, start)
    extras = jax.tree.map(in_extras, extras, extras_mapped)
    last, outputs = over_batch(run, start, params, state, x, extras)
    outputs = jax.tree.map(lambda y: jnp.moveaxis(y, start, 0), outputs)
    return (last, outputs), jax.tree.map(lambda _: True, (last, outputs))

  return mapped(*inputs)


def _is_mapped(x: Any) -> bool:
  """Return whether `vmap` maps x, has no axis name and is innermost."""
  kind, no_name = _unnamed()
  if not isinstance(x, kind) or getattr(x, "batch_dim", None) is None:
    return False
  innermost: Any = find_top_trace(())
  if _axis_name(innermost) is not no_name:
    return False
  # Each `vmap` has a tag; within a custom VJP, its trace may be another one.
  trace = getattr(x, "_trace", None)
  return getattr(trace, "tag", None) is getattr(innermost, "tag", x)


@cache
def _unnamed() -> tuple[type, Any]:
  """Return the type of a mapped array, and the name of an axis without one."""
  found: list[tuple[type, Any]] = []
  record = jax.vmap(lambda x: found.append((type(x), _axis_name(x._trace))))
  jax.eval_shape(record, jax.ShapeDtypeStruct((1,), bool))
  return found[0]


def _axis_name(trace: Any) -> Any:
  return getattr(getattr(trace, "axis_data", None), "name", trace)
