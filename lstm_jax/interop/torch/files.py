"""PyTorch's weights to and from safetensors files.

These functions need the package `safetensors` (the extra `interop`). Nothing is
unpickled.
"""

import os
import uuid
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from lstm_jax.cells.cell import Cell
from lstm_jax.interop.extra import from_extra
from lstm_jax.interop.torch.weights import Layers, Stack, from_torch, to_torch


def load(
  path: str | os.PathLike[str],
  *,
  prefix: str = "",
  nonlinearity: str | None = None,
) -> tuple[Cell[Any, Any], Layers]:
  """Return the cell and the layers that a safetensors file holds.

  Only the tensors whose names begin with the prefix are read.

  Args:
    path: of the file.
    prefix: as in `from_torch`.
    nonlinearity: as in `from_torch`.

  Raises:
    ValueError: the file is not a safetensors file, a tensor that is read has a
      dtype that NumPy lacks, or `from_torch` refuses the tensors, the prefix or
      the nonlinearity.
    OSError: the file cannot be read.
    ModuleNotFoundError: the package safetensors is not installed.
  """
  safetensors = _import_safetensors()
  with open(path, "rb"):  # an OSError names the path; that of safe_open may not
    pass
  try:
    with safetensors.safe_open(path, "np") as file:
      names = file.keys()
      arrays = {  # the names without values are for `from_torch`'s errors
        name: file.get_tensor(name) if name.startswith(str(prefix)) else None
        for name in names
      }
  except safetensors.SafetensorError as error:
    raise ValueError(f"{path} is not a safetensors file: {error}") from None
  except (AttributeError, TypeError) as error:  # such as a dtype float8
    raise ValueError(f"{path} cannot be read with NumPy: {error}") from None
  return from_torch(arrays, prefix=prefix, nonlinearity=nonlinearity)


def save(
  path: str | os.PathLike[str], layers: Stack, *, bias: bool = True
) -> None:
  """Write `to_torch(layers, bias=bias)` to a safetensors file.

  An existing file is replaced atomically. A link is followed. What is neither a
  file nor a directory, such as a pipe, is written to and not replaced.

  Args:
    path: of the file.
    layers: as in `to_torch`.
    bias: as in `to_torch`.

  Raises:
    ValueError: as `to_torch`.
    OSError: the file cannot be written.
    ModuleNotFoundError: the package safetensors is not installed.
  """
  safetensors = _import_safetensors()
  arrays = to_torch(layers, bias=bias)
  # Safetensors writes an array's memory as it is, so it must be contiguous.
  arrays = {k: np.ascontiguousarray(v) for k, v in arrays.items()}
  data = safetensors.numpy.save(arrays)
  try:
    _write(Path(os.fsdecode(path)), data)
  except OSError as error:
    raise OSError(
      f"{path} cannot be written: {error.strerror or error}"
    ) from None


def _write(path: Path, data: bytes) -> None:
  """Replace a file atomically, or write to a pipe or a device.

  safetensors' own `save_file` is not used: only the owner could read its file.
  """
  if path.exists() and not path.is_file():
    path.write_bytes(data)
    return
  path = Path(os.path.realpath(path))
  # Not the path's name with a suffix, which could be too long for a name.
  part = path.with_name(f".{uuid.uuid4().hex}.part")
  try:
    part.write_bytes(data)
    part.replace(path)
  finally:
    part.unlink(missing_ok=True)


def _import_safetensors() -> ModuleType:
  """Return the package safetensors, or raise an error that names the extra."""
  with from_extra("safetensors"):
    import safetensors.numpy
  return safetensors
