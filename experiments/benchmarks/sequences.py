"""One recurrent layer over a sequence: its outputs, or all its gradients.

With resets, it is the layer of a recurrent policy: episodes begin inside its
sequences. Our `unroll(..., reset=)` is compared with the usual code of
reinforcement learning, a cell in a scan that sets the carry to zero there.

Of an LSTM's gradients, the peak memory is measured too. For a compiled program
it is what XLA reserves for arguments (weights too), results and temporaries.
For PyTorch, always on the CPU, it is by how much the resident set of a separate
process grows while the gradients are computed; the weights exist before and are
not counted.
"""

import multiprocessing
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.layers import (
  LAYERS,
  LINEAR_LAYERS,
  Layer,
  as_tensor,
  autodiff,
  flax_scan,
  ours,
  torch_layer,
)
from experiments.benchmarks.timing import (
  Makers,
  Peer,
  compile_program,
  is_installed,
  make_peers,
  prove,
  tolerance,
)
from experiments.trainer.config import CELLS
from lstm_jax.sequence import Explicit

EPISODE_LENGTH = 32  # time steps, on average


class Problem(NamedTuple):
  """A layer, its inputs, and the expected outputs or gradients.

  The inputs have the layer's hidden size, D = H, as in the middle of a stack.
  The gradient is that of Σ hs ⊙ dhs with respect to weights and inputs.
  """

  cell: str
  backward: bool  # time all gradients; if False, the outputs alone
  weights: Any
  xs: jax.Array  # [T, B, H]
  dhs: jax.Array  # [T, B, H]
  starts: jax.Array | None  # of episodes, bool [T, B]; None for no resets
  expected: Any  # hs [T, B, H]; if backward, (d_weights, dxs)

  @property
  def inputs(self) -> list[jax.Array]:
    """What a program takes after the weights: xs, dhs if backward, starts."""
    given = self.xs, self.dhs if self.backward else None, self.starts
    return [array for array in given if array is not None]


def make_problem(
  cell: str,
  backward: bool,
  hidden_size: int,
  seq_len: int,
  batch_size: int,
  resets: bool = False,
) -> Problem:
  """Return the problem of these sizes, with random inputs.

  The expected results are those of our `unroll`, with products in float32. b is
  random, so that a peer with the gates of b in another order is found. The b_n
  of a GRU stays 0, because Flax's nnx cell has none.
  """
  keys = jax.random.split(jax.random.key(0), 4)
  weights = CELLS[cell].init(keys[0], hidden_size, hidden_size)
  noise = 0.1 * jax.random.normal(keys[1], weights.b.shape, jnp.float32)
  weights = weights._replace(b=weights.b + noise)
  shape = seq_len, batch_size, hidden_size
  xs, dhs = (jax.random.normal(k, shape, jnp.float32) for k in keys[2:])
  starts = None
  if resets:
    drawn = np.random.default_rng(0).random((seq_len, batch_size))
    starts = jnp.asarray(drawn < 1 / EPISODE_LENGTH)
  problem = Problem(cell, backward, weights, xs, dhs, starts, None)
  program = _program_of(ours(cell, weights), backward)
  with jax.default_matmul_precision("highest"):  # on a GPU, not TF32
    expected = jax.jit(program)(weights, *problem.inputs)
  return problem._replace(expected=expected)


def layer_gradient(layer: Layer) -> Callable:
  """Return (params, xs, dhs, ...) -> (d_params, dxs), gradients of Σ hs ⊙ dhs.

  What follows dhs is passed to the layer after xs.
  """

  def weighted_sum(params, xs, dhs, *starts):
    return jnp.sum(layer.apply(params, xs, *starts) * dhs)

  return jax.grad(weighted_sum, (0, 1))


def _program_of(layer: Layer, backward: bool) -> Callable:
  return layer_gradient(layer) if backward else layer.apply


def jax_peer(
  name: str,
  make_layer: Callable[[str, Any], Layer],
  allowed: float | None = None,
) -> Callable[[Problem], Peer]:
  """Return the function (problem) -> the peer of a JAX library's layer.

  Args:
    name: of the peer.
    make_layer: (cell, weights) -> the library's layer.
    allowed: relative error of its results; None for `tolerance()`.
  """

  def make(problem: Problem) -> Peer:
    layer = make_layer(problem.cell, problem.weights)
    f, expected = _program_of(layer, problem.backward), problem.expected
    if problem.backward:
      d_weights, dxs = expected
      expected = layer.convert(d_weights), dxs
    arguments = layer.params, *problem.inputs
    program, seconds, size = compile_program(f, *arguments)
    run = partial(program, *arguments)
    prove(name, run, expected, allowed or tolerance())
    return Peer(run, seconds, size)

  return make


def pytorch(
  problem: Problem,
  name: str = "pytorch",
  dtype: str = "float32",
  tf32: bool = True,
  allowed: float | None = None,
) -> Peer:
  """Return the peer of PyTorch's layer, run eagerly.

  If only outputs are timed, it runs under no_grad.

  Args:
    problem: without resets.
    name: of the peer.
    dtype: of weights, inputs and results.
    tf32: whether cuDNN may round float32 products to TF32.
    allowed: relative error of its results; None for `tolerance()`.
  """
  import torch

  torch_dtype = getattr(torch, dtype)
  layer = torch_layer(problem.cell, (problem.weights,)).to(torch_dtype)
  xs, dhs = (as_tensor(x).to(torch_dtype) for x in (problem.xs, problem.dhs))
  xs.requires_grad_(problem.backward)
  names = "weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"
  leaves = [getattr(layer, name) for name in names]

  def run():
    torch.backends.cudnn.allow_tf32 = tf32
    if problem.backward:
      return torch.autograd.grad(layer(xs)[0], [xs, *leaves], dhs)
    with torch.no_grad():
      return [layer(xs)[0]]

  def wait(tensors):
    if tensors[0].is_cuda:
      torch.cuda.synchronize()

  def results():
    first, *d_weights = (x.float().cpu().numpy() for x in run())
    if not problem.backward:
      return first
    dw_x, dw_h, db, db_h = d_weights
    # Our cells have one bias, and a GRU also b_n, the end of PyTorch's second.
    ends = [db_h[-len(db_h) // 3 :]] if problem.cell == "gru" else []
    return [dw_x.T, dw_h.T, db, *ends], first

  prove(name, results, problem.expected, allowed or tolerance())
  return Peer(run, wait=wait)


def jax_peers() -> Makers:
  """Return the makers of the JAX layers: ours, autodiff, other libraries'."""
  return {
    name: (jax_peer(name, make), package)
    for name, (make, package) in LAYERS.items()
  }


def sequences() -> Makers:
  """Return the makers of all layers."""
  return {**jax_peers(), "pytorch": (pytorch, "torch")}


def linear() -> Makers:
  """Return the makers of layers with a linear recurrence."""
  return {
    name: (jax_peer(name, make), package)
    for name, (make, package) in LINEAR_LAYERS.items()
  }


def reset_peers() -> Makers:
  """Return the makers of layers that reset their state."""
  # The forward saves states only; the backward computes the gates again.
  recompute = partial(ours, adjoint=Explicit(residuals="recompute"))
  return {
    "lstm_jax": (jax_peer("lstm_jax", ours), "jax"),
    "recompute": (jax_peer("recompute", recompute), "jax"),
    "autodiff": (jax_peer("autodiff", autodiff), "jax"),
    "flax scan": (jax_peer("flax scan", flax_scan), "flax"),
  }


def measure_memory(sizes: dict[str, Any]) -> tuple[list[dict], dict[str, str]]:
  """Return (rows, skipped) as `timing.compare` does, without times.

  Args:
    sizes: hidden_size, seq_len and batch_size.

  Raises:
    ValueError: a library computes a different result from ours.
  """
  problem = make_problem("lstm", True, **sizes)
  peers, skipped = make_peers(jax_peers(), problem)
  rows: list[dict[str, Any]] = [
    {"peer": name, "bytes": peer.bytes, "compile_s": peer.compile_s}
    for name, peer in peers.items()
  ]
  if not is_installed("torch"):
    skipped["pytorch"] = "torch is not installed"
    return rows, skipped
  context = multiprocessing.get_context("spawn")
  try:
    with ProcessPoolExecutor(1, context) as pool:
      size = pool.submit(torch_peak, sizes).result()
    rows.append({"peer": "pytorch", "bytes": size})
  # PyTorch is broken, its process was killed, or /proc cannot be read.
  except (ImportError, OSError, BrokenProcessPool) as error:
    skipped["pytorch"] = f"its peak memory cannot be measured: {error}"
  return rows, skipped


def torch_peak(sizes: dict[str, int]) -> int:
  """Return by how many bytes memory grows at most during the gradients.

  Raises:
    OSError: /proc does not tell, as outside of Linux and in some sandboxes.
  """
  import torch

  layer = torch.nn.LSTM(sizes["hidden_size"], sizes["hidden_size"])

  def gradient(seq_len: int) -> Any:
    shape = seq_len, sizes["batch_size"], sizes["hidden_size"]
    xs = torch.randn(shape, requires_grad=True)
    hs = layer(xs)[0]
    return torch.autograd.grad(hs, [xs, *layer.parameters()], torch.ones(shape))

  gradient(2)  # loads the libraries and starts the threads
  Path("/proc/self/clear_refs").write_text("5")  # resets the peak
  before = _resident("VmRSS")
  gradient(sizes["seq_len"])
  return _resident("VmHWM") - before


def _resident(field: str) -> int:
  """Return a field of /proc/self/status, in bytes."""
  status = Path("/proc/self/status").read_text()
  match = re.search(rf"{field}:\s+(\d+) kB", status)
  if not match:
    raise OSError(f"/proc/self/status has no {field}")
  return 1024 * int(match.group(1))
