"""The kernels under vmap and shard_map, without a gradient, and in two parts.

They are interpreted, and compared with the scan; the two parts of a sequence
are compared with kernels for the whole of it.
"""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, PartitionSpec

from lstm_jax import unroll
from tests.draws import weighed
from tests.interpreting import NEEDS_KERNELS, interpreted
from tests.mosaic_gpu.layers import (
  ALL_CELLS,
  CELLS,
  FLOAT32,
  B,
  agree,
  draw,
  errors,
)

pytestmark = [NEEDS_KERNELS, pytest.mark.usefixtures("threads")]

ARGNUMS = (0, 1, 2)
ROWS = PartitionSpec(None, "data")


def by_both(make, *arguments):
  """Return the results by the kernels and by the scan.

  Args:
    make: implementation -> the function that is called.
    *arguments: of that function.
  """
  with interpreted():
    found = jax.block_until_ready(jax.jit(make("mosaic_gpu"))(*arguments))
  return found, jax.jit(make(None))(*arguments)


def loss_of(cell, implementation):
  """Return the loss of `unroll` with random cotangents."""

  def run(params, state, xs):
    return unroll(cell, params, state, xs, implementation=implementation)

  return weighed(run, jax.random.key(2))


@ALL_CELLS
def test_outputs_without_a_gradient_equal_the_scan(name):
  hidden = 130 if name == "gru" else 40  # a GRU of 130 takes a cluster
  arguments = draw(CELLS[name], hidden=hidden)

  def outputs(implementation):
    return lambda *args: unroll(
      CELLS[name], *args, implementation=implementation
    )

  assert agree(*by_both(outputs, *arguments))


@ALL_CELLS
def test_vmap_of_grad_over_the_batch_equals_the_scan(name):
  def each(implementation):
    gradient = jax.grad(loss_of(CELLS[name], implementation), ARGNUMS)
    return jax.vmap(gradient, (None, 0, 1))

  assert agree(*by_both(each, *draw(CELLS[name], batch=(3,))))


@ALL_CELLS
def test_vmap_of_grad_over_an_ensemble_equals_the_scan(name):
  def each(implementation):
    gradient = jax.grad(loss_of(CELLS[name], implementation), ARGNUMS)
    return jax.vmap(gradient, (0, 0, None))

  params, state, xs = draw(CELLS[name])
  stacked = jax.tree.map(lambda x: jnp.stack([x, -x, x / 2]), (params, state))
  assert agree(*by_both(each, *stacked, xs))


@ALL_CELLS
def test_grad_of_shard_map_over_two_devices_equals_the_scan(name, monkeypatch):
  from jax._src.pallas.mosaic_gpu.interpret import shared_memory

  # The interpreter asserts at the end of a kernel that no device has a barrier
  # left, but the other device may still run its kernel.
  monkeypatch.setattr(
    shared_memory.GPUSharedMemory,
    "assert_no_barriers_allocated",
    lambda self: None,
  )
  mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))

  def sharded(implementation):
    loss = loss_of(CELLS[name], implementation)

    def total(*args):
      return jax.lax.psum(loss(*args), "data")

    mapped = jax.shard_map(
      total,
      mesh=mesh,
      in_specs=(PartitionSpec(), PartitionSpec("data"), ROWS),
      out_specs=PartitionSpec(),
    )
    return jax.grad(mapped, ARGNUMS)

  found, expected = by_both(sharded, *draw(CELLS[name], batch=(2 * B,)))
  assert agree(found, expected), errors(found, expected)


@pytest.mark.parametrize(
  ("name", "reverse"),
  [("lstm", False), ("gru", True), ("rnn", False), ("rnn", True)],
)
def test_unroll_over_t_is_unroll_over_its_two_parts(name, reverse):
  first = 2  # time steps of the part that is unrolled first
  options = {"reverse": reverse, "implementation": "mosaic_gpu"}
  cell = CELLS[name]

  def whole(params, state, xs):
    return unroll(cell, params, state, xs, **options)

  def parts(params, state, xs):
    cut = len(xs) - first if reverse else first
    halves = xs[:cut], xs[cut:]
    order = halves[::-1] if reverse else halves
    state, one = unroll(cell, params, state, order[0], **options)
    state, two = unroll(cell, params, state, order[1], **options)
    return state, jnp.concatenate([two, one] if reverse else [one, two])

  def gradient(f):
    scalar = weighed(f, jax.random.key(3))
    return jax.jit(jax.value_and_grad(scalar, ARGNUMS))

  arguments = draw(cell)
  with interpreted():
    found = jax.block_until_ready(gradient(parts)(*arguments))
    expected = jax.block_until_ready(gradient(whole)(*arguments))
  assert agree(found, expected, FLOAT32)
