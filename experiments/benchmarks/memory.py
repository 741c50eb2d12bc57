"""The peak memory of an LSTM layer's gradients, in each library.

The gradients are those of the inputs and of the weights. For a compiled
program, the peak is what XLA reserves for arguments (weights too), results and
temporaries. For PyTorch, always on the CPU, it is by how much the resident set
of a separate process grows while the gradients are computed; the weights exist
before and are not counted.
"""

import multiprocessing
import re
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from experiments.benchmarks import sequences
from experiments.benchmarks.proof import is_installed, make_peers


def measure_memory(sizes: dict[str, int]) -> tuple[list[dict], dict[str, str]]:
  """Return (rows, skipped) as `timing.compare` does, without times.

  Args:
    sizes: hidden_size, seq_len and batch_size.

  Raises:
    ValueError: a library computes a different result from ours.
    RuntimeError: PyTorch's process fails with an unexpected error.
  """
  problem = sequences.make_problem("lstm", True, **sizes)
  peers, skipped = make_peers(sequences.jax_peers(), problem)
  rows: list[dict[str, Any]] = [
    {"peer": name, "bytes": peer.bytes, "compile_s": peer.compile_s}
    for name, peer in peers.items()
  ]
  if not is_installed("torch"):
    skipped["pytorch"] = "torch is not installed"
  elif not Path("/proc/self/clear_refs").exists():
    skipped["pytorch"] = "its peak memory can be read on Linux only"
  else:
    try:
      size = in_a_process(torch_peak, sizes)
      rows.append({"peer": "pytorch", "bytes": size})
    # PyTorch is broken, its process was killed, or /proc cannot be read.
    except (ImportError, OSError) as error:
      skipped["pytorch"] = f"its peak memory cannot be measured: {error}"
  return rows, skipped


def in_a_process(function: Callable, *arguments: Any) -> Any:
  """Return what a function returns in a process of its own.

  Raises:
    ImportError: the function raises it.
    OSError: likewise, or the process was killed, such as for want of memory.
    RuntimeError: the function raises another error, which is printed.
  """
  context = multiprocessing.get_context("spawn")
  receiver, sender = context.Pipe(duplex=False)
  given = sender, function, *arguments
  process = context.Process(target=_send, args=given, daemon=True)
  process.start()
  sender.close()  # else the end of the process would not end `recv`
  try:
    result = receiver.recv()
  except EOFError:
    process.join()
    if process.exitcode and process.exitcode < 0:  # the signal, negative
      raise OSError("its process was killed") from None
    raise RuntimeError("its process failed; its error is above") from None
  finally:
    process.kill()
    process.join()
  if isinstance(result, Exception):
    raise result
  return result


def _send(sender: Connection, function: Callable, *arguments: Any) -> None:
  """Send what a function returns, or its error if that may be expected."""
  try:
    sender.send(function(*arguments))
  except (ImportError, OSError) as error:
    sender.send(error)


def torch_peak(sizes: dict[str, int]) -> int:
  """Return by how many bytes memory grows at most during the gradients."""
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
  """Return a field of /proc/self/status, in bytes.

  Raises:
    OSError: there is no such field, as in some sandboxes.
  """
  status = Path("/proc/self/status").read_text()
  match = re.search(rf"{field}:\s+(\d+) kB", status)
  if not match:
    raise OSError(f"/proc/self/status has no {field}")
  return 1024 * int(match.group(1))
