"""Arrays of layers in an HDF5 file that Keras 3 wrote.

The kernel, the recurrent_kernel and the bias of a layer are the arrays
`layers/lstm/cell/vars/0`, `1` and `2`. A layer's group has the name of the
layer's class in snake case, with a number from the second layer of that name
on: lstm, lstm_1, gru. The layers of a nested model are inside the group of that
model. Links, which may lead to other files, are not followed.

Source: `keras/src/saving/saving_lib.py` of Keras 3.15.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np

from lstm_jax.interop.extra import from_extra
from lstm_jax.interop.keras.directions import NAMES

DAMAGE = (  # what h5py raises for a damaged file
  AttributeError,
  LookupError,
  MemoryError,
  OSError,
  OverflowError,
  RuntimeError,
  TypeError,
)
SIDES = "forward_layer", "backward_layer"  # of a Bidirectional
STEMS = "lstm", "gru", "simple_rnn", "bidirectional"
RATIO = 1032  # the most by which zlib compresses: an array of equal numbers


@contextmanager
def opened(path: Any, weights: BinaryIO) -> Iterator[Any]:
  """Yield an open HDF5 file, and close it at the end of the context.

  Args:
    path: the name of the file in an error.
    weights: the HDF5 file.

  Raises:
    ValueError: the file cannot be read as HDF5.
    ModuleNotFoundError: the package h5py is not installed.
  """
  h5py = import_h5py()
  with readable(f"{path} has no readable HDF5 data"):
    file = h5py.File(weights, "r")
  try:
    yield file
  finally:
    with readable(f"{path} has no readable HDF5 data"):
      file.close()


@contextmanager
def readable(message: str) -> Iterator[None]:
  """Turn the errors of h5py for a damaged file into one ValueError.

  Only reads of the file belong in this context: errors of other code would be
  reported as damage too.
  """
  try:
    yield
  except DAMAGE as error:
    raise ValueError(f"{message}: {reason(error)}") from None


def reason(error: Exception) -> str:
  """Return what an error says, in one line; its type if it says nothing."""
  return " ".join(str(error).split()) or type(error).__name__


def import_h5py() -> ModuleType:
  """Return the package h5py, or raise an error that names the extra."""
  with from_extra("h5py"):
    import h5py
  return h5py


def layer_groups(
  file: Any, prefix: str, path: str, seen: set[int] | None = None
) -> Iterator[tuple[str, list[str]]]:
  """Yield (name, paths of its cells) of every layer with a recurrent cell.

  Args:
    file: the HDF5 file.
    prefix: what the names begin with: the path of a nested model, or nothing.
    path: of the group of the layers.
    seen: the addresses of the groups of layers that were read before; that of
      this group is added.

  Raises:
    ValueError: the group is not in the file, or was read before.
  """
  members = _member(file, path, "Group")
  seen = set() if seen is None else seen
  address = import_h5py().h5o.get_info(members.id).addr
  if address in seen:  # a cycle would never end
    raise ValueError(f"{path} must be in the HDF5 file once, got it twice")
  seen.add(address)
  for name in sorted(members, key=_numbered):
    inner = f"{path}/{name}"
    if f"{inner}/layers" in file:
      yield from layer_groups(file, f"{prefix}{name}/", f"{inner}/layers", seen)
    cells = [f"{inner}/{side}/cell" for side in SIDES]
    if _is_cell(file, f"{inner}/cell"):
      yield f"{prefix}{name}", [f"{inner}/cell"]
    elif all(_is_cell(file, cell) for cell in cells):
      yield f"{prefix}{name}", cells


def _is_cell(file: Any, path: str) -> bool:
  """Return whether a group is a recurrent cell: its array vars/1 is a matrix.

  In a ConvLSTM's cell, that array has more axes. A link or a group in place of
  the array counts as a matrix, which `cell_arrays` then refuses.
  """
  if f"{path}/vars/1" not in file:
    return False
  try:
    return bool(_member(file, f"{path}/vars/1", "Dataset").ndim == 2)
  except ValueError:
    return True


def is_standard(group: str) -> bool:
  """Return whether a layer's group has the name of a recurrent class of Keras.

  Keras names it after the class of the layer. An RNN of a cell, or a layer of a
  user's own class, may have the arrays of a SimpleRNN and other equations.
  """
  return _numbered(group.rpartition("/")[2])[0] in STEMS


def _numbered(name: str) -> tuple[str, int]:
  """Return a group's name in two parts, so that lstm_2 is before lstm_10."""
  stem, _, number = name.rpartition("_")
  is_number = number.isdecimal() and len(number) < 10  # `int` has a limit
  return (stem, int(number)) if is_number else (name, 0)


@readable("the file is damaged")
def check_name(file: Any, group: str, expected: str) -> None:
  """Raise ValueError if a group states that it holds another layer.

  Keras 3.15 writes the layer's own name, such as "encoder", as an attribute of
  the group `vars`.
  """
  if f"{group}/vars" in file:
    found = _text(_member(file, f"{group}/vars", "Group"), "name")
    if found not in (None, expected):
      raise ValueError(f"{group} must hold this layer, but holds {found}")


@readable("the file is damaged")
def cell_arrays(
  file: Any,
  path: str,
  size: int,
  gates: int | None = None,
  units: int | None = None,
  bias: bool | None = None,
) -> dict[str, np.ndarray]:
  """Return the arrays of a cell, after checks of their number and sizes.

  A key consists of the path of the cell's group and the array's name, such as
  ".../forward_layer/cell/kernel". `from_keras` recognizes the direction by it.

  Args:
    file: the HDF5 file.
    path: of the cell's group.
    size: bytes of the .keras or .weights.h5 file. An array that unpacks to more
      than RATIO times its stored bytes is refused. If the HDF5 data state more
      stored bytes than size, as damaged data may, size counts instead.
    gates: G, or None if it is not known.
    units: H, or None if it is not known.
    bias: whether the cell has a bias, or None if it is not known.
  """
  group = _member(file, f"{path}/vars", "Group")
  count = len(group)
  if count not in ((2, 3) if bias is None else (2 + bias,)):
    expected = "2 or 3" if bias is None else 2 + bias
    raise ValueError(f"{path}/vars must hold {expected} arrays, got {count}")
  sets = [_member(file, f"{path}/vars/{k}", "Dataset") for k in range(count)]
  for name, data in zip(NAMES, sets, strict=False):
    if data.external or data.is_virtual:
      raise ValueError(f"{name} must be in this file, not in another one")
    if data.dtype.hasobject:  # references, of which many may be to one object
      raise ValueError(f"{name} must hold floats, got {data.dtype}")
    stored = min(data.id.get_storage_size(), size)
    # HDF5 unpacks whole chunks, which may be larger than the array.
    chunk = math.prod(data.chunks) * data.dtype.itemsize if data.chunks else 0
    unpacked = max(data.nbytes or 0, chunk)
    if unpacked > RATIO * stored:
      raise ValueError(
        f"{name} must have at most {RATIO} times the {stored} bytes that are "
        f"stored, got {unpacked}"
      )
  if gates and units is not None and sets[1].shape != (units, gates * units):
    expected = f"[{units}, {gates * units}]"
    raise ValueError(
      f"recurrent_kernel must be {expected}, got {sets[1].shape}"
    )
  return {
    f"{path}/{name}": _values(data)
    for name, data in zip(NAMES, sets, strict=False)
  }


def _values(data: Any) -> np.ndarray:
  """Return the values of a dataset; Keras marks bfloat16 by an attribute."""
  x = np.asarray(data[()])
  x.setflags(write=False)  # so that `as_array` does not copy floats
  if _text(data, "dtype") != "bfloat16":
    return x
  # Stored as two bytes without a type (kind V), or as floats of another dtype.
  if x.dtype == "V2":
    return x.view(jnp.bfloat16)
  if x.dtype.kind != "f":
    raise ValueError(f"{data.name} must hold bfloat16, got {x.dtype}")
  return x.astype(jnp.bfloat16)


def _text(member: Any, name: str) -> str | None:
  """Return a string attribute of a group or dataset, or None if absent.

  An array of strings is refused before it is read: many of its elements may
  refer to one large object.
  """
  if name not in member.attrs:
    return None
  is_scalar = member.attrs.get_id(name).shape == ()
  value = member.attrs[name] if is_scalar else None
  if isinstance(value, bytes):  # HDF5's text of a fixed length
    return value.decode(errors="replace")
  if not isinstance(value, str):
    raise ValueError(f"the attribute {name} of {member.name} must be a string")
  return value


def _member(group: Any, path: str, kind: str) -> Any:
  """Return a group or dataset of the file itself, by its path."""
  h5py = import_h5py()
  for part in path.split("/"):
    inner = isinstance(group, h5py.Group)
    link = group.get(part, getlink=True) if inner else None
    if not isinstance(link, h5py.HardLink):
      raise ValueError(f"there is no {path} in the HDF5 file")
    group = group[part]
  if not isinstance(group, getattr(h5py, kind)):
    raise ValueError(f"{path} must be a {kind} of the HDF5 file")
  return group
