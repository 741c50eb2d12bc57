"""Read the recurrent layers of a model that Keras 3 saved, without Keras.

A .keras file is a zip of config.json, which has the settings of every layer,
and model.weights.h5, which has the arrays. A .weights.h5 file has the arrays
alone. Nothing is unpickled, no code of the file is run, and links to other
files are not followed. HDF5 is read with the package `h5py` (the extra
`interop`).

Source: `keras/src/saving/saving_lib.py` of Keras 3.15.
"""

import io
import json
import os
import re
import zipfile
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from lstm_jax.cells.activations import Activation
from lstm_jax.cells.cell import Cell, Params
from lstm_jax.interop.keras.hdf5 import (
  SIDES,
  cell_arrays,
  check_name,
  import_h5py,
  is_standard,
  layer_groups,
  opened,
  readable,
  reason,
)
from lstm_jax.interop.keras.weights import from_keras
from lstm_jax.interop.tensors import prefixed

Layer = tuple[Cell[Any, Any], Params]
GATES = {"LSTM": 4, "GRU": 3, "SimpleRNN": 1}  # by class
LARGEST = 1 << 26  # bytes that a member of the zip may unpack to
LARGEST_RATIO = 100  # or, for model.weights.h5, so many times the .keras file
TYPES = {"class_name": str, "units": int, "use_bias": bool, "reset_after": bool}
KINDS = *GATES, "Bidirectional"
MODELS = "Functional", "Sequential"
# Where two words of a class's name meet, as in Simple|RNN.
WORDS = re.compile("(?<=.)(?=[A-Z][a-z])|(?<=[a-z])(?=[A-Z])")


class Saved(NamedTuple):
  """Where a file has a layer, and the layer's settings."""

  group: str  # of the HDF5 file, such as "layers/lstm"
  kind: str  # the class: LSTM, GRU, SimpleRNN or Bidirectional
  settings: dict[str, Any]


def load(
  path: str | os.PathLike[str], *, names: Collection[str] | None = None
) -> dict[str, Layer]:
  """Return the recurrent layers of a .keras file, by name.

  Layers inside a wrapper, such as TimeDistributed, or inside a nested model or
  layer of a user's own class are left out.

  Args:
    path: of the file, which Keras 3 wrote.
    names: of the layers to read; None for every LSTM, GRU, SimpleRNN and
      Bidirectional. The layers of a nested model are named "model/layer".

  Returns:
    {name: (cell, params)} of `from_keras`, in the order of the model or names.

  Raises:
    ValueError: the file is not a .keras file of Keras 3, is damaged or unpacks
      to far more than its size; it has no recurrent layer or lacks a given one,
      a setting or an array does not fit, a Bidirectional has layers that are
      not those of Keras, or names are not a list of names.
    OSError: the file cannot be read.
    ModuleNotFoundError: the package h5py is not installed.
  """
  import_h5py()  # before anything else: without it, nothing can be read
  config, version, weights = _unzipped(path)
  size = os.path.getsize(path)
  if not version.startswith("3."):
    raise ValueError(f"{path} must be written by Keras 3, got {version}")
  try:
    saved = dict(_layers(config, "", "layers"))
  except (AttributeError, LookupError, RecursionError, TypeError) as error:
    raise ValueError(
      f"config.json of {path} must be that of a Sequential or Functional "
      f"model, got one that is not readable as such: {error!r}"
    ) from None
  result = {}
  with opened(path, weights) as file:
    for name in _chosen(path, saved, names):
      with prefixed(f"layer {name}"):
        result[name] = _configured(file, saved[name], size)
  return result


def load_weights(
  path: str | os.PathLike[str],
  *,
  names: Collection[str] | None = None,
  activation: str | Activation = "tanh",
  recurrent_activation: str | Activation = "sigmoid",
  reset_after: bool | None = None,
) -> dict[str, Layer]:
  """Return the recurrent layers of a .weights.h5 file, by group.

  The file has neither the layers' settings nor their order. Layers with
  different settings are read by several calls, each with its `names`. Layers
  inside a wrapper, such as TimeDistributed, are left out, and so are those
  inside a layer or model of a user's own class, unless in its group `layers`.

  An RNN of a cell, or a layer of a user's own class, is read only if `names`
  has its group, and as the LSTM, GRU or SimpleRNN that has arrays of its
  shapes. Inside a Bidirectional, nothing tells it from a layer of Keras.

  Args:
    path: of the file, which Keras 3 wrote.
    names: of the groups to read, such as "lstm_1"; None for all of Keras' own
      classes, sorted, with lstm_2 before lstm_10.
    activation: as in `from_keras`, for every layer that is read.
    recurrent_activation: the same.
    reset_after: the same.

  Raises:
    ValueError: as `load` for a .weights.h5 file, and as `from_keras`.
    OSError: the file cannot be read.
    ModuleNotFoundError: the package h5py is not installed.
  """
  result = {}
  size = os.path.getsize(path)
  with open(path, "rb") as content, opened(path, content) as file:
    with readable(f"{path} has no readable HDF5 data"):
      if "layers" not in list(file):
        raise ValueError(
          f"{path} must have the group layers, as Keras 3 saves a Sequential "
          f"or Functional model, got {', '.join(file) or 'nothing'}"
        )
      groups = dict(layer_groups(file, "", "layers"))
    standard = {name: groups[name] for name in groups if is_standard(name)}
    for name in _chosen(path, standard if names is None else groups, names):
      with prefixed(f"layer {name}"):
        cells = [cell_arrays(file, cell, size) for cell in groups[name]]
        result[name] = from_keras(
          dict(item for arrays in cells for item in arrays.items()),
          activation=activation,
          recurrent_activation=recurrent_activation,
          reset_after=reset_after,
        )
  return result


def _unzipped(
  path: str | os.PathLike[str],
) -> tuple[dict[str, Any], str, io.BytesIO]:
  """Return the configuration, the version of Keras, and the HDF5 file.

  The HDF5 file is read into memory whole: to seek back in an open member of a
  zip would read the member from its beginning, and skip the check of its CRC.
  """
  with open(path, "rb") as file:
    largest = max(LARGEST, LARGEST_RATIO * os.fstat(file.fileno()).st_size)
    try:
      with zipfile.ZipFile(file) as archive:
        config, metadata = (
          json.loads(_member(archive, name, LARGEST))
          for name in ("config.json", "metadata.json")
        )
        version = str(metadata["keras_version"])
        weights = _member(archive, "model.weights.h5", largest)
    except MemoryError:
      raise
    except Exception as error:  # a damaged zip raises errors of many types
      raise ValueError(
        f"{path} is not a .keras file: {reason(error)}"
      ) from None
  return config, version, io.BytesIO(weights)


def _member(archive: zipfile.ZipFile, name: str, largest: int) -> bytes:
  """Return the bytes of a member of a zip; refuse one that is too large."""
  size = archive.getinfo(name).file_size
  if size > largest:
    raise ValueError(f"{name} must have at most {largest} bytes, got {size}")
  with archive.open(name) as member:
    return member.read(size)  # never more, whatever the member unpacks to


def _layers(
  model: dict[str, Any], prefix: str, path: str
) -> Iterator[tuple[str, Saved]]:
  """Yield (name, Saved) of a model's recurrent layers, from its config.

  Keras numbers classes together if their names are equal in snake case: if a
  user's own class Lstm takes the group lstm, the next LSTM is lstm_1.
  """
  counts: dict[str, int] = {}
  for layer in model["config"]["layers"]:
    kind, settings = layer["class_name"], layer["config"]
    stem = WORDS.sub("_", kind).lower()
    number = counts[stem] = counts.get(stem, -1) + 1
    group = f"{path}/{stem}" + (f"_{number}" if number else "")
    if kind in MODELS:
      name = prefix + settings["name"]
      yield from _layers(layer, f"{name}/", f"{group}/layers")
    elif kind in KINDS and layer["module"] == "keras.layers":
      yield prefix + settings["name"], Saved(group, kind, settings)


def _configured(file: Any, saved: Saved, size: int) -> Layer:
  """Return the cell and the params of a layer with these settings.

  Args:
    file: the HDF5 file.
    saved: where the file has the layer, and the layer's settings.
    size: bytes of the .keras file.
  """
  group, kind, settings = saved
  check_name(file, group, settings["name"])
  if kind != "Bidirectional":
    parts = [(f"{group}/cell", kind, settings, False)]
  else:
    _check("merge_mode", _setting(settings, "merge_mode"), "concat")
    inner = [_setting(settings, key) for key in ("layer", "backward_layer")]
    parts = [
      (
        f"{group}/{side}/cell",
        _setting(layer, "class_name"),
        _setting(layer, "config"),
        side == "backward_layer",
      )
      for side, layer in zip(SIDES, inner, strict=True)
    ]
    for layer in inner:  # a user's LSTM may compute something else
      _check("the layer's module", _setting(layer, "module"), "keras.layers")
  arrays: dict[str, Any] = {}
  options = []
  for path, kind, settings, backwards in parts:
    if kind not in GATES:
      raise ValueError(f"the layer must be {', '.join(GATES)}, got {kind}")
    _check("go_backwards", _setting(settings, "go_backwards"), backwards)
    arrays |= cell_arrays(
      file,
      path,
      size,
      GATES[kind],
      _setting(settings, "units"),
      _setting(settings, "use_bias"),
    )
    keys = ["activation"]
    keys += ["recurrent_activation"] * (kind != "SimpleRNN")
    keys += ["reset_after"] * (kind == "GRU")
    options.append({key: _setting(settings, key) for key in keys})
  _check("the backward layer's settings", options[-1], options[0])
  return from_keras(arrays, **options[0])


def _setting(settings: Any, key: str) -> Any:
  """Return a setting; raise ValueError if it is missing or of a wrong type."""
  if not isinstance(settings, dict) or key not in settings:
    raise ValueError(f"its configuration lacks {key}")
  value, expected = settings[key], TYPES.get(key)
  if expected and type(value) is not expected:
    raise ValueError(
      f"{key} must be of type {expected.__name__}, got {value!r}"
    )
  return value


def _check(name: str, found: Any, expected: Any) -> None:
  """Raise ValueError unless a setting has the only value supported."""
  if found != expected:
    raise ValueError(f"{name} must be {expected}, got {found}")


def _chosen(path: Any, found: Collection[str], names: Any) -> Collection[str]:
  """Return the names of the layers to read, all of which the file has."""
  if names is not None and not _are_names(names):
    raise ValueError(f"names must be a list of names, got {names!r}")
  for name in names or ():
    if name not in found:
      known = ", ".join(found) or "none"
      raise ValueError(f"{path} has no layer {name}; it has {known}")
  if not found:
    raise ValueError(f"{path} has no LSTM, GRU, SimpleRNN or Bidirectional")
  return found if names is None else names


def _are_names(names: Any) -> bool:
  """Tell whether names are a collection of str, and not one str."""
  return (
    isinstance(names, Collection)
    and not isinstance(names, str)
    and all(isinstance(name, str) for name in names)
  )
