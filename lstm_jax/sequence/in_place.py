"""A scan over time whose new rows are written over the old ones.

A row is what an array [T, ...] holds of one time step. `lax.scan` allocates an
array of zeros for its outputs and writes the new rows there. The rows of
`scan_in_place` (projected inputs in the forward pass, gates in the backward pass)
are the largest array of a sequence, so it overwrites them in place. How depends
on the device (`cells.platform`).

Its derivative, for the gradient of a gradient, is that of `lax.scan`. That of a
loop which carries the array of rows would add such an array at every step: time
that grows as T². (In forward mode over a gradient it would be faster by a
third, but a rule cannot know which of both follows.)
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lstm_jax.cells.mesh import vary_alike
from lstm_jax.cells.platform import is_cpu

GPU_STEPS = 4  # time steps of one iteration of the loop for GPUs
MOST_UNROLLED = 4  # with at most so many time steps, a CPU needs no loop


def scan_in_place(
  f: Callable,
  operands: Any,
  carry: Any,
  rows: jax.Array,
  xs: Any,
  reverse: bool,
) -> tuple[Any, jax.Array, Any]:
  """Scan f over rows and xs, with each new row written over the old one.

  Computes `lax.scan` of (carry, (row, x)) -> (carry, (row, y)).

  Args:
    f: (operands, carry, row, x) -> (carry, new row of the same shape, y). It
      must close over no array.
    operands: a tree of arrays, the same at every step.
    carry: the carry before the first step.
    rows: [T, ...].
    xs: a tree of arrays [T, ...], or None.
    reverse: from the last step to the first.

  Returns:
    (carry after the last step, new rows [T, ...], ys); `separate` gives the
    tree of ys, or of one step of it.
  """
  steps = rows.shape[0]  # a symbolic T has no len
  few = isinstance(steps, int) and steps <= MOST_UNROLLED
  on_cpu = is_cpu()  # now: the rule may be traced later
  if not on_cpu:
    scan = _scan_with_few_kernels
  else:
    scan = _scan_unrolled if few else _scan_without_copies

  @jax.custom_jvp
  def run(operands, carry, rows, xs):
    return scan(partial(f, operands), carry, rows, xs, reverse)

  @run.defjvp
  def run_jvp(primals, tangents):
    def plain(operands, carry, rows, xs):
      return _scan_plainly(
        partial(f, operands), carry, rows, xs, reverse, joins=not on_cpu
      )

    # The values are those of `run`, not of `plain`: under `vmap`, JAX takes the
    # batch axes of both rules to be the same, and those of `plain` are not.
    return run(*primals), jax.jvp(plain, primals, tangents)[1]

  return run(operands, carry, rows, xs)


def _scan_plainly(f, carry, rows, xs, reverse, joins):
  """Scan as `scan_in_place` does, by `lax.scan`; its derivative takes time ∝ T."""

  def body(carry, inputs):
    carry, row, y = f(carry, *inputs)
    return carry, (row.astype(rows.dtype), join(y) if joins else y)

  carry, (rows, ys) = lax.scan(body, carry, (rows, xs), reverse=reverse)
  return carry, rows, ys


def _scan_unrolled(f, carry, rows, xs, reverse):
  """Scan as `scan_in_place` does, without a loop.

  It takes the few time steps of a chunk (`checkpointing`) or of an iteration. A
  loop would first write zeros to its outputs, and copy its row and its carry at
  every step.
  """
  steps = len(rows)
  made: list[Any] = [None] * steps
  for t in range(steps)[:: -1 if reverse else 1]:
    x = jax.tree.map(itemgetter(t), xs)
    carry, row, y = f(carry, rows[t], x)
    made[t] = row.astype(rows.dtype), y
  return carry, *jax.tree.map(lambda *each: jnp.stack(each), *made)


def _scan_without_copies(f, carry, rows, xs, reverse):
  """Scan as `scan_in_place` does; XLA never copies the array of rows.

  Each row is read one step early, after the previous write: if a step read its
  own row, XLA might order the read after the write, and copy all T rows at
  every step.
  """
  steps = rows.shape[0]  # a symbolic T has no len
  first, ahead = (-1, -1) if reverse else (0, 1)

  def row_at(rows, t):
    return lax.dynamic_index_in_dim(rows, t.clip(0, steps - 1), keepdims=False)

  def body(carry, inputs):
    (carry, row, rows), (t, x) = carry, inputs
    carry, row, y = f(carry, row, x)
    row = row.astype(rows.dtype)
    rows = lax.dynamic_update_index_in_dim(rows, row, t, 0)
    return (carry, row_at(rows, t + ahead), rows), y

  carry = carry, rows[first], rows
  inputs = jnp.arange(steps), xs
  (carry, _, rows), ys = lax.scan(body, carry, inputs, reverse=reverse)
  return carry, rows, ys


def _scan_with_few_kernels(f, carry, rows, xs, reverse):
  """Scan as `scan_in_place` does, with few kernels a time step.

  One iteration of the loop takes several time steps, and stores the results of
  all of them at once. Each array that is stored takes a kernel, so all of y is
  one array. It is written in place, as the rows are: as an output of `lax.scan`
  it would be reshaped after the loop, and the GRU then takes 4 MiB more at H
  512, T 64, B 32.

  XLA for GPUs computes values of one shape in one kernel, so the new row is cut
  into pieces as wide as the carry. The barrier keeps it from computing them
  again in the kernel that stores them, which would read the rows that it
  overwrites. The carry is not behind the barrier: what the next time step makes
  of it, such as h in the dtype of a product, is computed in the same kernel.
  """
  steps = rows.shape[0]  # a symbolic T has no len
  size = min(GPU_STEPS, steps) if isinstance(steps, int) else 1
  rest = steps % size
  width = max(leaf.shape[-1] for leaf in jax.tree.leaves(carry))

  def few_kernels(carry, row, x):
    carry, row, y = f(carry, row, x)
    cuts = range(width, row.shape[-1], width)
    pieces = jnp.split(row.astype(rows.dtype), list(cuts), axis=-1)
    pieces, y = lax.optimization_barrier((pieces, y))
    return carry, jnp.concatenate(pieces, axis=-1), join(y)

  def run(carry, rows, start, size):
    """Return (carry, new rows, ys) of the time steps from `start` on."""
    rows, inputs = jax.tree.map(
      lambda x: lax.dynamic_slice_in_dim(x, start, size), (rows, xs)
    )
    return _scan_unrolled(few_kernels, carry, rows, inputs, reverse)

  def body(state, start, size=size):
    carry, *stored = state
    carry, *new = run(carry, stored[0], start, size)
    stored = jax.tree.map(
      lambda x, part: lax.dynamic_update_slice_in_dim(x, part, start, 0),
      stored,
      new,
    )
    return (carry, *stored), None

  _, _, y = jax.eval_shape(partial(run, size=1), carry, rows, 0)
  ys = jax.tree.map(lambda y: jnp.zeros((steps, *y.shape[1:]), y.dtype), y)
  state = carry, *vary_alike((rows, ys))
  rest_start, main_start = (steps - rest, 0) if reverse else (0, rest)
  if rest:  # T mod `size` time steps, too few for an iteration, come first
    state, _ = body(state, rest_start, rest)
  starts = jnp.arange(main_start, main_start + steps - rest, size)
  state, _ = lax.scan(body, state, starts, reverse=reverse)
  return state


class _Place(NamedTuple):
  """Where an array lies in those of `Joined`."""

  kind: str  # its dtype and leading axes
  start: int  # along the last axis
  stop: int
  is_scalar: bool  # without a last axis


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Joined:
  """A tuple of trees of arrays [..., K], as one [..., ΣK] for each kind.

  Arrays are of one kind if they have the same dtype and the same leading axes.
  """

  arrays: dict[str, jax.Array]
  structure: Any = dataclasses.field(metadata={"static": True})
  places: tuple[_Place, ...] = dataclasses.field(metadata={"static": True})

  def __getitem__(self, index: int) -> "Joined":
    """Return an element of the tuple, in the same arrays."""
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
