"""Kernel launches per time step, in the programs that XLA compiles for a GPU.

A recurrence on a GPU waits for launches: a kernel takes microseconds to start,
and a time step has little to compute. XLA compiles for an H100 on a machine
that has none, and writes down a program's thunks, its commands to the GPU. A
count is the number of launches in one iteration of the forward or of the
backward loop, divided by the time steps of an iteration. It includes the two
launches of the loop itself, for its condition and its counter. Where a command
buffer (a CUDA graph) holds all of an iteration but the condition, the driver
launches the buffer as a whole.

Nothing runs on a GPU, so nothing is timed here. XLA chooses the kernels of
matrix products by a heuristic where it has no device to time them on.
"""

import re
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from experiments.benchmarks.layers import LAYERS, ours
from experiments.benchmarks.sequences import layer_gradient
from experiments.benchmarks.tables import Row
from experiments.benchmarks.timing import make_peers
from experiments.trainer.config import CELLS
from lstm_jax.cells.platform import traced_for

# What XLA has to know of the device: an H100 with 80 GB.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448 threads_per_core_limit: 2048
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: 3352320000000
  l2_cache_size: 52428800 device_memory_size: 84929347584
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 28 patch: 1 }
runtime_version { major: 13 minor: 1 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
DTYPES = {"float32": None, "bfloat16": jnp.bfloat16}
# The thunks that are launches, and the number of iterations of a loop in the
# text of a compiled program.
KERNEL = re.compile(r"k(CustomKernel|Kernel|Gemm|CublasLtMatmul|Copy)\b")
ITERATIONS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


class Loop(NamedTuple):
  """One iteration of a loop over time."""

  launches: int
  in_graph: bool  # whether a command buffer holds all but the condition


def count(
  cell: str, sizes: dict[str, int], dtype: str
) -> tuple[list[Row], dict[str, str]]:
  """Count the launches of the gradient of one layer.

  Args:
    cell: a name in CELLS.
    sizes: hidden_size, seq_len and batch_size; `parts.check_sizes` says which
      seq_len is allowed.
    dtype: a name in DTYPES: the dtype of the operands of our matrix products.
      Other libraries are counted only if it is float32.

  Returns:
    (rows, skipped): the results of each library, and why others have none.

  Raises:
    ValueError: JAX's CUDA packages are not installed.
  """
  size = sizes["hidden_size"]
  weights = CELLS[cell].init(jax.random.key(0), size, size)
  layers: dict[str, Any] = {
    "lstm_jax": ours(cell, weights, compute_dtype=DTYPES[dtype])
  }
  skipped: dict[str, str] = {}
  if dtype == "float32":
    others = {name: made for name, made in LAYERS.items() if name != "lstm_jax"}
    peers, skipped = make_peers(others, cell, weights)  # type: ignore[arg-type]
    layers |= peers
  rows = []
  shape = sizes["seq_len"], sizes["batch_size"], size
  xs = jax.ShapeDtypeStruct(shape, jnp.float32)
  for name, layer in layers.items():
    program, thunks = compile_for_h100(
      layer_gradient(layer), layer.params, xs, xs
    )
    # The first loop is the forward's, the last the backward's.
    loops = read_loops(thunks)
    if not loops:  # such as jax.experimental.rnn on a GPU, which calls cuDNN
      skipped[name] = "it has no loop over time"
      continue
    steps = read_steps(program.as_text(), sizes["seq_len"])
    rows.append(
      {
        "peer": name,
        "forward_launches": loops[0].launches / steps[0],
        "forward_in_graph": loops[0].in_graph,
        "backward_launches": loops[-1].launches / steps[-1],
        "backward_in_graph": loops[-1].in_graph,
        "temporary_bytes": program.memory_analysis().temp_size_in_bytes,
      }
    )
  return rows, skipped


def compile_for_h100(f: Any, *arguments: Any) -> tuple[Any, str]:
  """Return a function compiled for an H100, and the text of its thunks.

  Raises:
    ValueError: JAX's CUDA packages are not installed.
  """
  from jax.experimental import topologies

  try:
    topology = topologies.get_topology_desc(
      platform="cuda", target_config=H100, topology="1x1x1"
    )
  except Exception as error:  # of the plugin, or of its absence
    raise ValueError(
      "--part=launches needs JAX's CUDA packages (a GPU is not needed): "
      "JAX_PLATFORMS=cpu uv run --extra cuda python -m experiments.benchmark "
      f"--part=launches ({error})"
    ) from None
  mesh = topologies.make_mesh(topology, (1,), ("device",))
  sharding = NamedSharding(mesh, PartitionSpec())
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
    arguments,
  )
  with tempfile.TemporaryDirectory() as directory:
    with traced_for("cuda"):
      lowered = jax.jit(f).lower(*shapes)
    program = lowered.compile(compiler_options={"xla_dump_to": directory})
    files = list(Path(directory).glob("*.thunk_sequence*.txt"))
    # Later passes make the command buffers: prefer the file written after them.
    last = max(files, key=lambda path: "after_thunk_passes" in path.name)
    return program, last.read_text()


def read_steps(program: str, seq_len: int) -> list[int]:
  """Return the time steps of one iteration of each loop of a program.

  They must divide seq_len: time steps outside of the loop are not seen.
  """
  return [seq_len // int(n) for n in ITERATIONS.findall(program)]


def read_loops(thunks: str) -> list[Loop]:
  """Return the loops of a program, from the text of its thunks.

  Each line is a thunk, indented below the one that contains it: a loop contains
  its condition and its body, and a command buffer its own thunks.
  """
  loops: list[Loop] = []
  lines = thunks.splitlines()
  for number, line in enumerate(lines):
    if "kWhile" not in line:
      continue
    inside = []
    for following in lines[number + 1 :]:
      if re.match(r"\d+: ", following):  # back at the program's own level
        break
      inside.append(following)
    body = inside[inside.index("  body:") + 1 :]
    top = [thunk for thunk in body if re.match(r" {4}\d+: ", thunk)]
    loops.append(
      Loop(
        launches=sum(bool(KERNEL.search(thunk)) for thunk in inside),
        in_graph=len(top) == 1 and "kCommandBuffer" in top[0],
      )
    )
  return loops
