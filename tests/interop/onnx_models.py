"""One recurrent node of ONNX as a model, and programs that run it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import (
  Directions,
  coupled_lstm,
  gru,
  gru_reset_before,
  lstm,
  peephole_lstm,
  rnn,
)
from lstm_jax.interop.onnx.onnx_import import IR_VERSION, OPSET
from tests.draws import D, H, normal_like

onnx = pytest.importorskip("onnx", reason="the package onnx is not installed")

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}  # by operator
# A cell, its operator, and options of `random_node`.
CELLS = {
  "lstm": (lstm, "LSTM", {}),
  "peephole_lstm": (peephole_lstm, "LSTM", {"peepholes": True}),
  "coupled_lstm": (coupled_lstm, "LSTM", {"input_forget": 1}),
  "gru": (gru, "GRU", {"linear_before_reset": 1}),
  "gru_reset_before": (gru_reset_before, "GRU", {}),
  "rnn": (rnn, "RNN", {}),
}


def model_of(node, initializers, inputs):
  """Return the model of one node, for inputs of these shapes and dtypes."""

  def info(name, dtype, shape):
    kind = onnx.helper.np_dtype_to_tensor_dtype(dtype)
    return onnx.helper.make_tensor_value_info(name, kind, shape)

  dtype = next(iter(inputs.values())).dtype
  outputs = [name for name in node.output if name]
  graph = onnx.helper.make_graph(
    [node],
    "layer",
    [info(name, x.dtype, x.shape) for name, x in inputs.items()],
    [info(name, dtype, [None] * (3 + (name == "Y"))) for name in outputs],
    initializers,
  )
  model = opset_model(graph)
  onnx.checker.check_model(model, full_check=True)
  return model


def opset_model(graph):
  """Return the model of a graph, in the opset and format of this library."""
  return onnx.helper.make_model(
    graph,
    opset_imports=[onnx.helper.make_opsetid("", OPSET)],
    ir_version=IR_VERSION,
  )


def run_onnxruntime(onnxruntime, model, inputs):
  """Return {name: output} of a model."""
  session = onnxruntime.InferenceSession(
    model.SerializeToString(), providers=["CPUExecutionProvider"]
  )
  names = [output.name for output in session.get_outputs()]
  return dict(zip(names, session.run(names, inputs), strict=True))


def run_reference(model, inputs):
  """Return {name: output} of a model, by the evaluator of the package onnx."""
  from onnx.reference import ReferenceEvaluator

  names = [output.name for output in model.graph.output]
  found = ReferenceEvaluator(model).run(names, inputs)
  return dict(zip(names, found, strict=True))


def random_node(
  op_type,
  sizes,
  rng,
  dtype,
  *,
  peepholes=False,
  lengths=None,
  layout=0,
  direction="forward",
  **attributes,
):
  """Return (node, initializers, inputs), with random weights and inputs.

  Args:
    op_type: LSTM, GRU or RNN.
    sizes: (T, B, D, H).
    rng: NumPy's generator.
    dtype: of the weights, X and the initial state.
    peepholes: whether the node has P.
    lengths: the values of sequence_lens; None for a node without them.
    layout: 0 or 1, as in ONNX.
    direction: as in ONNX.
    **attributes: the node's other attributes.
  """
  steps, batch, size, hidden = sizes
  count, rows = 1 + (direction == "bidirectional"), GATES[op_type] * hidden

  def draw(*shape):
    return rng.standard_normal(shape).astype(dtype)

  xs, state = (steps, batch, size), (count, batch, hidden)
  if layout:
    xs, state = (batch, steps, size), (batch, count, hidden)
  inputs = {"X": draw(*xs), "initial_h": draw(*state)}
  weights = {
    "W": draw(count, rows, size),
    "R": draw(count, rows, hidden),
    "B": draw(count, 2 * rows),
  }
  names = ["X", "W", "R", "B", "", "initial_h"]
  outputs = ["Y", "Y_h"]
  if lengths is not None:
    inputs["lengths"] = np.asarray(lengths, np.int32)
    names[4] = "lengths"
  if op_type == "LSTM":
    inputs["initial_c"] = draw(*state)
    names.append("initial_c")
    outputs.append("Y_c")
  if peepholes:
    weights["P"] = draw(count, 3 * hidden)
    names.append("P")
  if layout:
    attributes["layout"] = layout
  node = onnx.helper.make_node(
    op_type,
    names,
    outputs,
    hidden_size=hidden,
    direction=direction,
    **attributes,
  )
  initializers = [
    onnx.numpy_helper.from_array(x, k) for k, x in weights.items()
  ]
  return node, initializers, inputs


def layer_weights(cell, key, both, dtype=jnp.float32):
  """Return random weights of one layer, or of both directions."""
  keys = jax.random.split(key, 2)
  params = [normal_like(k, cell.init(k, D, H, dtype)) for k in keys]
  return Directions(*params) if both else params[0]
