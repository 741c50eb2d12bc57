"""The kernels, compiled for an H100 on a machine that may have no GPU.

Registers and spills are those that NVIDIA's compiler reports.
"""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from experiments.benchmarks.launches import compile_for_h100
from lstm_jax import unroll
from lstm_jax.mosaic_gpu import limits
from lstm_jax.sequence.implementation import COUNTS
from tests import draws
from tests.interpreting import NEEDS_CUDA, NEEDS_KERNELS
from tests.mosaic_gpu.layers import ALL_CELLS, CELLS, CLUSTER, DTYPES, ONE_BLOCK

pytestmark = [NEEDS_KERNELS, NEEDS_CUDA]

T, B, D = 3, 16, 8
# Only the tests that read reports have this T: a kernel that this process has
# compiled before is not reported again.
T_OF_REPORTS = T + 1
SIZES = sorted(
  {
    (name, size, index)
    for name in CELLS
    for index in range(len(DTYPES))
    for size in (64, ONE_BLOCK[name][index], CLUSTER[name][index])
  }
)


def shapes(cell, hidden, steps=T):
  """Return shapes: (params, state, xs) in float32, flags in bool [2, T, B]."""
  sizes = {"steps": steps, "batch": (B,), "size": D, "hidden": hidden}
  arguments = draws.shapes(cell, **sizes, dtype=jnp.float32)
  return *arguments, jax.ShapeDtypeStruct((2, steps, B), bool)


def loss_of(cell, **options):
  """Return a loss: the sum of squares of the outputs and of the last state."""

  def loss(params, state, xs, flags=None):
    masks = {} if flags is None else {"mask": flags[0], "reset": flags[1]}
    outputs = unroll(
      cell, params, state, xs, implementation="mosaic_gpu", **masks, **options
    )
    return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(outputs))

  return loss


def compile_gradient(loss, arguments, batched=lambda gradient: gradient):
  program, _ = compile_for_h100(batched(jax.grad(loss, (0, 1, 2))), *arguments)
  return program.as_text()


def count_kernels(text):
  assert not re.search(r"\bwhile\(", text)
  return len(re.findall(r'custom_call_target="mosaic_gpu', text))


@pytest.fixture
def reports(capfd, monkeypatch):
  """Have the compiler print a report on each kernel.

  Returns a function, which returns what was printed since it was last called.
  """
  # Without MOSAIC_GPU_DUMP_TO: that writes more, which takes most of the time.
  monkeypatch.setenv("MOSAIC_GPU_DUMP_PTXAS", "1")
  monkeypatch.setenv("MOSAIC_GPU_DUMP_RESOURCES", "1")
  return lambda: capfd.readouterr().out


def find(pattern, text):
  """Return the number that the pattern finds in the report of each kernel."""
  return [int(number) for number in re.findall(pattern, text)]


def most_rows(counts, plan, itemsize):
  """Return for how many sequences a block has shared memory and registers."""
  room = limits.SHARED_BYTES - limits.RESERVED_BYTES
  fitting = [
    n
    for n in (8, 16, 32)
    if n <= counts.max_rows
    and limits.shared_bytes(counts, plan._replace(rows=n), itemsize) <= room
  ]
  return max(fitting)


@pytest.mark.parametrize("rows", ["fewest", "most"])
@pytest.mark.parametrize(("name", "hidden", "index"), SIZES)
def test_no_register_is_spilled(
  name, hidden, index, rows, reports, monkeypatch
):
  cell, dtype = CELLS[name], jnp.dtype(DTYPES[index])
  *arguments, flags = shapes(cell, hidden, T_OF_REPORTS)
  if rows == "most":  # and masks and resets, which take registers too
    # Without multiprocessors, blocks never all run at once: each then has the
    # most sequences that fit.
    monkeypatch.setattr(limits, "MULTIPROCESSORS", 0)
    arguments.append(flags)
  counts = COUNTS[cell]
  plan = limits.divide(counts, hidden, B, dtype.itemsize)
  assert plan.units == hidden
  assert plan.rows == (
    most_rows(counts, plan, dtype.itemsize) if rows == "most" else 8
  )
  assert (plan.cluster > 1) == (hidden > ONE_BLOCK[name][index])
  text = compile_gradient(loss_of(cell, compute_dtype=dtype), arguments)
  assert count_kernels(text) == 2
  report = reports()
  assert find(r"(\d+) bytes spill stores", report) == [0, 0]
  registers = find(r"Used (\d+) registers", report)
  shared = find(r"smem_scratch_bytes=(\d+)", report)
  assert len(registers) == len(shared) == 2
  # The registers of a block's threads are at most those of a multiprocessor.
  assert max(registers) * plan.warpgroups * 128 <= 65_536
  assert max(shared) == limits.shared_bytes(counts, plan, dtype.itemsize)


def test_more_sequences_of_an_lstm_would_spill(reports, monkeypatch):
  monkeypatch.setattr(limits, "MULTIPROCESSORS", 0)
  more = limits.LSTM._replace(max_rows=2 * limits.LSTM.max_rows)
  monkeypatch.setitem(COUNTS, CELLS["lstm"], more)
  *arguments, _ = shapes(CELLS["lstm"], 128, T_OF_REPORTS)
  loss = loss_of(CELLS["lstm"], compute_dtype=jnp.bfloat16)
  assert count_kernels(compile_gradient(loss, arguments)) == 2
  assert max(find(r"(\d+) bytes spill stores", reports())) > 0


@ALL_CELLS
def test_vmap_of_grad_is_two_kernels(name):
  cell = CELLS[name]
  *arguments, _ = shapes(cell, 64)
  text = compile_gradient(
    loss_of(cell), arguments, lambda f: jax.vmap(f, (None, 0, 1))
  )
  assert count_kernels(text) == 2


@ALL_CELLS
@pytest.mark.parametrize("parts", ["block", "cluster"])
def test_an_ensemble_is_two_kernels(name, parts):
  cell = CELLS[name]
  *arguments, _ = shapes(
    cell, 64 if parts == "block" else CLUSTER[name][1]
  )  # float32
  stacked = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((3, *x.shape), x.dtype), arguments
  )
  assert count_kernels(compile_gradient(loss_of(cell), stacked, jax.vmap)) == 2


@ALL_CELLS
def test_on_each_device_of_a_mesh_there_are_two_kernels(name):
  cell = CELLS[name]
  mesh = AbstractMesh((1,), ("device",), axis_types=(AxisType.Auto,))
  rows = PartitionSpec(None, "device")
  loss = loss_of(cell)
  mapped = jax.shard_map(
    lambda *args: jax.lax.psum(loss(*args), "device"),
    mesh=mesh,
    in_specs=(PartitionSpec(), PartitionSpec("device"), rows),
    out_specs=PartitionSpec(),
  )
  *arguments, _ = shapes(cell, 64)
  assert count_kernels(compile_gradient(mapped, arguments)) == 2
