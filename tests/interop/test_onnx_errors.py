"""Nodes and tensors of ONNX that are refused, and by which message."""

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
)
from lstm_jax.cells import Activation
from lstm_jax.interop import onnx as interop
from tests.draws import B, D, H, T, worst
from tests.interop.onnx_models import layer_weights, onnx


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
      {"activations": ["Tanh"]},
      "must be 3 names, 3 for each direction, got Tanh",
    ),
    (
      {"activations": ["Elu", "Tanh", "Tanh"]},
      "must be one of Sigmoid, Tanh, Relu, HardSigmoid, got Elu",
    ),
    (
      {"activation_alpha": [0.2]},
      "must have at most one number for each HardSigmoid, got 1 more",
    ),
    (
      {
        "activations": ["HardSigmoid", "Tanh", "Tanh"],
        "activation_beta": [0.4],
      },
      "activation_beta of HardSigmoid must be 0.5, got 0.4",
    ),
    ({"speed": 1}, "LSTM has no attribute speed that is known"),
    ({"hidden_size": 7}, "^R .*must have hidden_size=7 as its last axis, got"),
    ({"direction": "bidirectional"}, r"R \('R'\) must be \[2, any, any\], got"),
  ],
)
def test_a_node_that_no_cell_computes_is_refused(change, message, key):
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


def test_a_repeated_attribute_and_too_many_inputs_or_outputs_are_refused(key):
  """To onnxruntime, a graph with such a node is invalid."""
  node, tensors = interop.to_onnx(gru, layer_weights(gru, key, False))
  of_lstm = interop.to_onnx(lstm, layer_weights(lstm, key, False))

  def refused(message, node, tensors):
    with pytest.raises(ValueError, match=message):
      interop.from_onnx(node, tensors)

  twice = onnx.NodeProto()
  twice.CopyFrom(node)
  attribute = onnx.helper.make_attribute("direction", "reverse")
  twice.attribute.append(attribute)
  refused("^direction must occur once in a node, got two$", twice, tensors)
  node.input.extend(["", "", "c"])  # initial_c, as if it were an LSTM
  refused(
    "^inputs of GRU must be at most 6, X, W, R, B, sequence_lens, initial_h, "
    "got 7$",
    node,
    tensors,
  )
  of_lstm[0].output.append("more")
  refused("^outputs of LSTM must be at most 3, Y, Y_h, Y_c, got 4$", *of_lstm)


def test_peepholes_and_coupled_gates_need_the_standard_activations(key):
  for cell in (peephole_lstm, coupled_lstm):
    node, tensors = interop.to_onnx(cell, layer_weights(cell, key, False))
    names = ["Sigmoid", "Relu", "Tanh"]
    node.attribute.append(onnx.helper.make_attribute("activations", names))
    message = "with P or input_forget=1, activations must be .* Tanh, got sig"
    with pytest.raises(ValueError, match=message):
      interop.from_onnx(node, tensors)


def test_tensors_that_do_not_fit_are_refused(key):
  # In tests.draws, D is 4 and H 6: so 3H is 18, 4H is 24, and 8H is 48.
  params = layer_weights(peephole_lstm, key, False)
  node, initializers = interop.to_onnx(peephole_lstm, params, prefix="a.")
  good = {t.name: onnx.numpy_helper.to_array(t) for t in initializers}

  def refused(match, **changes):
    changed = {f"a.{k}": v for k, v in changes.items()}
    arrays = {k: v for k, v in (good | changed).items() if v is not None}
    with pytest.raises(ValueError, match=match):
      interop.from_onnx(node, arrays)

  refused("W is missing: there is no tensor 'a.W', got a.B, a.P, a.R", W=None)
  refused(
    r"W \('a.W'\) must be \[1, 24, any\], got \(1, 8, 4\)",
    W=np.ones((1, 8, 4), np.float32),
  )
  refused(r"R \('a.R'\) must be \[1, any, any\]", R=np.ones((24, 6)))
  refused(r"B \('a.B'\) must be \[1, 48\]", B=np.ones((1, 24), np.float32))
  refused(r"P \('a.P'\) must be \[1, 18\]", P=np.ones((1, 24), np.float32))
  refused(r"R \('a.R'\) must be \[1, 24, 6\]", R=np.ones((1, 18, 6), "f"))
  refused(r"B \('a.B'\) must be float32, as R, got float64", B=np.ones((1, 48)))
  refused("must hold floats, got int64", W=np.ones((1, 24, D), int))
  node.attribute.append(onnx.helper.make_attribute("input_forget", 1))
  refused("input_forget must be 0 with P")


def test_inputs_that_do_not_fit_are_refused(key):
  # In tests.draws, T is 5, B 3, D 4 and H 6.
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
  refused(r"X \('X'\) must be an array of numbers, got str", X="ones")
  refused(r"initial_h .* an array of numbers, got list", initial_h=[None])
  refused(r"lens'\) must be .*, got list", sequence_lens=[1, 2**70, 3])
  expected = "inputs must be among X, sequence_lens, initial_h, initial_c, got"
  refused(f"{expected} 'intial_h'", intial_h=state)  # a misspelt name
  refused(f"{expected} 'W'", W=np.zeros((1, 24, D), np.float32))
  for length in (-1, T + 1):
    refused(
      rf"sequence_lens must be in \[0, {T}\], got {length}",
      sequence_lens=np.array([1, length, 2]),
    )


def test_constant_lengths_are_checked_under_jit_and_traced_ones_are_not(key):
  names = {"X": "X", "sequence_lens": "L"}
  params = layer_weights(lstm, key, False)
  node, tensors = interop.to_onnx(lstm, params, inputs=names)
  xs = np.ones((T, B, D), np.float32)

  def run(lengths):
    def f(x):
      return interop.run_node(node, tensors, {"X": x, "L": lengths})["Y"]

    return jax.jit(f)(xs)

  for kind in (np.array, jnp.array):
    assert not run(kind([1, 2, 3]))[1:, 0, 0].any()
    # In `jax.jit`, JAX adds a note to the error, on a line of its own.
    with pytest.raises(ValueError, match=rf"in \[0, {T}\], got {T + 1}\n"):
      run(kind([1, T + 1, 3]))
  traced = jax.jit(lambda inputs: interop.run_node(node, tensors, inputs)["Y"])(
    {"X": xs, "L": np.array([1, 2, 3])}
  )
  assert worst(traced, run(np.array([1, 2, 3]))) == 0
  in_list = jax.jit(lambda n: run([1, n, 3]))(2)
  assert worst(in_list, traced) == 0


def test_what_onnx_cannot_hold_is_refused(key):
  params = projected_lstm.init(key, D, H)
  known = (
    "projected_lstm, only for lstm, peephole_lstm, coupled_lstm, gru, "
    "gru_reset_before, rnn"
  )
  with pytest.raises(ValueError, match=f"no operator for the cell {known}"):
    interop.to_onnx(projected_lstm, params)
  params = lstm.init(key, D, H)
  cube = Activation("cube", lambda a: a**3, lambda y: 3 * jnp.cbrt(y) ** 2)
  with pytest.raises(ValueError, match="Relu, HardSigmoid, got cube"):
    interop.to_onnx(lstm.with_activations(cube), params)
  with pytest.raises(ValueError, match="params must be GRUParams, got LSTM"):
    interop.to_onnx(gru, params)
  with pytest.raises(
    ValueError, match="w_x must be float32 or float64, got bf"
  ):
    interop.to_onnx(lstm, lstm.init(key, D, H, jnp.bfloat16))
  mixed = params._replace(w_h=params.w_h.astype(jnp.float64))
  message = r"w_h must be float32, as params\.w_x, got float64"
  with pytest.raises(ValueError, match=message):
    interop.to_onnx(lstm, mixed)
  both = Directions(params, params)
  with pytest.raises(ValueError, match="reverse must be False with both"):
    interop.to_onnx(lstm, both, reverse=True)
  with pytest.raises(ValueError, match=r"W of both .* got float32 \(12, 3\)"):
    interop.to_onnx(lstm, both._replace(backward=lstm.init(key, 3, 3)))
  with pytest.raises(
    ValueError, match=r"inputs of LSTM must be among X, .* got Z, 1$"
  ):
    interop.to_onnx(lstm, params, inputs={"X": "X", "Z": "z", 1: "one"})
  with pytest.raises(
    ValueError, match="outputs of GRU must be among Y, Y_h, got"
  ):
    interop.to_onnx(gru, gru.init(key, D, H), outputs={"Y_c": "c"})


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"inputs": {}}, "inputs of LSTM must have X, got none"),
    ({"inputs": {"initial_h": "h"}}, "inputs .* must have X, got initial_h"),
    ({"inputs": {"X": ""}}, "inputs of LSTM must have a name for X, got ''"),
    ({"inputs": {"X": 3}}, "inputs of LSTM must have a name for X, got 3$"),
    ({"inputs": ["X"]}, "inputs of LSTM must be a mapping, got list$"),
    ({"outputs": {}}, "outputs of LSTM must have one of Y, Y_h, Y_c, got none"),
    ({"outputs": {"Y": ""}}, "outputs of LSTM must have a name for Y, got ''"),
    ({"inputs": {"X": "W"}}, "X must not have the name of W, got 'W'"),
    ({"outputs": {"Y": "a.B"}, "prefix": "a."}, "of B, got 'a.B'"),
    ({"outputs": {"Y": "X"}}, "Y must not have the name of X, got 'X'"),
    ({"outputs": {"Y": "y", "Y_h": "y"}}, "Y_h must not have the name of Y, "),
  ],
)
def test_names_that_make_no_valid_node_are_refused(options, message, key):
  with pytest.raises(ValueError, match=message):
    interop.to_onnx(lstm, lstm.init(key, D, H), **options)


def test_two_inputs_may_have_one_name(key):
  names = {"X": "X", "initial_h": "zeros", "initial_c": "zeros"}
  node, _ = interop.to_onnx(lstm, lstm.init(key, D, H), inputs=names)
  assert list(node.input) == ["X", "W", "R", "B", "", "zeros", "zeros"]


def test_a_model_or_weights_in_place_of_a_node_or_cell_are_refused(key):
  params = lstm.init(key, D, H)
  model = onnx.ModelProto()
  with pytest.raises(ValueError, match=r"^node must be .*, got ModelProto$"):
    interop.from_onnx(model, [])
  with pytest.raises(ValueError, match="no operator for the cell LSTMParams"):
    interop.to_onnx(params, lstm)
