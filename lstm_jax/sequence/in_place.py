"""A scan over time whose results are written over its inputs, step by step.

`lax.scan` allocates an array of zeros for its outputs, and writes the results
of each step there. `scan_in_place` overwrites zs [T, ...], the largest array of
a sequence: the projected inputs in the forward pass, the gates in the backward
pass. How it does so depends on the device (`cells.platform`).

Its derivative, for the gradient of a gradient, is that of `lax.scan`. In
reverse mode, the derivative of a loop that carries zs would add an array
[T, ...] at every step, in a time that grows as T². In forward mode over a
gradient that loop would be faster by a third, but a JVP rule cannot know
whether its result will be transposed.

With `may_share`, a loop is `lax.scan` as well where `vmap` maps other inputs,
but not zs, which would be copied for each row first. In the backward pass, the
rows of a Jacobian by `jacrev` share the gates.
"""

from collections.abc import Callable
from functools import partial
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lstm_jax.cells.mesh import vary_alike
from lstm_jax.cells.operation import (
  call,
  in_this_context,
  mapped_over,
  operation,
)
from lstm_jax.cells.platform import is_cpu
from lstm_jax.sequence.batch_axes import aligned
from lstm_jax.sequence.joined import join

GPU_STEPS = 4  # time steps of one iteration of a GPU's loop
MOST_UNROLLED = 4  # time steps that a CPU runs without a loop, at most


def scan_in_place(
  f: Callable,
  operands: Any,
  carry: Any,
  zs: jax.Array,
  xs: Any,
  reverse: bool,
  may_share: bool = False,
) -> tuple[Any, jax.Array, Any]:
  """Scan f over zs and xs, with each new z written over the old one.

  Computes `lax.scan` of (carry, (z, x)) -> (carry, (z, y)).

  Args:
    f: (operands, carry, z, x) -> (carry, new z of the same shape, y). It must
      close over no array.
    operands: a tree of arrays, the same at every step.
    carry: the carry before the first step.
    zs: [T, ...], T ≥ 1.
    xs: a tree of arrays [T, ...], or None.
    reverse: True to scan from the last step to the first.
    may_share: whether the rows of a `vmap` that does not map zs read the same
      zs, by `lax.scan`. If not, JAX copies zs for each row: in a forward pass,
      whose results are arrays for each row anyway, that is faster.

  Returns:
    (carry after the last step, new zs [T, ...], ys). `separate(ys)` is the tree
    of arrays [T, ...]; `separate` of one time step of ys is that step's y.
  """
  steps = zs.shape[0]  # a symbolic T has no len
  few = isinstance(steps, int) and steps <= MOST_UNROLLED
  # Asked here: JAX may trace `run_jvp` later, outside of `traced_for`.
  on_cpu = is_cpu()
  if not on_cpu:
    scan = _scan_with_few_kernels
  else:
    scan = _scan_unrolled if few else _scan_without_copies

  def overwriting(operands, carry, zs, xs):
    return scan(partial(f, operands), carry, zs, xs, reverse)

  def plain(operands, carry, zs, xs):
    return _scan_plainly(
      partial(f, operands), carry, zs, xs, reverse, joins=not on_cpu
    )

  # Counted here, since JAX keeps `scanned` with the program, and traced arrays
  # that it names as well: `jax.checking_leaks` refuses them.
  num_carried = len(jax.tree.leaves(carry))
  index = len(jax.tree.leaves(operands)) + num_carried

  def scanned(*inputs):
    if scan is _scan_unrolled or not may_share:
      return overwriting(*inputs)
    return call(
      _scan_in_place,
      overwriting,
      *inputs,
      plain=in_this_context(plain),
      index=index,
      num_carried=num_carried,
    )

  @jax.custom_jvp
  def run(*inputs):
    last, *each = scanned(*inputs)
    return aligned(last, 0, inputs), *aligned(each, 1, inputs)

  @run.defjvp
  def run_jvp(primals, tangents):
    # The values are those of `run`, not of `plain`: under `vmap`, JAX takes the
    # batch axes of the body and of this rule to be the same (`batch_axes`).
    return run(*primals), jax.jvp(plain, primals, tangents)[1]

  return run(operands, carry, zs, xs)


def _batch(
  axis, leaves, dims, *, run, plain, index, num_carried, structure, call_jaxpr
):
  """Return the results for mapped leaves, and where `vmap`'s axis is in each.

  Args:
    axis: of `vmap`.
    leaves: of the inputs of `scan_in_place`.
    dims: where the axis is in each of them.
    run: the scan that overwrites zs.
    plain: a scan that does not, for zs that are not mapped.
    index: which of the leaves zs are.
    num_carried: how many arrays the carry has.
    structure: the tree of the leaves.
    call_jaxpr: the program of `run`.
  """
  num_outputs = len(call_jaxpr.out_avals)
  places = [0] * num_carried + [1] * (num_outputs - num_carried)  # T is first

  def mapped(f):
    return mapped_over(axis, f, structure, dims, places)

  if dims[index] is None:
    return mapped(plain)(*leaves), places
  # An operation again, for a `vmap` around this one.
  where = {"index": index, "num_carried": num_carried}
  run, plain = mapped(run), mapped(plain)
  return call(_scan_in_place, run, *leaves, plain=plain, **where), places


_scan_in_place = operation("scan_in_place", _batch)


def _scan_plainly(f, carry, zs, xs, reverse, joins):
  """Scan as `scan_in_place` does, by `lax.scan`, whose derivative is O(T).

  With `joins`, ys are `Joined`, as those of `_scan_with_few_kernels` are.
  """

  def body(carry, inputs):
    carry, z, y = f(carry, *inputs)
    return carry, (z.astype(zs.dtype), join(y) if joins else y)

  carry, (zs, ys) = lax.scan(body, carry, (zs, xs), reverse=reverse)
  return carry, zs, ys


def _scan_unrolled(f, carry, zs, xs, reverse):
  """Scan as `scan_in_place` does, without a loop, over a few time steps.

  zs holds only these steps: those of a chunk (`checkpointing`), of another
  short sequence, or of one iteration of `_scan_with_few_kernels`. The results
  are new arrays: nothing is overwritten here. A loop would first write zeros to
  its outputs, and copy z and the carry at every step.
  """
  steps = len(zs)
  made: list[Any] = [None] * steps
  for t in range(steps)[:: -1 if reverse else 1]:
    x = jax.tree.map(itemgetter(t), xs)
    carry, z, y = f(carry, zs[t], x)
    made[t] = z.astype(zs.dtype), y
  return carry, *jax.tree.map(lambda *each: jnp.stack(each), *made)


def _scan_without_copies(f, carry, zs, xs, reverse):
  """Scan as `scan_in_place` does; XLA never copies zs.

  Each step writes its z, and then reads the z of the next step into the carry.
  If a step read its own z, XLA might order the read after the write, and copy
  all of zs at every step.
  """
  steps = zs.shape[0]  # a symbolic T has no len
  first, ahead = (-1, -1) if reverse else (0, 1)

  def z_at(zs, t):
    return lax.dynamic_index_in_dim(zs, t.clip(0, steps - 1), keepdims=False)

  def body(carry, inputs):
    (carry, z, zs), (t, x) = carry, inputs
    carry, z, y = f(carry, z, x)
    zs = lax.dynamic_update_index_in_dim(zs, z.astype(zs.dtype), t, 0)
    return (carry, z_at(zs, t + ahead), zs), y

  carry = carry, zs[first], zs
  inputs = jnp.arange(steps), xs
  (carry, _, zs), ys = lax.scan(body, carry, inputs, reverse=reverse)
  return carry, zs, ys


def _scan_with_few_kernels(f, carry, zs, xs, reverse):
  """Scan as `scan_in_place` does, with few kernels a time step.

  One iteration of the loop takes several time steps, and stores the results of
  all of them at once. Each array that is stored takes a kernel, so the arrays
  of y are joined (`joined`). They are written in place, as zs is: as outputs of
  `lax.scan` they would be reshaped after the loop, and the GRU would take 4 MiB
  more at H 512, T 64, B 32 (compiled for an H100).

  XLA for GPUs computes values of one shape in one kernel, so the new z is cut
  into pieces as wide as the carry. The barrier keeps XLA from computing them
  again in the kernel that stores them, which would read what it overwrites. The
  carry does not pass through the barrier, so the same kernel can prepare it for
  the next time step, such as by a cast of h to the dtype of a product.
  """
  steps = zs.shape[0]  # a symbolic T has no len
  size = GPU_STEPS if isinstance(steps, int) else 1
  if isinstance(steps, int) and steps < 2 * GPU_STEPS:
    # One iteration takes all steps. With a rest before one iteration, XLA in
    # jax 0.10 compiles a wrong program if this loop is run on a CPU, as the
    # tests do (the gradient of slstm over 6 or 7 time steps).
    size = steps
  rest = steps % size
  # Without a batch, an array of the state other than h may have no axis.
  width = max(leaf.shape[-1] for leaf in jax.tree.leaves(carry) if leaf.ndim)

  def few_kernels(carry, z, x):
    carry, z, y = f(carry, z, x)
    cuts = range(width, z.shape[-1], width)
    pieces = jnp.split(z.astype(zs.dtype), list(cuts), axis=-1)
    pieces, y = lax.optimization_barrier((pieces, y))
    return carry, jnp.concatenate(pieces, axis=-1), join(y)

  def run(carry, zs, start, size):
    """Return (carry, new zs, ys) of the time steps from `start` on."""
    zs, inputs = jax.tree.map(
      lambda x: lax.dynamic_slice_in_dim(x, start, size), (zs, xs)
    )
    return _scan_unrolled(few_kernels, carry, zs, inputs, reverse)

  def body(state, start, size=size):
    carry, *stored = state
    carry, *new = run(carry, stored[0], start, size)
    stored = jax.tree.map(
      lambda x, part: lax.dynamic_update_slice_in_dim(x, part, start, 0),
      stored,
      new,
    )
    return (carry, *stored), None

  _, _, y = jax.eval_shape(partial(run, size=1), carry, zs, 0)
  ys = jax.tree.map(lambda y: jnp.zeros((steps, *y.shape[1:]), y.dtype), y)
  state = carry, *vary_alike((zs, ys))
  rest_start, main_start = (steps - rest, 0) if reverse else (0, rest)
  if rest:  # T mod `size` time steps, too few for an iteration, come first
    state, _ = body(state, rest_start, rest)
  starts = jnp.arange(main_start, main_start + steps - rest, size)
  state, _ = lax.scan(body, state, starts, reverse=reverse)
  return state
