"""What one LSTM layer's gradients need, in each library.

For a compiled program, what XLA reserves: arguments, results and temporaries.
For PyTorch, by how much the resident set of a process of its own rises.
"""

import multiprocessing
import re
from pathlib import Path
from typing import Any

from experiments.benchmarks.peers import sequences
from experiments.benchmarks.peers.layers import LAYERS, is_installed
from experiments.benchmarks.peers.proof import Missing


def compare(sizes: dict[str, int]) -> tuple[list[dict], dict[str, str]]:
  """Return (rows, missing) as `timing.compare`, without times."""
  problem = sequences.make_problem("lstm", True, **sizes)
  rows, missing = [], {}
  for name, (_, package) in LAYERS.items():
    if not is_installed(package):
      missing[name] = f"{package} is not installed"
      continue
    try:
      peer = sequences.jax_peer(name)(problem)
    except Missing as reason:
      missing[name] = str(reason)
      continue
    rows.append(
      {"peer": name, "bytes": peer.bytes, "compile_s": peer.compile_s}
    )
  if not is_installed("torch"):
    missing["pytorch"] = "torch is not installed"
  elif not Path("/proc/self/clear_refs").exists():
    missing["pytorch"] = "its resident peak is read on Linux only"
  else:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
      size = pool.apply(torch_peak, (sizes,))
    rows.append({"peer": "pytorch", "bytes": size})
  return rows, missing


def torch_peak(sizes: dict[str, int]) -> int:
  """Return the rise of this process's resident peak over one gradient."""
  import torch

  layer = torch.nn.LSTM(sizes["hidden"], sizes["hidden"])

  def gradient(steps: int) -> Any:
    shape = steps, sizes["batch"], sizes["hidden"]
    xs = torch.randn(shape, requires_grad=True)
    hs = layer(xs)[0]
    return torch.autograd.grad(hs, [xs, *layer.parameters()], torch.ones(shape))

  gradient(2)  # libraries and threads are there
  Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
  before = _resident("VmRSS")
  gradient(sizes["steps"])
  return _resident("VmHWM") - before


def _resident(field: str) -> int:
  """Return a field of this process's status, in bytes."""
  status = Path("/proc/self/status").read_text()
  found = re.search(rf"{field}:\s+(\d+) kB", status)
  return 1024 * int(found.group(1)) if found else 0
