"""Files in Keras's format, written and read without Keras."""

import contextlib
import io
import sys
import zipfile

import jax
import numpy as np
import pytest

from lstm_jax.interop import keras as interop
from tests.draws import H, worst
from tests.interop.keras_layers import OPTIONS, draw, from_options
from tests.interop.keras_written import (
  both_ways,
  configured,
  h5py,
  hdf5,
  model,
  write,
)

KINDS = "LSTM", "GRU", "GRU before", "LSTM hard"  # of the example's layers


@pytest.fixture
def example(key, tmp_path):
  """Return (path, params by name) of a .keras file with a model in a model.

  It has a layer of each of KINDS, the GRU as a Bidirectional, and a Dense one.
  Beside it is a .weights.h5 file with the same arrays.
  """
  keys = iter(jax.random.split(key, 4))
  params = {
    "a": draw(next(keys), "LSTM"),
    "inner/b": draw(next(keys), "GRU", both=True, size=H),
    "c": draw(next(keys), "GRU before", size=2 * H),
    "d": draw(next(keys), "LSTM hard", size=H),
  }
  b = interop.to_keras(params["inner/b"])
  arrays = {
    "layers/lstm/cell": interop.to_keras(params["a"]),
    "layers/sequential/layers/bidirectional/forward_layer/cell": b[:3],
    "layers/sequential/layers/bidirectional/backward_layer/cell": b[3:],
    "layers/gru/cell": interop.to_keras(params["c"]),
    "layers/dense": [np.ones((H, H))],
    "layers/lstm_1/cell": interop.to_keras(params["d"]),
  }
  dense = {"module": "keras.layers", "class_name": "Dense", "config": {}}
  config = model(
    configured("LSTM", "a"),
    model(both_ways("GRU", "b"), name="inner"),
    configured("GRU before", "c"),
    dense,
    configured("LSTM hard", "d"),
  )
  path = tmp_path / "model.keras"
  write(path, config, hdf5(arrays))
  (tmp_path / "model.weights.h5").write_bytes(hdf5(arrays))
  return path, params


def test_a_file_is_read_without_keras(example):
  path, params = example
  layers = interop.load(path)
  assert list(layers) == list(params)
  for name, kind in zip(layers, KINDS, strict=True):
    cell, found = layers[name]
    assert cell is OPTIONS[kind][1] and worst(found, params[name]) == 0
  assert list(interop.load(path, names=["c"])) == ["c"]
  assert list(interop.load(path, names=["d", "a"])) == ["d", "a"]
  with pytest.raises(ValueError, match="has no layer e; it has a, inner/b, c,"):
    interop.load(path, names=["e"])


def test_the_weights_of_a_file_are_read_without_keras(example):
  path, params = example
  path = path.with_suffix(".weights.h5")
  found = interop.load_weights(path)
  groups = "gru", "lstm", "lstm_1", "sequential/bidirectional"
  assert tuple(found) == groups
  for name, group in zip(["c", "a", "d", "inner/b"], groups, strict=True):
    assert worst(found[group][1], params[name]) == 0
  with pytest.raises(
    ValueError, match="no layer a; it has gru, lstm, lstm_1, "
  ):
    interop.load_weights(path, names=["a"])
  options = from_options("LSTM hard")
  cell, _ = interop.load_weights(path, names=["lstm_1"], **options)["lstm_1"]
  assert cell is OPTIONS["LSTM hard"][1]


def test_a_foreign_or_damaged_file_is_a_value_error(example, tmp_path):
  good, _ = example
  path = tmp_path / "bad.keras"
  path.write_bytes(b"\x80\x04 not a zip, but a pickle")
  with pytest.raises(
    ValueError, match=r"is not a .keras file: File is not a zip"
  ):
    interop.load(path)
  with pytest.raises(ValueError, match="has no readable HDF5 data"):
    interop.load_weights(path)
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("config.json", "{}")
  with pytest.raises(
    ValueError, match=r"is not a .keras file: .*metadata.json"
  ):
    interop.load(path)
  write(path, model(), b"", version="2.15.0")
  with pytest.raises(
    ValueError, match=r"must be written by Keras 3, got 2.15.0"
  ):
    interop.load(path)
  write(path, model(configured("LSTM", "a")), b"no HDF5")
  with pytest.raises(ValueError, match="has no readable HDF5 data"):
    interop.load(path)
  with pytest.raises(FileNotFoundError):
    interop.load(tmp_path / "absent.keras")
  with pytest.raises(FileNotFoundError):
    interop.load_weights(tmp_path / "absent.weights.h5")
  for suffix, read in (
    (".keras", interop.load),
    (".weights.h5", interop.load_weights),
  ):
    content = good.with_suffix(suffix).read_bytes()
    for cut in range(0, len(content), len(content) // 20):
      path.write_bytes(content[:cut])
      with pytest.raises(ValueError, match=r"bad\.keras|^layer "):
        read(path)
    rng = np.random.default_rng(0)
    for _ in range(100):  # a damaged file is read, or it is a ValueError
      damaged = bytearray(content)
      for index in rng.integers(0, len(content), 20):
        damaged[index] = rng.integers(256)
      path.write_bytes(damaged)
      with contextlib.suppress(ValueError):
        read(path)


def test_links_out_of_the_file_are_not_followed(tmp_path, key):
  secret = tmp_path / "secret.h5"
  with h5py.File(secret, "w") as file:
    file["x"] = np.ones((H, 4 * H))
  content = io.BytesIO(
    hdf5({"layers/lstm/cell": interop.to_keras(draw(key, "LSTM"))})
  )
  with h5py.File(content, "a") as file:
    del file["layers/lstm/cell/vars/1"]
    file["layers/lstm/cell/vars/1"] = h5py.ExternalLink(str(secret), "x")
  path = tmp_path / "model.keras"
  write(path, model(configured("LSTM", "a")), content.getvalue())
  missing = "there is no layers/lstm/cell/vars/1 in the HDF5 file$"
  with pytest.raises(ValueError, match=f"^layer a: {missing}"):
    interop.load(path)
  weights = tmp_path / "model.weights.h5"
  weights.write_bytes(content.getvalue())
  with pytest.raises(ValueError, match=f"^layer lstm: {missing}"):
    interop.load_weights(weights)
  with h5py.File(content, "a") as file:
    del file["layers/lstm/cell/vars/1"]
    layout = h5py.VirtualLayout((H, 4 * H), float)
    layout[...] = h5py.VirtualSource(str(secret), "x", (H, 4 * H))
    file["layers/lstm/cell/vars"].create_virtual_dataset("1", layout)
  write(path, model(configured("LSTM", "a")), content.getvalue())
  message = (
    r"^layer a: recurrent_kernel must be in this file, not in another one$"
  )
  with pytest.raises(ValueError, match=message):
    interop.load(path)
  with h5py.File(content, "a") as file:
    del file["layers/lstm/cell/vars/1"]
    outside = [(str(secret), 0, h5py.h5f.UNLIMITED)]
    file["layers/lstm/cell/vars"].create_dataset(
      "1", (H, 4 * H), float, external=outside
    )
  write(path, model(configured("LSTM", "a")), content.getvalue())
  with pytest.raises(ValueError, match=message):
    interop.load(path)


@pytest.mark.parametrize("value", [["a", "b"], [["bfloat16"]], 5])
@pytest.mark.parametrize(
  ("place", "name"), [("lstm/vars", "name"), ("lstm/cell/vars/1", "dtype")]
)
def test_an_attribute_that_is_no_text_is_refused(
  place, name, value, tmp_path, key
):
  arrays = {"layers/lstm/cell": interop.to_keras(draw(key, "LSTM"))}
  content = io.BytesIO(hdf5(arrays))
  with h5py.File(content, "a") as file:
    file.require_group("layers/lstm/vars")
    file[f"layers/{place}"].attrs[name] = value
  path = tmp_path / "model.keras"
  write(path, model(configured("LSTM", "a")), content.getvalue())
  message = f"the attribute {name} of /layers/{place} must be a string"
  with pytest.raises(ValueError, match=f"^layer a: {message}$"):
    interop.load(path)


@pytest.mark.parametrize("stored", ["V4", "complex64", "int16"])
def test_what_cannot_be_bfloat16_is_refused(stored, tmp_path, key):
  name = "layers/lstm/cell/vars/1"
  content = io.BytesIO(
    hdf5({"layers/lstm/cell": interop.to_keras(draw(key, "LSTM"))})
  )
  with h5py.File(content, "a") as file:
    del file[name]
    file[name] = np.zeros((H, 4 * H), stored)
    file[name].attrs["dtype"] = "bfloat16"
  path = tmp_path / "model.keras"
  write(path, model(configured("LSTM", "a")), content.getvalue())
  message = rf"/{name} must hold bfloat16, got (\|V4|{stored})$"
  with pytest.raises(ValueError, match=f"^layer a: {message}"):
    interop.load(path)


def test_an_attribute_of_fixed_length_is_read(tmp_path, key):
  params = draw(key, "LSTM")
  content = io.BytesIO(hdf5({"layers/lstm/cell": interop.to_keras(params)}))
  with h5py.File(content, "a") as file:
    group = file.require_group("layers/lstm/vars")
    group.attrs["name"] = np.bytes_(b"a")
    kernel = file["layers/lstm/cell/vars/0"]
    kernel.attrs["dtype"] = np.bytes_(b"float32")
  path = tmp_path / "model.keras"
  write(path, model(configured("LSTM", "a")), content.getvalue())
  assert worst(interop.load(path)["a"][1], params) == 0


def test_without_h5py_the_extra_to_install_is_named(example, monkeypatch):
  path, _ = example
  monkeypatch.setitem(sys.modules, "h5py", None)
  message = r"pip install '\.\[interop\]'"
  for suffix, read in (
    (".keras", interop.load),
    (".weights.h5", interop.load_weights),
  ):
    with pytest.raises(ModuleNotFoundError, match=message):
      read(path.with_suffix(suffix))
