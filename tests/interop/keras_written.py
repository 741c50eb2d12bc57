"""Files as Keras writes them, written without Keras."""

import io
import json
import zipfile

import pytest

from tests.draws import H
from tests.interop.keras_layers import from_options

h5py = pytest.importorskip("h5py", reason="h5py is not installed")


def configured(kind, name="", **changes):
  """Return the entry of a layer in config.json.

  `kind` is a key of `keras_layers.OPTIONS`, such as "GRU before hard": a class
  of layer, and words that stand for options. `changes` are other settings.
  """
  options = {"activation": "tanh", "units": H, "use_bias": True}
  options |= {"go_backwards": False, "name": name, **from_options(kind)}
  class_name = kind.split()[0]
  if class_name != "SimpleRNN":
    options = {"recurrent_activation": "sigmoid", **options}
  if class_name == "GRU":
    options = {"reset_after": True, **options}
  config = {**options, **changes}
  return {"module": "keras.layers", "class_name": class_name, "config": config}


def both_ways(kind, name="", **changes):
  """Return the entry of a Bidirectional in config.json."""
  config = {
    "merge_mode": "concat",
    "name": name,
    "layer": configured(kind),
    "backward_layer": configured(kind, go_backwards=True),
    **changes,
  }
  return configured(kind) | {"class_name": "Bidirectional", "config": config}


def model(*layers, name="model"):
  """Return the entry of a Sequential in config.json."""
  config = {"name": name, "layers": layers}
  return {"module": "keras", "class_name": "Sequential", "config": config}


def hdf5(arrays):
  """Return the bytes of an HDF5 file of {path of a cell: its arrays}."""
  content = io.BytesIO()
  with h5py.File(content, "w") as file:
    for path, weights in arrays.items():
      for k, x in enumerate(weights):
        file[f"{path}/vars/{k}"] = x
  return content.getvalue()


def write(path, config, weights, version="3.15.1"):
  """Write a .keras file; `weights` are the bytes of its HDF5 file."""
  members = {
    "config.json": json.dumps(config),
    "metadata.json": json.dumps({"keras_version": version}),
    "model.weights.h5": weights,
  }
  with zipfile.ZipFile(path, "w") as archive:
    for name, content in members.items():
      archive.writestr(name, content)
