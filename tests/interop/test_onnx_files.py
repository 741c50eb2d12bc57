"""Files of ONNX: which are refused, and by which message."""

import os
import sys

import numpy as np
import pytest

from lstm_jax import lstm
from lstm_jax.interop import onnx as interop
from tests.draws import B, D, H, T
from tests.interop import onnx_models
from tests.interop.onnx_models import layer_weights, onnx


def test_a_file_that_is_not_onnx_is_refused(tmp_path):
  path = tmp_path / "layer.onnx"
  for data in (b"", b"\x80\x04 not ONNX, but a pickle", bytes(99), b"text"):
    path.write_bytes(data)
    with pytest.raises(
      ValueError, match=r"layer\.onnx is not a valid ONNX file"
    ):
      interop.load(path)
  save(path, onnx.helper.make_node("Identity", ["X"], ["Y"]))
  with pytest.raises(
    ValueError, match=r"layer\.onnx has none of LSTM, GRU, RNN"
  ):
    interop.load(path)
  with pytest.raises(FileNotFoundError):
    interop.load(tmp_path / "missing.onnx")


def test_without_onnx_the_extra_to_install_is_named(key, uninstall):
  params = lstm.init(key, D, H)
  node, tensors = interop.to_onnx(lstm, params)
  uninstall("onnx")
  for call in (
    lambda: interop.to_onnx(lstm, params),
    lambda: interop.from_onnx(node, tensors),
    lambda: interop.load("layer.onnx"),
  ):
    with pytest.raises(ModuleNotFoundError, match=r"'\.\[interop\]'"):
      call()


def save(path, *nodes, tensors=()):
  """Write a file of these nodes, with input X and tensors as constants."""
  xs = onnx.numpy_helper.from_array(np.ones((T, B, D), np.float32), "X")
  tensors = [xs, *tensors]
  graph = onnx.helper.make_graph(list(nodes), "layers", [], [], tensors)
  onnx.save(onnx_models.opset_model(graph), path)


def test_layers_of_one_name_are_refused(key, tmp_path):
  params = layer_weights(lstm, key, False)
  path = tmp_path / "layers.onnx"

  def refused(match, *names, outputs=("Y", "Z")):
    layers = [
      interop.to_onnx(lstm, params, name=name, outputs={"Y": output})
      for name, output in zip(names, outputs, strict=True)
    ]
    # All layers name their tensors alike, so those of the first serve all.
    save(path, *(node for node, _ in layers), tensors=layers[0][1])
    with pytest.raises(ValueError, match=match):
      interop.load(path)

  message = r"layers\.onnx: layers must have different names, got two of "
  refused(f"{message}'a'", "a", "a")
  # A node without a name has that of its output.
  refused(f"{message}'Z'", "Z", "")
  refused(f"{message}'Y'", "", "Y")


def test_a_node_without_name_and_outputs_is_refused(key, tmp_path):
  node, tensors = interop.to_onnx(lstm, layer_weights(lstm, key, False))
  for outputs in ([], [""]):
    node.output[:] = outputs
    save(tmp_path / "layer.onnx", node, tensors=tensors)
    with pytest.raises(ValueError, match=r"layer\.onnx: LSTM has neither a na"):
      interop.load(tmp_path / "layer.onnx")


def test_an_error_in_a_file_names_the_file_and_the_node(key, tmp_path):
  params = layer_weights(lstm, key, False)
  node, tensors = interop.to_onnx(lstm, params, name="encoder")
  node.attribute.append(onnx.helper.make_attribute("clip", 2.5))
  save(tmp_path / "layer.onnx", node, tensors=tensors)
  message = r"layer\.onnx: LSTM 'encoder': clip must be absent"
  with pytest.raises(ValueError, match=message):
    interop.load(tmp_path / "layer.onnx")


def test_the_ending_of_a_name_does_not_change_how_a_file_is_read(key, tmp_path):
  params = layer_weights(lstm, key, False)
  node, tensors = interop.to_onnx(lstm, params, name="encoder")
  for name in ("layer.json", "layer.txtpb", "layer"):
    save(tmp_path / "layer.onnx", node, tensors=tensors)
    path = (tmp_path / "layer.onnx").rename(tmp_path / name)
    assert list(interop.load(path)) == ["encoder"]


def test_a_constant_that_is_not_dense_is_refused(key, tmp_path):
  params = layer_weights(lstm, key, False)
  node, tensors = interop.to_onnx(lstm, params, name="encoder")
  node.input.extend([""] * (6 - len(node.input)))
  node.input[5] = "state"
  values = onnx.numpy_helper.from_array(np.ones(1, np.float32), "")
  indices = onnx.numpy_helper.from_array(np.zeros(1, np.int64), "")
  sparse = onnx.helper.make_sparse_tensor(values, indices, [1, B, H])
  constant = onnx.helper.make_node(
    "Constant", [], ["state"], sparse_value=sparse
  )
  save(tmp_path / "layer.onnx", constant, node, tensors=tensors)
  message = "'encoder': 'state' must be a dense tensor if it is a constant"
  with pytest.raises(ValueError, match=message):
    interop.load(tmp_path / "layer.onnx")


def test_text_that_is_not_utf_8_is_refused(key, tmp_path):
  params = layer_weights(lstm, key, False)
  node, tensors = interop.to_onnx(lstm, params)
  node.attribute.append(onnx.helper.make_attribute("speed", 1))
  path = tmp_path / "layer.onnx"
  save(path, node, tensors=tensors)
  path.write_bytes(path.read_bytes().replace(b"speed", b"sp\xff\xfed"))
  message = r"layer\.onnx is not a valid ONNX file: it has text that is not UT"
  with pytest.raises(ValueError, match=message):
    interop.load(path)


@pytest.mark.skipif(sys.platform != "linux", reason="names must be Unicode")
def test_a_path_that_is_not_utf_8_is_refused(tmp_path):
  path = os.fsencode(tmp_path) + b"/layer\xff.onnx"
  with open(path, "wb"):
    pass
  with pytest.raises(ValueError, match=r"path must be UTF-8, .*['\"]$"):
    interop.load(os.fsdecode(path))


def test_operators_of_other_domains_are_not_constants(key, tmp_path):
  """They compute something else, whatever their names."""
  params = layer_weights(lstm, key, False)
  node, tensors = interop.to_onnx(lstm, params, name="encoder")
  w, *others = tensors
  path = tmp_path / "layer.onnx"
  copy = onnx.helper.make_node("Identity", ["R"], ["W"], domain="other")
  constant = onnx.helper.make_node("Constant", [], ["W"], value=w)
  constant.domain = "other"
  for first in (copy, constant):
    graph = onnx.helper.make_graph([first, node], "layer", [], [], others)
    xs = onnx.numpy_helper.from_array(np.ones((T, B, D), np.float32), "X")
    graph.initializer.append(xs)
    model = onnx_models.opset_model(graph)
    model.opset_import.append(onnx.helper.make_opsetid("other", 1))
    onnx.save(model, path)
    with pytest.raises(ValueError, match=r"W is missing: .* no tensor 'W'"):
      interop.load(path)
