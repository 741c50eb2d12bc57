"""Recurrent nodes of ONNX: its own cases, onnxruntime, and its evaluator."""

import importlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import (
  Directions,
  coupled_lstm,
  gru,
  lstm,
  peephole_lstm,
  projected_lstm,
  rnn,
)
from lstm_jax.interop import onnx as interop
from tests.draws import B, D, H, T, normal_like, worst
from tests.interop import onnx_models
from tests.interop.onnx_models import onnx

CELLS = {
  "lstm": (lstm, "LSTM", {}),
  "peephole_lstm": (peephole_lstm, "LSTM", {"peepholes": True}),
  "coupled_lstm": (coupled_lstm, "LSTM", {"input_forget": 1}),
  "gru": (gru, "GRU", {"linear_before_reset": 1}),
  "rnn": (rnn, "RNN", {}),
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


def layer_weights(cell, key, both, dtype=jnp.float32):
  keys = jax.random.split(key, 2)
  params = [normal_like(k, cell.init(k, D, H, dtype)) for k in keys]
  return Directions(*params) if both else params[0]


def test_the_list_has_every_case_of_onnx():
  assert set(cases()) == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_a_case_of_onnx_is_computed_by_unroll(name):
  case = cases()[name]
  (node,) = case.model.graph.node
  if node.op_type == "GRU":  # all of them reset before the product
    with pytest.raises(ValueError, match="linear_before_reset must be 1"):
      interop.from_onnx(node, {})
    return
  ((inputs, expected),) = case.data_sets
  graph_inputs = [x.name for x in case.model.graph.input]
  values = dict(zip(graph_inputs, inputs, strict=True))
  found = interop.run_node(node, values, values)
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
    assert layer.params[0][0].dtype == dtype if both else dtype
    assert layer.time_major and not layer.reverse


def test_the_default_activations_may_be_written_out(key):
  node, tensors = interop.to_onnx(gru, layer_weights(gru, key, True))
  names = ["sigmoid", "Tanh"] * 2
  node.attribute.append(onnx.helper.make_attribute("activations", names))
  assert interop.from_onnx(node, tensors).cell is gru
  del node.attribute[-1].strings[2:]  # those of one direction only
  with pytest.raises(ValueError, match="got sigmoid, Tanh"):
    interop.from_onnx(node, tensors)


def test_a_missing_bias_and_state_are_zero(key):
  node, initializers = interop.to_onnx(lstm, layer_weights(lstm, key, False))
  weights = {t.name: onnx.numpy_helper.to_array(t) for t in initializers}
  xs = np.ones((T, B, D), np.float32)
  zeros = weights | {"B": 0 * weights["B"]}
  expected = interop.run_node(node, zeros, {"X": xs})
  node.input[:] = ["X", "W", "R"]
  found = interop.run_node(node, weights, {"X": xs})
  assert worst(found, expected) == 0


def test_rows_of_length_zero_keep_their_state(key):
  params = layer_weights(gru, key, True)
  names = {k: k for k in ("X", "sequence_lens", "initial_h")}
  node, tensors = interop.to_onnx(gru, params, inputs=names)
  h = normal_like(key, jnp.zeros((2, B, H), jnp.float32))
  inputs = {
    "X": np.ones((T, B, D), np.float32),
    "sequence_lens": np.array([T, 0, 2]),
    "initial_h": h,
  }
  found = interop.run_node(node, tensors, inputs)
  assert worst(found["Y_h"][:, 1], h[:, 1]) == 0
  assert not found["Y"][:, :, 1].any() and not found["Y"][2:, :, 2].any()


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"op_type": "Conv"}, "must be one of LSTM, GRU, RNN, got Conv"),
    ({"domain": "my"}, "must be one of LSTM, GRU, RNN, got my.LSTM"),
    ({"clip": 2.5}, "clip must be absent, since no cell has it, got 2.5"),
    ({"layout": 2}, "layout must be 0 or 1, got 2"),
    ({"direction": "up"}, "forward, reverse, bidirectional, got 'up'"),
    ({"input_forget": 2}, "input_forget must be 0 or 1, got 2"),
    (
      {"activations": ["Relu", "Tanh", "Tanh"]},
      "activations of LSTM must be Sigmoid, Tanh, Tanh, got Relu, Tanh, Tanh",
    ),
    ({"activations": ["Tanh"]}, "must be Sigmoid, Tanh, Tanh, got Tanh"),
    ({"speed": 1}, "LSTM has no attribute speed that is known"),
    ({"hidden_size": 7}, "R must have hidden_size=7 as its last axis, got"),
    ({"direction": "bidirectional"}, r"R \('R'\) must be \[2, any, any\], got"),
  ],
)
def test_a_node_without_an_equal_here_is_refused(change, message, key):
  node, tensors = interop.to_onnx(lstm, layer_weights(lstm, key, False))
  for name, value in change.items():
    if name in ("op_type", "domain"):
      setattr(node, name, value)
      continue
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])
  with pytest.raises(ValueError, match=message):
    interop.from_onnx(node, tensors)


def test_tensors_that_do_not_fit_are_refused(key):
  params = layer_weights(peephole_lstm, key, False)
  node, initializers = interop.to_onnx(peephole_lstm, params, prefix="a.")
  good = {t.name: onnx.numpy_helper.to_array(t) for t in initializers}

  def refused(match, **changes):
    changed = {f"a.{k}": v for k, v in changes.items()}
    arrays = {k: v for k, v in (good | changed).items() if v is not None}
    with pytest.raises(ValueError, match=match):
      interop.from_onnx(node, arrays)

  refused("W is missing: there is no tensor 'a.W'", W=None)
  refused(
    r"W \('a.W'\) must be \[1, 24, any\], got \(1, 8, 4\)",
    W=np.ones((1, 8, 4), np.float32),
  )
  refused(r"R \('a.R'\) must be \[1, any, any\]", R=np.ones((24, 6)))
  refused(r"B \('a.B'\) must be \[1, 48\]", B=np.ones((1, 24), np.float32))
  refused(r"P \('a.P'\) must be \[1, 18\]", P=np.ones((1, 24), np.float32))
  refused(r"R \('a.R'\) must be \[1, 24, 6\]", R=np.ones((1, 18, 6), "f"))
  refused("B must be float32, as R, got float64", B=np.ones((1, 48)))
  refused("must hold floats, got int64", W=np.ones((1, 24, D), int))
  node.attribute.append(onnx.helper.make_attribute("input_forget", 1))
  refused("input_forget must be 0 beside P")


def test_inputs_that_do_not_fit_are_refused(key):
  names = {k: k for k in ("X", "sequence_lens", "initial_h", "initial_c")}
  params = layer_weights(lstm, key, False)
  node, tensors = interop.to_onnx(lstm, params, inputs=names)
  state = np.ones((1, B, H), np.float32)
  good = {
    "X": np.ones((T, B, D), np.float32),
    "sequence_lens": np.array([1, 2, 3]),
    "initial_h": state,
    "initial_c": state,
  }

  def refused(match, **changes):
    inputs = {k: v for k, v in (good | changes).items() if v is not None}
    with pytest.raises(ValueError, match=match):
      interop.run_node(node, tensors, inputs)

  refused(r"X must be float32 \[T, B, 4\], got float64", X=np.ones((T, B, D)))
  refused(r"X must be .*, got float32 \(5, 4\)", X=np.ones((T, D), "f"))
  refused(r"sequence_lens must be integers \[3\]", sequence_lens=np.ones(3))
  refused(r"integers \[3\], got int64 \(2,\)", sequence_lens=np.array([1, 2]))
  refused(r"initial_c must be float32 \[1, 3, 6\], got", initial_c=state[0])
  refused(
    r"initial_h must be float32 .*, got float64", initial_h=state.astype(float)
  )
  refused(r"initial_c \('initial_c'\) is missing, got X, in", initial_c=None)


def test_what_onnx_cannot_hold_is_refused(key):
  params = projected_lstm.init(key, D, H)
  known = "projected_lstm, only for lstm, peephole_lstm, coupled_lstm, gru, rnn"
  with pytest.raises(ValueError, match=f"no operator for the cell {known}"):
    interop.to_onnx(projected_lstm, params)
  params = lstm.init(key, D, H)
  with pytest.raises(ValueError, match="params must be GRUParams, got LSTM"):
    interop.to_onnx(gru, params)
  with pytest.raises(
    ValueError, match="w_x must be float32 or float64, got bf"
  ):
    interop.to_onnx(lstm, lstm.init(key, D, H, jnp.bfloat16))
  both = Directions(params, params)
  with pytest.raises(ValueError, match="reverse must be False with both"):
    interop.to_onnx(lstm, both, reverse=True)
  with pytest.raises(ValueError, match=r"W of both .* got float32 \(12, 3\)"):
    interop.to_onnx(lstm, both._replace(backward=lstm.init(key, 3, 3)))
  with pytest.raises(
    ValueError, match=r"inputs of LSTM must be of X, .* got Z"
  ):
    interop.to_onnx(lstm, params, inputs={"X": "X", "Z": "z"})
  with pytest.raises(ValueError, match="outputs of GRU must be of Y, Y_h, got"):
    interop.to_onnx(gru, gru.init(key, D, H), outputs={"Y_c": "c"})


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


def test_a_file_that_is_not_onnx_is_refused(tmp_path):
  path = tmp_path / "layer.onnx"
  for data in (b"", b"\x80\x04 not ONNX, but a pickle", bytes(99), b"text"):
    path.write_bytes(data)
    with pytest.raises(
      ValueError, match=r"layer\.onnx is not a valid ONNX file"
    ):
      interop.load(path)
  identity = onnx.helper.make_node("Identity", ["X"], ["Y"])
  model = onnx_models.model_of(
    identity, [], {"X": np.ones((1, 1, 1, 1), np.float32)}
  )
  onnx.save(model, path)
  with pytest.raises(
    ValueError, match=r"layer\.onnx has none of LSTM, GRU, RNN"
  ):
    interop.load(path)
  with pytest.raises(FileNotFoundError):
    interop.load(tmp_path / "missing.onnx")


def test_without_onnx_the_extra_to_install_is_named(key, monkeypatch):
  params = lstm.init(key, D, H)
  node, tensors = interop.to_onnx(lstm, params)
  monkeypatch.setitem(sys.modules, "onnx", None)
  monkeypatch.setitem(sys.modules, "onnx.checker", None)
  for call in (
    lambda: interop.to_onnx(lstm, params),
    lambda: interop.from_onnx(node, tensors),
    lambda: interop.load("layer.onnx"),
  ):
    with pytest.raises(ModuleNotFoundError, match=r"'lstm-jax\[interop\]'"):
      call()
