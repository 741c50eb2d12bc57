"""PyTorch's layers on a GPU, which are cuDNN's.

They are timed in a process of their own, in which JAX has the CPU only: each
library brings its own cuDNN, and JAX would reserve the GPU's memory. Each layer
must first compute what our scan does on the CPU, for a short sequence.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.gpu.case import (
  LayerCase,
  Prepared,
  Result,
  reason,
)
from experiments.benchmarks.gpu.floor import find_device, layer_floor
from experiments.benchmarks.gpu.inputs import random_params, without_tf32
from experiments.benchmarks.gpu.timing import time_calls
from experiments.benchmarks.layers import ours
from experiments.benchmarks.proof import check_same, is_installed
from experiments.benchmarks.sequences import layer_gradient
from experiments.benchmarks.tables import Row
from experiments.benchmarks.torch_layer import torch_layer

PROOF = 8, 5  # T and B of the proof
# (dtype of everything, whether products may be in TF32, relative tolerance).
# In bfloat16, cuDNN's states are bfloat16 too, so that their errors add up.
VARIANTS = {
  "pytorch bfloat16": ("bfloat16", False, 5e-2),
  "pytorch TF32": ("float32", True, 1e-2),
  "pytorch float32": ("float32", False, 1e-4),
}


@dataclass(frozen=True)
class TorchLayer(LayerCase):
  """PyTorch's layer: its outputs alone, and all gradients."""

  rounds: int = 11

  kernels = frozenset[str]()
  needs_kernels = False

  @property
  def name(self) -> str:
    """The name of the case, as it is printed."""
    return f"pytorch {super().name}"

  def prepare(self, left_out: frozenset[str]) -> Prepared:
    """Return no programs: PyTorch compiles nothing."""
    del left_out
    return Prepared({}, lambda programs, errors: self._run())

  def _run(self) -> Result:
    if why := missing():
      return Result([], {"pytorch": why}, [])
    rng = np.random.default_rng(0)
    params = random_params(self.cell, self.hidden_size, self.hidden_size, rng)
    rows: list[Row] = []
    skipped: dict[str, str] = {}
    for mode in ("forward", "gradient"):
      calls = {}
      for name in VARIANTS:
        try:
          prove(self.cell, self.hidden_size, name)
          call = make_call(self.cell, params, name, mode, self._inputs())
          synchronize(call())
          calls[name] = call
        except Exception as error:
          # Too little memory, no kernel of a dtype, or other results than ours.
          skipped[name] = reason(error)
      times = time_calls(calls, synchronize, self.rounds, self.seq_len)
      rows += [self._row(name, mode) | row for name, row in times.items()]
    return Result(rows, skipped, [])

  def _inputs(self) -> tuple[Any, Any]:
    import torch

    shape = self.seq_len, self.batch_size, self.hidden_size
    generator = torch.Generator(gpu_or_cpu()).manual_seed(0)
    xs, dhs = (
      torch.randn(shape, generator=generator, device=gpu_or_cpu())
      for _ in range(2)
    )
    return xs, dhs

  def _row(self, name: str, mode: str) -> Row:
    dtype, tf32, _ = VARIANTS[name]
    device = find_device(device_name())
    backward, operands = mode == "gradient", "TF32" if tf32 else dtype
    size = 2 if dtype == "bfloat16" else 4  # bytes of every number
    return self.labels("gpu layer", mode) | {
      "peer": name,
      "operands": operands,
      "floor_us": layer_floor(
        device, self.cell, backward, operands, *self.sizes, size, size
      ),
    }


def gpu_or_cpu() -> str:
  """Return PyTorch's device: the GPU, or the CPU if it finds none."""
  import torch

  return "cuda" if torch.cuda.is_available() else "cpu"


def missing() -> str | None:
  """Return why PyTorch cannot be timed on a GPU; None if it can."""
  if not is_installed("torch"):
    return "torch is not installed"
  try:
    device = gpu_or_cpu()
  except (ImportError, OSError) as error:  # of a library that it needs
    return reason(error)
  return None if device == "cuda" else "PyTorch finds no GPU"


def make_call(
  cell: str, params: Any, name: str, mode: str, inputs: tuple[Any, Any]
) -> Callable[[], Any]:
  """Return a function that starts a layer's computation.

  Args:
    cell: lstm, gru or rnn.
    params: our weights, as NumPy arrays.
    name: one of VARIANTS.
    mode: "forward" for the outputs; "gradient" for the gradients of Σ hs ⊙ dhs
      with respect to xs and the weights.
    inputs: tensors (xs, dhs), [T, B, H].
  """
  import torch

  dtype, tf32, _ = VARIANTS[name]
  torch_dtype = getattr(torch, dtype)
  layer = torch_layer(cell, (params,)).to(gpu_or_cpu(), torch_dtype)
  xs, dhs = (x.to(torch_dtype) for x in inputs)

  def forward():
    torch.backends.cudnn.allow_tf32 = tf32
    with torch.no_grad():
      return layer(xs)[0]

  def gradient():
    torch.backends.cudnn.allow_tf32 = tf32
    return torch.autograd.grad(layer(xs)[0], [xs, *layer.parameters()], dhs)

  if mode == "forward":
    layer.eval()
    return forward
  xs.requires_grad_(True)
  return gradient


@lru_cache
def expected_results(cell: str, hidden_size: int) -> tuple[Any, ...]:
  """Return (params, xs, dhs, [hs and gradients of our scan]) of the proof."""
  rng = np.random.default_rng(1)
  params = random_params(cell, hidden_size, hidden_size, rng)
  shape = *PROOF, hidden_size
  xs, dhs = (rng.standard_normal(shape, np.float32) for _ in range(2))
  layer = ours(cell, jax.tree.map(jnp.asarray, params))
  d_params, dxs = jax.jit(without_tf32(layer_gradient(layer)))(
    layer.params, xs, dhs
  )
  hs = jax.jit(without_tf32(layer.apply))(layer.params, xs)
  results = [hs, dxs, d_params.w_x.T, d_params.w_h.T, d_params.b]
  return params, xs, dhs, results


@lru_cache
def prove(cell: str, hidden_size: int, name: str) -> None:
  """Check a layer's outputs and gradients for a short sequence.

  The gradient of bias_hh is not compared: our LSTM and RNN have no such bias,
  and our GRU has only a part of it, b_n.

  Raises:
    ValueError: they differ from those of our scan.
  """
  import torch

  params, xs, dhs, expected = expected_results(cell, hidden_size)
  inputs = tuple(torch.tensor(x, device=gpu_or_cpu()) for x in (xs, dhs))
  forward = make_call(cell, params, name, "forward", inputs)()
  gradient = make_call(cell, params, name, "gradient", inputs)()
  # gradient: of xs, weight_ih, weight_hh, bias_ih and bias_hh.
  actual = [x.float().cpu().numpy() for x in (forward, *gradient[:4])]
  check_same(name, actual, expected, VARIANTS[name][2])


def synchronize(result: Any) -> None:
  """Wait until the device has computed a result."""
  import torch

  del result
  if torch.cuda.is_available():
    torch.cuda.synchronize()


def device_name() -> str:
  """Return the name of PyTorch's device."""
  import torch

  if torch.cuda.is_available():
    return torch.cuda.get_device_name()
  return "cpu"
