"""Files that Keras wrote, read without Keras."""

import contextlib
import io
import json
import sys
import zipfile

import jax
import numpy as np
import pytest

from lstm_jax.interop import keras as interop
from tests.draws import H, worst
from tests.interop.keras_layers import OPTIONS, draw, from_options

h5py = pytest.importorskip("h5py", reason="h5py is not installed")
KINDS = "LSTM", "GRU", "GRU before", "LSTM hard"  # of the example's layers


def configured(kind, name="", **changes):
  """Return the entry of a layer in config.json."""
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
  config = {
    "merge_mode": "concat",
    "name": name,
    "layer": configured(kind),
    "backward_layer": configured(kind, go_backwards=True),
    **changes,
  }
  return configured(kind) | {"class_name": "Bidirectional", "config": config}


def model(*layers, name="model"):
  config = {"name": name, "layers": layers}
  return {"module": "keras", "class_name": "Sequential", "config": config}


def hdf5(arrays):
  """Return the bytes of an HDF5 file with arrays by the path of their cell."""
  content = io.BytesIO()
  with h5py.File(content, "w") as file:
    for path, weights in arrays.items():
      for k, x in enumerate(weights):
        file[f"{path}/vars/{k}"] = x
  return content.getvalue()


def write(path, config, weights, version="3.15.1"):
  members = {
    "config.json": json.dumps(config),
    "metadata.json": json.dumps({"keras_version": version}),
    "model.weights.h5": weights,
  }
  with zipfile.ZipFile(path, "w") as archive:
    for name, content in members.items():
      archive.writestr(name, content)


@pytest.fixture
def example(key, tmp_path):
  """Return (path, params by name) of a .keras file with every kind of entry."""
  keys = iter(jax.random.split(key, 9))
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
    "layers/dense": [np.ones((H, 2))],
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


def with_setting(**changes):
  return model(configured("LSTM", "a", **changes))


@pytest.mark.parametrize(
  ("config", "message"),
  [
    (
      with_setting(activation="gelu"),
      "^layer a: activation must be hard_sigmoid, relu, .*, got 'gelu'$",
    ),
    (
      with_setting(recurrent_activation={"class_name": "X"}),
      "^layer a: recurrent_activation must be .*, got {",
    ),
    (
      with_setting(go_backwards=True),
      "^layer a: go_backwards must be False, got True$",
    ),
    (
      with_setting(units=9),
      r"^layer a: recurrent_kernel must be \[9, 36\], got \(6, 24\)$",
    ),
    (
      with_setting(use_bias=False),
      "^layer a: layers/lstm/cell/vars must hold 2 arrays, got 3$",
    ),
    (
      model(configured("GRU", "a")),
      "^layer a: there is no layers/gru/cell/vars in the HDF5 file$",
    ),
    (
      model(both_ways("LSTM", "a", merge_mode="sum")),
      "^layer a: merge_mode must be concat, got sum$",
    ),
    (
      model(
        both_ways("LSTM", "a", layer=configured("LSTM") | {"class_name": "C"})
      ),
      "^layer a: the layer must be LSTM, GRU, SimpleRNN, got C$",
    ),
    (
      model(
        both_ways("LSTM", "a", layer=configured("LSTM") | {"class_name": [1]})
      ),
      r"^layer a: class_name must be of type str, got \[1\]$",
    ),
    (
      model(both_ways("LSTM", "a", backward_layer=None)),
      "^layer a: its configuration lacks class_name$",
    ),
    (model(), "has no LSTM, GRU, SimpleRNN or Bidirectional$"),
    (
      {"config": {}},
      "must be that of a Sequential or Functional .* KeyError.'layers'",
    ),
    ([], "^config.json of .* must be that of a Sequential or Functional model"),
  ],
)
def test_a_configuration_without_a_cell_is_refused(
  config, message, tmp_path, key
):
  path = tmp_path / "model.keras"
  arrays = {"layers/lstm/cell": interop.to_keras(draw(key, "LSTM"))}
  write(path, config, hdf5(arrays))
  with pytest.raises(ValueError, match=message):
    interop.load(path)


def test_directions_with_other_settings_are_refused(tmp_path, key):
  path, name = tmp_path / "model.keras", "layers/bidirectional/{}_layer/cell"
  weights = interop.to_keras(draw(key, "LSTM"))
  arrays = {name.format(side): weights for side in ("forward", "backward")}
  backward = configured("LSTM", go_backwards=True, activation="relu")
  config = model(both_ways("LSTM", "a", backward_layer=backward))
  write(path, config, hdf5(arrays))
  with pytest.raises(
    ValueError, match=r"^layer a: the backward layer's settings"
  ):
    interop.load(path)
  config = model(both_ways("LSTM", "a", backward_layer=configured("LSTM")))
  write(path, config, hdf5(arrays))
  with pytest.raises(ValueError, match=r"go_backwards must be True, got False"):
    interop.load(path)


def test_a_layer_of_somebody_else_is_left_out(tmp_path, key):
  path = tmp_path / "model.keras"
  first, second = (draw(k, "LSTM") for k in jax.random.split(key))
  arrays = {
    "layers/lstm/cell": interop.to_keras(first),
    "layers/lstm_1/cell": interop.to_keras(second),
  }
  own = configured("LSTM", "own") | {"module": "their.layers"}
  write(path, model(own, configured("LSTM", "a")), hdf5(arrays))
  layers = interop.load(path)
  assert list(layers) == ["a"] and worst(layers["a"][1], second) == 0


def test_a_foreign_or_damaged_file_is_one_error(example, tmp_path):
  good, _ = example
  path = tmp_path / "bad.keras"
  path.write_bytes(b"\x80\x04 not a zip, but a pickle")
  with pytest.raises(
    ValueError, match=r"is not a .keras file: File is not a zip"
  ):
    interop.load(path)
  with pytest.raises(ValueError, match="has no readable HDF5 file"):
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
  with pytest.raises(ValueError, match="has no readable HDF5 file"):
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
    for _ in range(100):  # it is read or refused, and nothing else
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
  with pytest.raises(
    ValueError, match=r"^layer a: there is no 1 in the HDF5 fi"
  ):
    interop.load(path)
  weights = tmp_path / "model.weights.h5"
  weights.write_bytes(content.getvalue())
  with pytest.raises(ValueError, match=r"^layer lstm: there is no 1 in the HD"):
    interop.load_weights(weights)
  with h5py.File(content, "a") as file:
    del file["layers/lstm/cell/vars/1"]
    layout = h5py.VirtualLayout((H, 4 * H), float)
    layout[...] = h5py.VirtualSource(str(secret), "x", (H, 4 * H))
    file["layers/lstm/cell/vars"].create_virtual_dataset("1", layout)
  write(path, model(configured("LSTM", "a")), content.getvalue())
  message = r"^layer a: recurrent_kernel must be in the file, not in another$"
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
