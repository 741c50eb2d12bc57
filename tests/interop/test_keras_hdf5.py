"""Unusual .keras and .weights.h5 files, and arguments: read or refused."""

import io
import re
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import Directions, gru, lstm, rnn
from lstm_jax.cells import RELU
from lstm_jax.interop import keras as interop
from lstm_jax.interop.keras.hdf5 import opened
from tests.draws import H, worst
from tests.interop.keras_layers import HARD, draw
from tests.interop.keras_written import (
  both_ways,
  configured,
  hdf5,
  model,
  write,
)

h5py = pytest.importorskip("h5py", reason="h5py is not installed")


def test_classes_of_one_name_in_snake_case_are_numbered_together(tmp_path, key):
  path = tmp_path / "model.keras"
  first, second = (draw(k, "LSTM") for k in jax.random.split(key))
  content = io.BytesIO(
    hdf5(
      {
        "layers/lstm/cell": interop.to_keras(first),
        "layers/lstm_1/cell": interop.to_keras(second),
      }
    )
  )
  own = {"module": "their", "class_name": "Lstm", "config": {}}
  config = model(own, configured("LSTM", "a"))
  with h5py.File(content, "a") as file:
    file.create_group("layers/lstm_1/vars").attrs["name"] = "a"
  write(path, config, content.getvalue())
  layers = interop.load(path)
  assert list(layers) == ["a"] and worst(layers["a"][1], second) == 0
  with h5py.File(content, "a") as file:
    file["layers/lstm_1/vars"].attrs["name"] = "b"
  write(path, config, content.getvalue())
  message = "^layer a: layers/lstm_1 must hold this layer, but holds b$"
  with pytest.raises(ValueError, match=message):
    interop.load(path)


def test_a_group_of_layers_within_itself_is_refused(tmp_path, key):
  path = tmp_path / "model.weights.h5"
  path.write_bytes(
    hdf5({"layers/lstm/cell": interop.to_keras(draw(key, "LSTM"))})
  )
  with h5py.File(path, "a") as file:
    file["layers/a/layers"] = file["layers"]
  with pytest.raises(ValueError, match=r"^layers/a/layers must be in "):
    interop.load_weights(path)


@pytest.mark.parametrize(
  ("path", "message"),
  [
    ("vars/1", "layers/lstm/cell/vars/1 must be a Dataset of the HDF5 file"),
    ("vars", "layers/lstm/cell/vars must be a Group of the HDF5 file"),
    ("", "there is no layers/lstm/cell/vars in the HDF5 file"),
  ],
)
def test_a_group_and_a_dataset_are_not_taken_for_each_other(
  path, message, tmp_path, key
):
  arrays = {"layers/lstm/cell": interop.to_keras(draw(key, "LSTM"))}
  content = io.BytesIO(hdf5(arrays))
  with h5py.File(content, "a") as file:
    place = f"layers/lstm/cell/{path}".rstrip("/")
    was_group = isinstance(file[place], h5py.Group)
    del file[place]
    file[place] = np.ones(3) if was_group else file.create_group("other")
  model_path = tmp_path / "model.keras"
  write(model_path, model(configured("LSTM", "a")), content.getvalue())
  with pytest.raises(ValueError, match=f"^layer a: {message}$"):
    interop.load(model_path)


@pytest.mark.parametrize("names", ["lstm", 5, [5]])
def test_names_that_are_no_list_of_names_are_refused(names, tmp_path, key):
  arrays = {"layers/lstm/cell": interop.to_keras(draw(key, "LSTM"))}
  path = tmp_path / "model.keras"
  write(path, model(configured("LSTM", "lstm")), hdf5(arrays))
  weights = tmp_path / "model.weights.h5"
  weights.write_bytes(hdf5(arrays))
  message = rf"^names must be a list of names, got {re.escape(repr(names))}$"
  with pytest.raises(ValueError, match=message):
    interop.load(path, names=names)
  with pytest.raises(ValueError, match=message):
    interop.load_weights(weights, names=names)


def test_an_error_of_the_caller_is_not_called_damage():
  content = io.BytesIO(hdf5({"layers/lstm/cell": [[1.0]]}))
  with (
    pytest.raises(TypeError, match=r"^mine$"),
    opened("path", content) as file,
  ):
    raise TypeError("mine")
  assert not file  # closed


@pytest.mark.parametrize("error", [MemoryError(), OverflowError("too\nlarge")])
def test_damage_is_one_line_that_names_the_layer(
  error, tmp_path, key, monkeypatch
):
  def fail(self, index):
    raise error

  path = tmp_path / "model.weights.h5"
  path.write_bytes(
    hdf5({"layers/lstm/cell": interop.to_keras(draw(key, "LSTM"))})
  )
  monkeypatch.setattr(h5py.Dataset, "__getitem__", fail)
  with pytest.raises(
    ValueError,
    match=r"^layer lstm: the file is damaged: (MemoryError|too large)$",
  ):
    interop.load_weights(path)


def test_arrays_of_the_other_byte_order_are_read(tmp_path, key):
  params = draw(key, "LSTM")
  arrays = [x.astype(x.dtype.newbyteorder()) for x in interop.to_keras(params)]
  path = tmp_path / "model.weights.h5"
  path.write_bytes(hdf5({"layers/lstm/cell": arrays}))
  assert worst(interop.load_weights(path)["lstm"][1], params) == 0


def test_a_layer_whose_kernel_has_more_axes_is_left_out(tmp_path, key):
  params = draw(key, "LSTM")
  conv = [np.ones((3, 2, 4)), np.ones((3, 1, 4)), np.ones(4)]
  arrays = {
    "layers/conv_lstm1d/cell": conv,
    "layers/lstm/cell": interop.to_keras(params),
  }
  path = tmp_path / "model.weights.h5"
  path.write_bytes(hdf5(arrays))
  layers = interop.load_weights(path)
  assert list(layers) == ["lstm"] and worst(layers["lstm"][1], params) == 0


def test_a_large_configuration_is_not_unpacked(tmp_path, monkeypatch):
  path = tmp_path / "model.keras"
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("config.json", bytes(65 << 20))  # more than files.LARGEST
  monkeypatch.setattr(zipfile.ZipExtFile, "read", None)  # a call is an error
  with pytest.raises(
    ValueError,
    match=r"is not a .keras file: config.json must have at most 67108864 bytes,"
    r" got 68157440$",
  ):
    interop.load(path)


@pytest.mark.parametrize(
  ("kind", "name", "value", "expected"),
  [
    ("LSTM", "units", None, "int"),
    ("LSTM", "units", 6.0, "int"),
    ("LSTM", "units", True, "int"),
    ("LSTM", "use_bias", "false", "bool"),
    ("LSTM", "use_bias", None, "bool"),
    ("GRU", "reset_after", "false", "bool"),
    ("GRU", "reset_after", None, "bool"),
  ],
)
def test_a_setting_of_another_type_is_refused(
  kind, name, value, expected, tmp_path, key
):
  arrays = {f"layers/{kind.lower()}/cell": interop.to_keras(draw(key, kind))}
  path = tmp_path / "model.keras"
  write(path, model(configured(kind, "a", **{name: value})), hdf5(arrays))
  message = f"^layer a: {name} must be of type {expected}, got {value!r}$"
  with pytest.raises(ValueError, match=message):
    interop.load(path)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("biased", ["forward", "backward"])
def test_one_direction_may_have_a_bias_and_the_other_none(
  kind, biased, tmp_path, key
):
  """Keras takes a backward_layer whose use_bias is not the forward's."""
  params = draw(key, kind, both=True)
  sides = {"forward": params.forward, "backward": params.backward}
  for side, p in sides.items():
    if side != biased:
      zeros = {f: 0 * x for f, x in p._asdict().items() if f.startswith("b")}
      sides[side] = p._replace(**zeros)
  arrays = {
    f"layers/bidirectional/{side}_layer/cell": interop.to_keras(
      p, bias=side == biased
    )
    for side, p in sides.items()
  }
  path = tmp_path / "model.keras"
  forward = configured(kind, use_bias=biased == "forward")
  backward = configured(kind, go_backwards=True, use_bias=biased == "backward")
  layer = both_ways(kind, "a", layer=forward, backward_layer=backward)
  write(path, model(layer), hdf5(arrays))
  weights = tmp_path / "model.weights.h5"
  weights.write_bytes(hdf5(arrays))
  reset_after = True if kind == "GRU" else None
  found = interop.load(path)["a"][1]
  assert worst(found, Directions(**sides)) == 0
  groups = interop.load_weights(weights, reset_after=reset_after)
  assert worst(groups["bidirectional"][1], Directions(**sides)) == 0


@pytest.mark.parametrize(
  ("group", "found"), [("model_weights/x", "model_weights"), (None, "nothing")]
)
def test_a_file_that_keras_3_did_not_write_is_named(group, found, tmp_path):
  path = tmp_path / "model.weights.h5"
  with h5py.File(path, "w") as file:
    if group:
      file.create_group(group)
  with pytest.raises(
    ValueError,
    match=r"model.weights.h5 must have the group layers, as Keras 3 saves a "
    f"Sequential or Functional model, got {found}",
  ):
    interop.load_weights(path)


def test_layers_of_other_classes_are_left_out(tmp_path, key):
  arrays = interop.to_keras(draw(key, "LSTM"))
  path = tmp_path / "model.weights.h5"
  # `int` does not read a number of 5,000 digits.
  names = "time_distributed/layer", "own/lstm", "rnn", f"gru_{9:05000}", "lstm"
  path.write_bytes(hdf5({f"layers/{name}/cell": arrays for name in names}))
  assert list(interop.load_weights(path)) == ["lstm"]
  assert list(interop.load_weights(path, names=["rnn"])) == ["rnn"]


def test_models_within_models_are_read(tmp_path):
  arrays = [np.ones(shape) for shape in ((3, 4 * H), (H, 4 * H), (4 * H,))]
  group = "functional/layers/sequential/layers/lstm"
  deep = model(configured("LSTM", "a"), name="deep")
  inner = model(deep, name="inner") | {"class_name": "Functional"}
  path = tmp_path / "model.keras"
  content = hdf5({f"layers/{group}/cell": arrays})
  write(path, model(inner), content)
  assert list(interop.load(path)) == ["inner/deep/a"]
  weights = tmp_path / "model.weights.h5"
  weights.write_bytes(content)
  assert list(interop.load_weights(weights)) == ["functional/sequential/lstm"]


def test_groups_are_in_the_order_of_their_numbers(tmp_path):
  arrays = [np.ones(shape) for shape in ((3, 4 * H), (H, 4 * H), (4 * H,))]
  groups = "gru", "gru_1", "lstm", "lstm_2", "lstm_10"  # all hold LSTMs
  path = tmp_path / "model.weights.h5"
  path.write_bytes(hdf5({f"layers/{name}/cell": arrays for name in groups}))
  assert tuple(interop.load_weights(path)) == groups


def test_the_activations_of_each_class_are_read(tmp_path, key):
  own = {"recurrent_activation": "hard_sigmoid", "activation": "relu"}
  layers = {
    "LSTM": (own, lstm.with_activations(HARD, RELU, RELU)),
    "GRU": (own, gru.with_activations(HARD, RELU)),
    "SimpleRNN": ({"activation": "relu"}, rnn.with_activation(RELU)),
  }
  arrays = {
    f"layers/{group}/cell": interop.to_keras(draw(key, kind))
    for group, kind in zip(("lstm", "gru", "simple_rnn"), layers, strict=True)
  }
  entries = [configured(kind, kind, **own) for kind, (own, _) in layers.items()]
  path = tmp_path / "model.keras"
  write(path, model(*entries), hdf5(arrays))
  found = {name: cell for name, (cell, _) in interop.load(path).items()}
  assert found == {kind: cell for kind, (_, cell) in layers.items()}


@pytest.mark.parametrize("stored", ["V2", "float32"])
def test_arrays_marked_as_bfloat16_are_read_as_bfloat16(stored, tmp_path, key):
  params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), draw(key, "LSTM"))
  path, group = tmp_path / "model.weights.h5", "layers/lstm/cell/vars"
  with h5py.File(path, "w") as file:
    for k, x in enumerate(interop.to_keras(params)):
      x = x.view("V2") if stored == "V2" else x.astype(stored)
      file[f"{group}/{k}"] = x
      file[f"{group}/{k}"].attrs["dtype"] = "bfloat16"
  _, found = interop.load_weights(path)["lstm"]
  assert {leaf.dtype for leaf in found} == {jnp.dtype(jnp.bfloat16)}
  assert worst(found, params) == 0
