"""HDF5 files that are not as Keras writes them: read or refused."""

import io

import jax
import pytest

from lstm_jax.interop import keras as interop
from tests.draws import worst
from tests.interop.keras_layers import draw
from tests.interop.test_keras_files import configured, hdf5, model, write

h5py = pytest.importorskip("h5py", reason="h5py is not installed")


def test_the_groups_of_classes_are_numbered_in_snake_case(tmp_path, key):
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
  with pytest.raises(
    ValueError,
    match=r"^layer a: layers/lstm_1 must be of this layer, got that of b$",
  ):
    interop.load(path)


def test_a_group_of_layers_within_itself_is_refused(tmp_path, key):
  path = tmp_path / "model.weights.h5"
  path.write_bytes(
    hdf5({"layers/lstm/cell": interop.to_keras(draw(key, "LSTM"))})
  )
  with h5py.File(path, "a") as file:
    file["layers/a/layers"] = file["layers"]
  with pytest.raises(
    ValueError, match=r"^layers/a/layers must be in .* twice$"
  ):
    interop.load_weights(path)
