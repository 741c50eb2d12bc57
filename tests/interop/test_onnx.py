"""Recurrent nodes of ONNX: its own test cases, round trips and files."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import gru, lstm, peephole_lstm
from lstm_jax.interop import onnx as interop
from tests.draws import B, D, H, T, normal_like, worst
from tests.interop import onnx_models
from tests.interop.onnx_models import CELLS, layer_weights, onnx

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


@pytest.mark.everyday(9)
@pytest.mark.parametrize("name", CASES)
def test_a_case_of_onnx_is_computed_by_unroll(name):
  case = cases()[name]
  (node,) = case.model.graph.node
  ((inputs, expected),) = case.data_sets
  graph_inputs = [x.name for x in case.model.graph.input]
  values = dict(zip(graph_inputs, inputs, strict=True))
  names = ("W", "R", "B", "P")
  weights = {k: v for k, v in values.items() if k in names}
  run_time = {k: v for k, v in values.items() if k not in names}
  found = interop.run_node(node, weights, run_time)
  outputs = [name for name in node.output if name]
  assert sorted(found) == sorted(outputs)
  for output, value in zip(outputs, expected, strict=True):
    assert worst(np.asarray(found[output]), value) < 1e-6  # float32 rounds


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


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_missing_bias_and_state_are_zero(dtype, key):
  names = {k: k for k in ("X", "initial_h", "initial_c")}
  params = layer_weights(lstm, key, False)
  params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
  node, initializers = interop.to_onnx(lstm, params, inputs=names)
  weights = {t.name: onnx.numpy_helper.to_array(t) for t in initializers}
  xs = np.ones((T, B, D), dtype)
  state = np.zeros((1, B, H), dtype)
  zeros = weights | {"B": 0 * weights["B"]}
  inputs = {"X": xs, "initial_h": state, "initial_c": state}
  expected = interop.run_node(node, zeros, inputs)
  node.input[:] = ["X", "W", "R"]
  found = interop.run_node(node, weights, {"X": xs})
  assert worst(found, expected) == 0


@pytest.mark.parametrize("cell", [peephole_lstm, gru])
def test_gradients_reach_the_arrays_of_a_node(cell, key):
  like = jax.eval_shape(lambda: cell.init(key, D, H))
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype("f"), like)
  node, tensors = interop.to_onnx(cell, params)
  arrays = {t.name: onnx.numpy_helper.to_array(t) for t in tensors}

  def half_square(arrays):
    leaves = jax.tree.leaves(interop.from_onnx(node, arrays).params)
    return sum(jnp.vdot(leaf, leaf) for leaf in leaves) / 2

  found = jax.jit(jax.grad(half_square))(arrays)
  # Where B's halves are added (but for h of a GRU), their gradients are equal.
  del arrays["B"]
  assert worst({name: found[name] for name in arrays}, arrays) == 0


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
  for same in (str(path), bytes(path)):
    assert worst(interop.load(same)["encoder"].params, params) == 0
  with pytest.raises(TypeError, match="PathLike object, not int"):
    interop.load(3)
  assert worst(layer.params, params) == 0
  graph = model.graph
  # Weights may be Constant nodes. A layer whose node has no name has the name
  # of the node's first output.
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
  # PyTorch writes equal weights once; a node Identity gives the second name.
  second = onnx.helper.make_node("Identity", ["W"], ["W again"])
  graph.node[-1].input[1] = "W again"
  graph.node.insert(len(constants), second)
  onnx.save(model, path)
  assert worst(interop.load(path)["Y"].params, params) == 0


def test_a_batch_may_be_empty(key):
  node, weights = interop.to_onnx(lstm, layer_weights(lstm, key, False))
  xs = np.ones((T, 0, D), np.float32)
  found = interop.run_node(node, weights, {"X": xs})
  assert found["Y"].shape == (T, 1, 0, H)
  assert found["Y_c"].shape == (1, 0, H)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_a_last_state_can_be_the_next_initial_one(dtype, key):
  names = {k: k for k in ("X", "initial_h", "initial_c")}
  params = layer_weights(lstm, key, False)
  node, tensors = interop.to_onnx(lstm, params, inputs=names)
  weights = {t.name: onnx.numpy_helper.to_array(t) for t in tensors}
  weights = {k: x.astype(dtype) for k, x in weights.items()}
  state = {k: np.zeros((1, B, H), dtype) for k in ("initial_h", "initial_c")}
  for _ in range(2):
    inputs = {"X": np.ones((T, B, D), dtype), **state}
    outputs = interop.run_node(node, weights, inputs)
    assert {x.dtype for x in outputs.values()} == {np.dtype(dtype)}
    state = {f"initial_{k}": outputs[f"Y_{k}"] for k in "hc"}


@pytest.mark.parametrize("both", [False, True], ids=["one", "both"])
def test_a_batch_first_node_computes_the_same(both, key):
  names = {k: k for k in ("X", "initial_h", "initial_c")}
  params = layer_weights(lstm, key, both)
  state = normal_like(key, np.zeros((1 + both, B, H), np.float32))
  inputs = {"X": normal_like(key, np.zeros((T, B, D), np.float32))}
  inputs |= {"initial_h": state, "initial_c": -state}
  found, expected = (
    interop.run_node(
      *interop.to_onnx(lstm, params, inputs=names, time_major=time_major),
      inputs
      if time_major
      else {k: x.swapaxes(0, 1) for k, x in inputs.items()},
    )
    for time_major in (False, True)
  )
  assert worst(found["Y"], jnp.moveaxis(expected["Y"], 2, 0)) == 0
  for name in "Y_h", "Y_c":
    assert worst(found[name], expected[name].swapaxes(0, 1)) == 0
