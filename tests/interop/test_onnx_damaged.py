"""Damaged nodes, tensors and files of ONNX: each error is one clear line."""

import numpy as np
import pytest

from lstm_jax import Directions, lstm
from lstm_jax.interop import onnx as interop
from tests.draws import B, D, H, T, worst
from tests.interop import onnx_models
from tests.interop.onnx_models import layer_weights, onnx

REFERENCE = onnx.AttributeProto(name="clip", ref_attr_name="limit")
NO_TYPE = onnx.AttributeProto(name="layout")


# The name is that of an attribute, or of the input X, or of the tensor W.
@pytest.mark.parametrize(
  ("name", "value", "message"),
  [
    ("direction", 3, "direction must be of type STRING, got INT"),
    ("direction", ["reverse"], "direction must be of type STRING, got STRINGS"),
    ("direction", b"\xff\n", r"direction must be UTF-8, got b'\\xff\\n'"),
    ("activations", "Tanh", "activations must be of type STRINGS, got STRING"),
    ("activations", 3, "activations must be of type STRINGS, got INT"),
    (
      "activations",
      [b"\xff", "Tanh", "Tanh"],
      r"activations must be UTF-8, got b'\\xff'",
    ),
    ("activation_alpha", 0.2, "activation_alpha .* type FLOATS, got FLOAT"),
    ("activation_beta", 1, "activation_beta .* type FLOATS, got INT"),
    ("clip", "x", "clip must be of type FLOAT, got STRING"),
    ("clip", REFERENCE, "clip must have a value, got a reference to limit"),
    ("layout", NO_TYPE, "layout must be of type INT, got UNDEFINED"),
    ("hidden_size", 6.0, "hidden_size must be of type INT, got FLOAT"),
    ("speed", b"\xff", "LSTM has no attribute speed that is known here"),
    ("X", "", "the node must have a name for its input X, got none"),
    (
      "W",
      b"abc",
      r"tensor 'W' must have the data of its shape \[1, 24, 4\] and type 1, "
      "got ValueError.*",
    ),
  ],
)
def test_a_damaged_node_is_refused_in_one_line(name, value, message, key):
  node, tensors = interop.to_onnx(lstm, layer_weights(lstm, key, False))
  if name == "X":
    node.input[0] = value
  elif name == "W":
    tensors[0].raw_data = value
  else:
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    if not isinstance(value, onnx.AttributeProto):
      value = onnx.helper.make_attribute(name, value)
    node.attribute.extend([*kept, value])
  with pytest.raises(ValueError, match=f"^{message}$"):
    interop.run_node(node, tensors, {"X": np.ones((T, B, D), np.float32)})


def save(path, key, **options):
  """Write a file of one LSTM, whose X is an initializer.

  The options are those of `onnx.save`, and data_type, which replaces that of W.
  """
  node, tensors = interop.to_onnx(lstm, layer_weights(lstm, key, False))
  xs = onnx.numpy_helper.from_array(np.ones((T, B, D), np.float32), "X")
  if "data_type" in options:
    tensors[0].data_type = options.pop("data_type")
  graph = onnx.helper.make_graph([node], "layer", [], [], [xs, *tensors])
  onnx.save(onnx_models.opset_model(graph), path, **options)


@pytest.mark.parametrize("size", [0, 10, -4])
def test_a_truncated_file_of_external_data_is_refused(size, key, tmp_path):
  path, data = tmp_path / "layer.onnx", tmp_path / "layer.bin"
  save(
    path,
    key,
    save_as_external_data=True,
    location=data.name,
    size_threshold=0,
  )
  assert len(interop.load(path)) == 1
  data.write_bytes(data.read_bytes()[:size])
  with pytest.raises(ValueError, match=r"^/.*/layer\.onnx: .+$"):
    interop.load(path)
  graph = onnx.load(path, load_external_data=False).graph
  with pytest.raises(ValueError, match=r"^tensor 'X' must have the data of "):
    interop.from_onnx(graph.node[0], graph.initializer)


def test_a_tensor_of_an_unknown_type_is_refused(key, tmp_path):
  path = tmp_path / "layer.onnx"
  save(path, key, data_type=999)
  message = r"^/.*/layer\.onnx: tensor 'W' must have .* and type 999, got .+$"
  with pytest.raises(ValueError, match=message):
    interop.load(path)


def test_only_nodes_of_type_constant_are_read_as_constants(key, tmp_path):
  """Other nodes may have an attribute "value", and constants may lack it."""
  params = layer_weights(lstm, key, False)
  node, tensors = interop.to_onnx(
    lstm,
    params,
    inputs={"X": "X", "initial_h": "ones"},
    outputs={"Y_h": "last"},
  )
  value = onnx.numpy_helper.from_array(np.ones(1, np.float32))
  shape = onnx.numpy_helper.from_array(np.array([1, B, H]), "shape")
  ones = onnx.helper.make_node("ConstantOfShape", ["shape"], ["ones"])
  ones.attribute.append(onnx.helper.make_attribute("value", value))
  number = onnx.helper.make_node("Constant", [], ["half"], value_float=0.5)
  xs = onnx.numpy_helper.from_array(np.ones((T, B, D), np.float32), "X")
  graph = onnx.helper.make_graph(
    [ones, number, node], "layer", [], [], [xs, shape, *tensors]
  )
  onnx.save(onnx_models.opset_model(graph), tmp_path / "layer.onnx")
  layers = interop.load(tmp_path / "layer.onnx")
  assert list(layers) == ["last"]  # no name, and no output Y
  assert worst(layers["last"].params, params) == 0


def test_constants_that_a_layer_cannot_hold_are_found_by_their_names(key):
  params = layer_weights(lstm, key, False)
  names = {"X": "xs", "sequence_lens": "n", "initial_h": "h", "initial_c": "c"}
  node, tensors = interop.to_onnx(lstm, params, inputs=names)
  node.domain = "ai.onnx"  # the other name of ONNX's own domain
  weights = {t.name: onnx.numpy_helper.to_array(t) for t in tensors}
  state = np.zeros((1, B, H), np.float32)
  unused = {"sequence_lens": np.ones(B, int), "initial_h": state + 1}
  layer = interop.from_onnx(node, weights | unused | {"h": state, "c": state})
  assert worst(layer.params, params) == 0
  state[0, -1, -1] = 1  # one element
  of_a_state = "must be zero or not be a constant, .* has no initial state; "
  for input_name, value, message in (
    ("sequence_lens", np.ones(B, int), "must not be a constant, .* no lengths"),
    ("initial_h", state, of_a_state),
    ("initial_c", state, of_a_state),
  ):
    name = names[input_name]
    with pytest.raises(
      ValueError, match=rf"^{input_name} \('{name}'\) {message}"
    ):
      interop.from_onnx(node, weights | {name: value})


def test_a_tensor_without_a_name_is_no_missing_input(key):
  params = layer_weights(lstm, key, False)
  node, tensors = interop.to_onnx(lstm, params)
  unnamed = onnx.numpy_helper.from_array(np.ones(3, np.float32))
  layer = interop.from_onnx(node, [*tensors, unnamed])
  assert worst(layer.params, params) == 0


@pytest.mark.parametrize(
  ("tensors", "found"),
  [(None, "NoneType"), ([np.ones(3)], "ndarray"), ((3,), "int")],
)
def test_what_holds_no_tensors_is_refused(tensors, found, key):
  node, _ = interop.to_onnx(lstm, layer_weights(lstm, key, False))
  message = f"^tensors must be TensorProtos, or a mapping .*, got {found}$"
  with pytest.raises(ValueError, match=message):
    interop.from_onnx(node, tensors)


def test_lengths_of_a_batch_major_node_are_at_most_t(key):
  names = {"X": "X", "sequence_lens": "L"}
  params = layer_weights(lstm, key, False)
  node, tensors = interop.to_onnx(lstm, params, inputs=names, time_major=False)
  inputs = {"X": np.ones((B, T, D), np.float32), "L": np.array([T + 1, 1, 1])}
  message = rf"^sequence_lens must be in \[0, {T}\], got {T + 1}$"
  with pytest.raises(ValueError, match=message):
    interop.run_node(node, tensors, inputs)


def test_params_that_make_no_node_are_refused():
  def params(dtype, gates=4):
    shapes = (D, 4 * H), (H, 4 * H), (gates * H,)
    return lstm.LSTMParams(*(np.ones(shape, dtype) for shape in shapes))

  both = Directions(params(np.float32), params(np.float64))
  with pytest.raises(ValueError, match=r"^W of both .*, got float64 \(24, 4\)"):
    interop.to_onnx(lstm, both)
  with pytest.raises(ValueError, match=r"w_x must be .*, got float16$"):
    interop.to_onnx(lstm, params(np.float16))
  with pytest.raises(ValueError, match=r"^weights do not fit each other"):
    interop.to_onnx(lstm, params(np.float32, gates=3))
