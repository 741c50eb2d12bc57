"""Configurations of Keras models that `load` refuses, and a layer left out."""

import jax
import pytest

from lstm_jax.interop import keras as interop
from tests.draws import worst
from tests.interop.keras_layers import draw
from tests.interop.keras_written import (
  both_ways,
  configured,
  hdf5,
  model,
  write,
)

# A layer of a class that is not Keras's own. It goes backwards, so that it can
# be the backward layer of a Bidirectional with nothing else wrong.
THEIRS = configured("LSTM", "own", go_backwards=True)
THEIRS |= {"module": "their.layers"}


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
      with_setting(units=9),  # the file has H = 6
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
      model(both_ways("LSTM", "a", backward_layer=THEIRS)),
      "^layer a: the layer's module must be keras.layers, got their.layers$",
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
def test_a_configuration_that_cannot_be_converted_is_refused(
  config, message, tmp_path, key
):
  path = tmp_path / "model.keras"
  arrays = {"layers/lstm/cell": interop.to_keras(draw(key, "LSTM"))}
  write(path, config, hdf5(arrays))
  with pytest.raises(ValueError, match=message):
    interop.load(path)


def test_directions_with_different_settings_are_refused(tmp_path, key):
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
  # Nor may both read the sequence in one direction.
  config = model(both_ways("LSTM", "a", backward_layer=configured("LSTM")))
  write(path, config, hdf5(arrays))
  with pytest.raises(ValueError, match=r"go_backwards must be True, got False"):
    interop.load(path)


def test_a_layer_of_somebody_else_is_left_out(tmp_path, key):
  path = tmp_path / "model.keras"
  # The class THEIRS is called LSTM, too: its weights are in layers/lstm.
  first, second = (draw(k, "LSTM") for k in jax.random.split(key))
  arrays = {
    "layers/lstm/cell": interop.to_keras(first),
    "layers/lstm_1/cell": interop.to_keras(second),
  }
  write(path, model(THEIRS, configured("LSTM", "a")), hdf5(arrays))
  layers = interop.load(path)
  assert list(layers) == ["a"] and worst(layers["a"][1], second) == 0
