"""Weights from and to Keras, with Keras as the oracle."""

import contextlib
import importlib.util
import os
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import gru, lstm, unroll, unroll_both, unroll_stack
from lstm_jax.interop import keras as interop
from tests.draws import B, D, H, T, normal_like, worst
from tests.interop.keras_layers import EACH, OPTIONS, SIDES, draw, from_options


@pytest.fixture(scope="module")
def keras():
  """Keras on JAX; the layers of `make` are float64."""
  if importlib.util.find_spec("keras") is None:
    pytest.skip("Keras is not installed")
  os.environ["KERAS_BACKEND"] = "jax"
  try:
    with as_keras():
      import keras
  except ImportError as error:  # Keras without its backend
    pytest.skip(f"Keras cannot be imported: {error}")
  assert keras.backend.backend() == "jax"
  keras.saving.register_keras_serializable("tests")(wide_tanh)
  return keras


def wide_tanh(a):
  """Tanh in float64: that of Keras on JAX rounds to float32."""
  return jnp.tanh(a)


WIDE = {"activation": wide_tanh}


def as_keras():
  """Return a context in which Keras may promote ranks and dtypes."""
  stack = contextlib.ExitStack()
  stack.enter_context(jax.numpy_rank_promotion("allow"))
  stack.enter_context(jax.numpy_dtype_promotion("standard"))
  return stack


# NumPy warns that `__array__` of Keras's variables takes no `copy`.
SAVED_BY_KERAS = pytest.mark.filterwarnings(
  "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)


def make(keras, kind, both=False, **options):
  options = from_options(kind) | options
  layer = getattr(keras.layers, kind.split()[0])(
    H, return_sequences=True, dtype="float64", **options
  )
  return keras.layers.Bidirectional(layer, dtype="float64") if both else layer


@pytest.mark.everyday(4)
@EACH
@SIDES
def test_outputs_and_every_gradient_are_those_of_keras(kind, both, keras, key):
  params = draw(key, kind, both)
  xs = normal_like(key, np.zeros((B, T, D)))
  cell, same = interop.from_keras(
    interop.to_keras(params), **from_options(kind)
  )
  assert cell is OPTIONS[kind][1] and worst(same, params) == 0
  with as_keras():
    tanh = {} if "activation" in from_options(kind) else WIDE
    layer = make(keras, kind, both, **tanh)
    layer.build(xs.shape)
    layer.set_weights(interop.to_keras(params))

    others = [v.value for v in layer.non_trainable_variables]  # seeds

    def theirs(variables, xs):
      return layer.stateless_call(variables, others, xs)[0]

    variables = [v.value for v in layer.trainable_variables]
    expected, pullback = jax.vjp(theirs, variables, xs)
    cotangent = normal_like(jax.random.key(1), expected)
    d_variables, d_xs = pullback(cotangent)

  def ours(params, xs):
    run = unroll_both if both else unroll
    return run(cell, params, None, xs, time_major=False)[1]

  found, pullback = jax.vjp(ours, params, xs)
  assert worst(found, expected) < 1e-12
  d_params, found = pullback(cotangent)
  assert worst(found, d_xs) < 1e-12
  for a, b in zip(interop.to_keras(d_params), d_variables, strict=True):
    b = np.asarray(b)
    if kind == "GRU" and a.shape[0] == 2:
      # z and r add both rows of biases; `to_keras` writes ours as the first.
      a, b = np.split(a, [2 * H], 1), np.split(b, [2 * H], 1)
      assert worst(a[0][0], b[0][0]) < 1e-12
      a, b = a[1], b[1]
    assert worst(a, b) < 1e-12


@SAVED_BY_KERAS
def test_a_saved_model_of_keras_is_read(keras, key, tmp_path):
  with as_keras():
    make_layer = partial(make, keras)
    model = keras.Sequential(
      [
        keras.layers.Input((None, D)),
        make_layer("LSTM hard", name="first", dropout=0.2, seed=1),
        keras.Sequential([make_layer("GRU", True)], name="inner"),
        make_layer("GRU before hard", use_bias=False),
        make_layer("LSTM"),
        make_layer("SimpleRNN relu", name="last"),
      ]
    )
    for layer in model.layers:
      shapes = [np.zeros(w.shape) for w in layer.get_weights()]
      layer.set_weights([x / 2 for x in normal_like(key, shapes)])
    xs = normal_like(key, np.zeros((B, T, D)))
    expected = np.asarray(model(xs, training=False))
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
  layers = interop.load(tmp_path / "model.keras")
  first, second, _, fourth, last = layers
  assert (first, last) == ("first", "last")
  assert second.startswith("inner/bidirectional")
  cells, params = zip(*layers.values(), strict=True)
  assert cells[1:4] == (gru, OPTIONS["GRU before hard"][1], lstm)
  kinds = "LSTM hard", "GRU", "GRU before hard", "LSTM", "SimpleRNN relu"
  for layer, ours, kind in zip(model.layers, params, kinds, strict=True):
    weights = layer.get_weights()
    _, same = interop.from_keras(weights, **from_options(kind))
    assert worst(ours, same) == 0
  _, found = unroll_stack(cells, params, None, xs, time_major=False)
  assert worst(found, expected) < 1e-5  # the tanh of Keras is in float32
  _, chosen = interop.load(tmp_path / "model.keras", names=[fourth])[fourth]
  assert worst(chosen, params[3]) == 0
  read = partial(interop.load_weights, tmp_path / "model.weights.h5")
  # The groups of the layers 1, 2, 0, 3 and 4. The gru has no bias, by which
  # `load_weights` could tell its reset_after.
  groups = "sequential/bidirectional", "gru", "lstm", "lstm_1", "simple_rnn"
  others = [name for name in groups if name != "gru"]
  found = read(names=others) | read(names=["gru"], reset_after=False)
  for name, k in zip(groups, (1, 2, 0, 3, 4), strict=True):
    assert worst(found[name][1], params[k]) == 0


@SAVED_BY_KERAS
def test_the_names_of_one_layer_tell_its_directions(keras):
  layers = keras.layers
  with as_keras():
    for layer in (
      layers.LSTM(H, name="backward"),
      layers.LSTM(H, name="backward_reader"),
      layers.LSTM(H, name="forward_reader"),
      layers.Bidirectional(
        layers.LSTM(H), backward_layer=layers.LSTM(H, go_backwards=True)
      ),
      layers.Bidirectional(layers.LSTM(H), name="backward_bi"),
    ):
      layer.build((B, T, D))
      weights = layer.get_weights()
      paths = [variable.path for variable in layer.trainable_variables]
      named = dict(zip(paths, weights, strict=True))
      _, found = interop.from_keras(named)
      _, expected = interop.from_keras(weights)
      assert worst(found, expected) == 0


@SAVED_BY_KERAS
def test_an_lstm_is_found_beside_a_class_whose_group_has_its_name(
  keras, tmp_path
):
  layers = keras.layers
  own = type("Lstm", (layers.LSTM,), {})
  path = tmp_path / "model.keras"
  with as_keras():
    real = layers.LSTM(H, name="real")
    first = own(H, return_sequences=True)
    keras.Sequential([layers.Input((None, D)), first, real]).save(path)
  _, expected = interop.from_keras(real.get_weights())
  assert worst(interop.load(path)["real"][1], expected) == 0


@SAVED_BY_KERAS
def test_settings_that_have_no_cell_are_refused(keras, tmp_path):
  layers = keras.layers
  refused = {
    "activation must be .*, got 'softsign'": layers.LSTM(
      H, activation="softsign", name="bad"
    ),
    r"activation must be .*, got \{": layers.GRU(
      H, activation=layers.LeakyReLU(), name="bad"
    ),
    "go_backwards must be False, got True": layers.GRU(
      H, go_backwards=True, name="bad"
    ),
    "merge_mode must be concat, got sum": layers.Bidirectional(
      layers.LSTM(H), merge_mode="sum", name="bad"
    ),
  }
  path = tmp_path / "model.keras"
  for message, layer in refused.items():
    with as_keras():
      keras.Sequential([layers.Input((None, D)), layer]).save(path)
    with pytest.raises(ValueError, match=f"^layer bad: (recurrent_)?{message}"):
      interop.load(path)
