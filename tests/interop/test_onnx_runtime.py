"""Nodes of ONNX computed by onnxruntime and by the evaluator of ONNX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import coupled_lstm, gru, gru_reset_before, lstm, rnn
from lstm_jax.cells import RELU, SIGMOID, TANH, make_hard_sigmoid
from lstm_jax.interop import onnx as interop
from tests.draws import B, D, H, T, normal_like, worst
from tests.interop import onnx_models
from tests.interop.onnx_models import CELLS, layer_weights, onnx

HARD = make_hard_sigmoid(0.3)
# A cell with other activations, its operator, and ONNX's names of these.
OTHERS = {
  "lstm": (
    lstm.with_activations(HARD, TANH, RELU),
    "LSTM",
    ["HardSigmoid", "Tanh", "Relu"],
  ),
  "gru": (gru.with_activations(HARD, RELU), "GRU", ["HardSigmoid", "Relu"]),
  "gru_reset_before": (
    gru_reset_before.with_activations(SIGMOID, HARD),
    "GRU",
    ["Sigmoid", "HardSigmoid"],
  ),
  "rnn": (rnn.with_activation(HARD), "RNN", ["HardSigmoid"]),
}
DIRECTIONS = "forward", "reverse", "bidirectional"
EVERY_DAY = ("lstm", "reverse"), ("peephole_lstm", "bidirectional")
NODES = pytest.mark.parametrize(
  ("name", "direction"),
  [
    pytest.param(
      name,
      direction,
      marks=() if (name, direction) in EVERY_DAY else pytest.mark.exhaustive,
    )
    for name in CELLS
    for direction in DIRECTIONS
  ],
)


@NODES
def test_onnxruntime_computes_the_same(name, direction):
  """In float32: ONNX's node in this library, and our node in onnxruntime."""
  onnxruntime = pytest.importorskip(
    "onnxruntime", reason="onnxruntime is not installed"
  )
  cell, op_type, options = CELLS[name]
  node, initializers, inputs = onnx_models.random_node(
    op_type,
    (T, B, D, H),
    np.random.default_rng(0),
    np.float32,
    lengths=[T, 2, 1],
    direction=direction,
    **options,
  )
  model = onnx_models.model_of(node, initializers, inputs)
  theirs = onnx_models.run_onnxruntime(onnxruntime, model, inputs)
  ours = interop.run_node(node, initializers, inputs)
  assert all(np.abs(x).max() > 0.1 for x in theirs.values())
  assert worst(jax.tree.map(np.asarray, ours), theirs) < 1e-5
  layer = interop.from_onnx(node, initializers)
  assert layer.cell is cell and layer.reverse == (direction == "reverse")
  written = interop.to_onnx(
    layer.cell,
    layer.params,
    reverse=layer.reverse,
    inputs={k: k for k in inputs if k != "lengths"}
    | {"sequence_lens": "lengths"},
    prefix="layer.",
  )
  model = onnx_models.model_of(*written, inputs)
  again = onnx_models.run_onnxruntime(onnxruntime, model, inputs)
  assert worst(again, theirs) < 1e-5


@pytest.mark.parametrize(
  ("name", "both"),
  [
    ("lstm", True),
    pytest.param("gru", False, marks=pytest.mark.exhaustive),
    pytest.param("gru_reset_before", True, marks=pytest.mark.exhaustive),
    pytest.param("rnn", True, marks=pytest.mark.exhaustive),
  ],
)
def test_onnxruntime_computes_the_same_with_other_activations(name, both, key):
  onnxruntime = pytest.importorskip(
    "onnxruntime", reason="onnxruntime is not installed"
  )
  cell, op_type, names = OTHERS[name]
  params = layer_weights(cell, key, both)
  node, tensors = interop.to_onnx(cell, params)
  attributes = {
    a.name: onnx.helper.get_attribute_value(a) for a in node.attribute
  }
  assert node.op_type == op_type
  found = [name.decode() for name in attributes["activations"]]
  assert found == names * (1 + both)
  assert len(attributes["activation_alpha"]) == 1 + both
  layer = interop.from_onnx(node, tensors)
  assert layer.cell is cell and worst(layer.params, params) == 0
  inputs = {"X": np.asarray(normal_like(key, np.zeros((T, B, D), jnp.float32)))}
  model = onnx_models.model_of(node, tensors, inputs)
  theirs = onnx_models.run_onnxruntime(onnxruntime, model, inputs)
  ours = jax.tree.map(np.asarray, interop.run_node(node, tensors, inputs))
  assert all(np.abs(x).max() > 0.1 for x in theirs.values())
  assert worst(ours, theirs) < 1e-5 * max(np.abs(theirs["Y"]).max(), 1)


@NODES
@pytest.mark.parametrize("layout", [0, 1])
def test_the_evaluator_of_onnx_computes_the_same_in_float64(
  name, direction, layout
):
  """Without lengths, which the evaluator ignores, as it does input_forget."""
  cell, op_type, options = CELLS[name]
  node, initializers, inputs = onnx_models.random_node(
    op_type,
    (T, B, D, H),
    np.random.default_rng(0),
    np.float64,
    layout=layout,
    direction=direction,
    **options,
  )
  layer = interop.from_onnx(node, initializers)
  assert layer.cell is cell and layer.time_major == (not layout)
  ours = interop.run_node(node, initializers, inputs)
  written = interop.to_onnx(
    layer.cell,
    layer.params,
    reverse=layer.reverse,
    time_major=layer.time_major,
    inputs={k: k for k in inputs},
  )
  # Our node of a `coupled_lstm` has the rows of i and of f, which then need no
  # input_forget. The random node's rows of f are unrelated to those of i.
  models = [written]
  if cell is not coupled_lstm:
    models.append((node, initializers))
  for model in models:
    theirs = onnx_models.run_reference(
      onnx_models.model_of(*model, inputs), inputs
    )
    assert worst(jax.tree.map(np.asarray, ours), theirs) < 1e-12
