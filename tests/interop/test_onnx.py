"""Recurrent nodes of ONNX: its own cases, onnxruntime, and its evaluator."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import (
  coupled_lstm,
  gru,
  gru_reset_before,
  lstm,
  peephole_lstm,
  rnn,
)
from lstm_jax.cells import RELU, SIGMOID, TANH, make_hard_sigmoid
from lstm_jax.interop import onnx as interop
from tests.draws import B, D, H, T, normal_like, worst
from tests.interop import onnx_models
from tests.interop.onnx_models import layer_weights, onnx

CELLS = {
  "lstm": (lstm, "LSTM", {}),
  "peephole_lstm": (peephole_lstm, "LSTM", {"peepholes": True}),
  "coupled_lstm": (coupled_lstm, "LSTM", {"input_forget": 1}),
  "gru": (gru, "GRU", {"linear_before_reset": 1}),
  "gru_reset_before": (gru_reset_before, "GRU", {}),
  "rnn": (rnn, "RNN", {}),
}
HARD = make_hard_sigmoid(0.3)
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
CASES = (
  "test_lstm_defaults",
  "test_lstm_with_initial_bias",
  "test_lstm_with_peepholes",
  "test_lstm_batchwise",
  "test_lstm_reverse",
  "test_lstm_bidirectional",
  "test_gru_defaults",
  "test_gru_with_initial_bias",
  "test_gru_seq_length",
  "test_gru_batchwise",
  "test_gru_reverse",
  "test_gru_bidirectional",
  "test_simple_rnn_defaults",
  "test_simple_rnn_with_initial_bias",
  "test_rnn_seq_length",
  "test_simple_rnn_batchwise",
  "test_simple_rnn_reverse",
  "test_simple_rnn_bidirectional",
)


def cases():
  """Return {name: case} of all of ONNX's own cases of the three operators."""
  node = importlib.import_module("onnx.backend.test.case.node")
  for module in ("lstm", "gru", "rnn"):  # each registers its cases
    importlib.import_module(f"onnx.backend.test.case.node.{module}")
  return {
    case.name: case
    for case in node._NodeTestCases
    if case.model.graph.node[0].op_type in onnx_models.GATES
  }


def test_the_list_has_every_case_of_onnx():
  assert set(cases()) == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_a_case_of_onnx_is_computed_by_unroll(name):
  case = cases()[name]
  (node,) = case.model.graph.node
  ((inputs, expected),) = case.data_sets
  graph_inputs = [x.name for x in case.model.graph.input]
  values = dict(zip(graph_inputs, inputs, strict=True))
  weights = ("W", "R", "B", "P")
  run_time = {k: v for k, v in values.items() if k not in weights}
  found = interop.run_node(node, values, run_time)
  outputs = [name for name in node.output if name]
  assert sorted(found) == sorted(outputs)
  for output, value in zip(outputs, expected, strict=True):
    assert worst(np.asarray(found[output]), value) < 1e-6  # of float32


@NODES
def test_onnxruntime_computes_the_same(name, direction):
  """Both conversions: its node here, and ours there, in float32."""
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
  """Without lengths, which it ignores, as it ignores input_forget."""
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
  models = [written]
  if cell is not coupled_lstm:
    models.append((node, initializers))
  for model in models:
    theirs = onnx_models.run_reference(
      onnx_models.model_of(*model, inputs), inputs
    )
    assert worst(jax.tree.map(np.asarray, ours), theirs) < 1e-12


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("both", [False, True], ids=["one", "both"])
def test_a_round_trip_keeps_the_weights_of_a_node(name, both, key):
  cell, _, _ = CELLS[name]
  for dtype in (jnp.float32, jnp.float64):
    params = layer_weights(cell, key, both, dtype)
    layer = interop.from_onnx(*interop.to_onnx(cell, params))
    assert layer.cell is cell and worst(layer.params, params) == 0
    assert jax.tree.leaves(layer.params)[0].dtype == dtype
    assert layer.time_major and not layer.reverse


def test_the_default_activations_may_be_written_out(key):
  node, tensors = interop.to_onnx(gru, layer_weights(gru, key, True))
  names = ["sigmoid", "Tanh"] * 2
  node.attribute.append(onnx.helper.make_attribute("activations", names))
  assert interop.from_onnx(node, tensors).cell is gru
  node.attribute[-1].strings[2] = b"Tanh"
  with pytest.raises(ValueError, match="both directions must have the same"):
    interop.from_onnx(node, tensors)


def test_a_missing_bias_and_state_are_zero(key):
  names = {k: k for k in ("X", "initial_h", "initial_c")}
  params = layer_weights(lstm, key, False)
  node, initializers = interop.to_onnx(lstm, params, inputs=names)
  weights = {t.name: onnx.numpy_helper.to_array(t) for t in initializers}
  xs = np.ones((T, B, D), np.float32)
  state = np.zeros((1, B, H), np.float32)
  zeros = weights | {"B": 0 * weights["B"]}
  inputs = {"X": xs, "initial_h": state, "initial_c": state}
  expected = interop.run_node(node, zeros, inputs)
  node.input[:] = ["X", "W", "R"]
  found = interop.run_node(node, weights, {"X": xs})
  assert worst(found, expected) == 0


def test_rows_of_length_zero_keep_their_state(key):
  params = layer_weights(gru, key, True)
  names = {k: k for k in ("X", "sequence_lens", "initial_h")}
  node, tensors = interop.to_onnx(gru, params, inputs=names)
  h = normal_like(key, np.zeros((2, B, H), jnp.float32))
  inputs = {
    "X": np.ones((T, B, D), np.float32),
    "sequence_lens": np.array([T, 0, 2]),
    "initial_h": h,
  }
  found = interop.run_node(node, tensors, inputs)
  assert worst(found["Y_h"][:, 1], h[:, 1]) == 0
  assert not found["Y"][:, :, 1].any() and not found["Y"][2:, :, 2].any()


def test_constant_states_and_lengths_are_used_unless_inputs_have_others(key):
  params = layer_weights(gru, key, False)
  names = {k: k for k in ("X", "sequence_lens", "initial_h")}
  node, tensors = interop.to_onnx(gru, params, inputs=names)
  weights = {t.name: onnx.numpy_helper.to_array(t) for t in tensors}
  xs = {"X": np.ones((T, B, D), np.float32)}
  more = {
    "sequence_lens": np.array([T, 1, 2], np.int32),
    "initial_h": np.ones((1, B, H), np.float32),
  }
  expected = interop.run_node(node, weights, xs | more)
  assert worst(interop.run_node(node, weights | more, xs), expected) == 0
  wrong = {
    "sequence_lens": more["sequence_lens"] * 0 + T,
    "initial_h": 0 * more["initial_h"],
  }
  found = interop.run_node(node, weights | more | wrong, xs | more)
  assert worst(found, expected) == 0


def test_the_layers_of_a_file_are_read(key, tmp_path):
  cell, params = peephole_lstm, layer_weights(peephole_lstm, key, True)
  node, tensors = interop.to_onnx(cell, params, name="encoder")
  inputs = {"X": np.ones((T, B, D), np.float32)}
  path = tmp_path / "layer.onnx"
  model = onnx_models.model_of(node, tensors, inputs)
  onnx.save(model, path)
  (name, layer) = next(iter(interop.load(path).items()))
  assert name == "encoder" and layer.cell is cell
  assert worst(layer.params, params) == 0
  graph = model.graph
  constants = [
    onnx.helper.make_node("Constant", [], [t.name], value=t)
    for t in graph.initializer
  ]
  nodes = [*constants, *graph.node]
  nodes[-1].name = ""
  del graph.initializer[:], graph.node[:]
  graph.node.extend(nodes)
  onnx.save(model, path)
  assert worst(interop.load(path)["Y"].params, params) == 0


def test_a_batch_may_be_empty(key):
  node, weights = interop.to_onnx(lstm, layer_weights(lstm, key, False))
  xs = np.ones((T, 0, D), np.float32)
  found = interop.run_node(node, weights, {"X": xs})
  assert found["Y"].shape == (T, 1, 0, H)
  assert found["Y_c"].shape == (1, 0, H)
