"""ONNX's operators LSTM, GRU and RNN as cells and weights, and back.

An operator is one layer, in one direction or in both. The module `onnx.weights`
has the layout of its tensors.

  >>> import jax
  >>> from lstm_jax.cells import lstm
  >>> params = lstm.init(jax.random.key(0), input_size=3, hidden_size=5)
  >>> node, initializers = to_onnx(lstm, params)
  >>> node.op_type, [tensor.name for tensor in initializers]
  ('LSTM', ['W', 'R', 'B'])
  >>> layer = from_onnx(node, initializers)
  >>> layer.cell.__name__, layer.params.w_h.shape, layer.reverse
  ('lstm_jax.cells.lstm', (5, 20), False)
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax.cells.cell import Cell, Params
from lstm_jax.cells.checks import check_shape
from lstm_jax.interop.onnx.activations import write_activations
from lstm_jax.interop.onnx.attributes import (
  INPUTS,
  OUTPUTS,
  WEIGHTS,
  Attributes,
  read_attributes,
)
from lstm_jax.interop.onnx.names import (
  check_distinct,
  checked_names,
  positional,
)
from lstm_jax.interop.onnx.onnx_import import import_onnx
from lstm_jax.interop.onnx.weights import (
  GATES,
  from_tensors,
  operator,
  to_tensors,
)
from lstm_jax.interop.tensors import Array, as_array
from lstm_jax.sequence import Directions

Node = Any  # an onnx.NodeProto
TensorProto = Any  # an onnx.TensorProto
# Arrays by name, or TensorProtos, which have names: `graph.initializer`.
Tensors = Mapping[str, Any] | Iterable[TensorProto]


class Layer(NamedTuple):
  """A recurrent layer of an ONNX file, as arguments of `unroll`.

  Attributes:
    cell: of the layer.
    params: the layer's weights; `Directions` of them, for `unroll_both`, if the
      layer is bidirectional.
    reverse: True if it runs from the last step to the first.
    time_major: False if inputs and outputs are [B, T, ...] (layout=1).
  """

  cell: Cell[Any, Any]
  params: Params
  reverse: bool
  time_major: bool


def from_onnx(node: Node, tensors: Tensors) -> Layer:
  """Return the cell and the weights of a recurrent node.

  A `Layer` has no initial state and no lengths. A node is refused if its
  lengths are constants, or if its initial state is a constant other than zero;
  `run_node` computes such a node. Without `jax_enable_x64`, float64 becomes
  float32.

  Args:
    node: an LSTM, GRU or RNN, of opset 14 or later.
    tensors: the values of its inputs W [directions, G·H, D], R
      [directions, G·H, H], B [directions, 2·G·H] and P [directions, 3·H], by
      the names that the node gives them, all in one float dtype of 16 to 64
      bits; and those of its other inputs that are constants. Tensors that the
      node does not read are ignored, but each TensorProto must be readable.

  Raises:
    ValueError: the node is of another operator, or has an attribute that no
      cell here has (see the module `onnx.attributes`); one of its tensors is
      missing, holds no floats, or has a shape or a dtype that does not fit the
      others; tensors holds its sequence_lens, or an initial_h or initial_c that
      is not zero; or a TensorProto cannot be read (`read_tensor`).
    ModuleNotFoundError: the package onnx is not installed.
  """
  attributes = read_attributes(node)
  arrays = named_arrays(tensors)
  _check_constants(attributes, arrays)
  return read_layer(attributes, arrays)


def read_layer(attributes: Attributes, tensors: Mapping[str, Any]) -> Layer:
  """Return the layer of a node; constant lengths and states are ignored."""
  arrays = _weights(attributes, tensors)
  cell = attributes.cell
  directions = [
    jax.tree.map(
      jnp.array, from_tensors(cell, {k: x[n] for k, x in arrays.items()})
    )
    for n in range(attributes.num_directions)
  ]
  both = attributes.direction == "bidirectional"
  return Layer(
    cell,
    Directions(*directions) if both else directions[0],
    attributes.direction == "reverse",
    attributes.time_major,
  )


def to_onnx(
  cell: Cell,
  params: Params | Directions[Any],
  *,
  name: str = "",
  inputs: Mapping[str, str] | None = None,
  outputs: Mapping[str, str] | None = None,
  prefix: str = "",
  reverse: bool = False,
  time_major: bool = True,
) -> tuple[Node, list[TensorProto]]:
  """Return the recurrent node that computes a layer, and its initializers.

  Args:
    cell: `lstm`, `gru`, `gru_reset_before` or `rnn`, also with other
      activations; or `peephole_lstm` or `coupled_lstm`.
    params: its weights, in float32 or float64; `Directions` of two for a
      bidirectional layer.
    name: of the node.
    inputs: {input: its name in the graph}, for X and those of sequence_lens,
      initial_h and initial_c that the node has. None means {"X": "X"}.
    outputs: {output: its name in the graph}, for those of Y, Y_h and Y_c that
      the node has. None means all of them, named Y, Y_h and Y_c.
    prefix: how the names of the initializers begin, before W, R, B and P.
    reverse: True if the layer runs from the last step to the first.
    time_major: False for layout=1, which onnxruntime does not compute.

  Returns:
    (node, initializers): an onnx.NodeProto, for opset 14 or later, and an
    onnx.TensorProto for each of W, R, B and, with peepholes, P.

  Raises:
    ValueError: ONNX has no operator for the cell, or lacks its activations;
      params are of another cell or dtype, do not fit each other, or are of
      directions with different sizes; reverse is set with both directions;
      inputs have no X, or outputs are empty; or a key is not one of the
      operator's, or a name is empty or used twice (except by two inputs).
    ModuleNotFoundError: the package onnx is not installed.
  """
  onnx = import_onnx()
  onnx_operator = operator(cell)
  op_type = onnx_operator.op_type
  bidirectional = isinstance(params, Directions)
  if bidirectional and reverse:
    raise ValueError("reverse must be False with both directions, got True")
  layers = params if bidirectional else (params,)
  directions = [to_tensors(cell, layer) for layer in layers]
  for key, x in directions[0].items():
    other = directions[-1][key]
    if (other.shape, other.dtype) != (x.shape, x.dtype):
      raise ValueError(
        f"{key} of both directions must be {x.dtype} {x.shape}, "
        f"got {other.dtype} {other.shape} for the backward one"
      )
  arrays = {
    key: np.stack([d[key] for d in directions]) for key in directions[0]
  }
  weights = {key: prefix + key for key in arrays}
  run_time = [k for k in INPUTS[op_type] if k not in WEIGHTS]
  input_names = checked_names("inputs", op_type, inputs, run_time, ("X",))
  output_names = checked_names(
    "outputs", op_type, outputs, OUTPUTS[op_type], OUTPUTS[op_type]
  )
  check_distinct(input_names, output_names, weights)
  direction = "reverse" if reverse else "forward"
  node = onnx.helper.make_node(
    op_type,
    positional(input_names | weights, INPUTS[op_type]),
    positional(output_names, OUTPUTS[op_type]),
    name=name or None,
    hidden_size=arrays["R"].shape[-1],
    direction="bidirectional" if bidirectional else direction,
    **onnx_operator.attributes,
    **write_activations(cell, len(directions)),
    **({} if time_major else {"layout": 1}),
  )
  return node, [
    onnx.numpy_helper.from_array(np.ascontiguousarray(x), weights[key])
    for key, x in arrays.items()
  ]


def named_arrays(tensors: Tensors) -> dict[str, Array]:
  """Return tensors by name, as they are given, or read from TensorProtos."""
  if isinstance(tensors, Mapping):
    return dict(tensors)
  protos = list(tensors) if isinstance(tensors, Iterable) else [tensors]
  for proto in protos:
    if not hasattr(proto, "raw_data"):
      raise ValueError(
        "tensors must be TensorProtos, or a mapping from names to arrays, got "
        + type(proto).__name__
      )
  return {proto.name: read_tensor(proto.name, proto) for proto in protos}


def read_tensor(name: str, tensor: TensorProto) -> Array:
  """Return the array of a TensorProto.

  Raises:
    ValueError: its data are not those of its shape and type, or are in a file
      that cannot be read.
  """
  onnx = import_onnx()
  invalid = onnx.checker.ValidationError  # not a kind of ValueError
  try:
    return onnx.numpy_helper.to_array(tensor)
  except (LookupError, TypeError, ValueError, invalid) as error:
    raise ValueError(
      f"tensor {name!r} must have the data of its shape {list(tensor.dims)} "
      f"and type {tensor.data_type}, got {error!r}"
    ) from None


def _check_constants(
  attributes: Attributes, tensors: Mapping[str, Any]
) -> None:
  """Raise ValueError if a node has constant inputs that a layer cannot hold."""
  for key in ("sequence_lens", "initial_h", "initial_c"):
    name = attributes.names.get(key)
    if name is None or name not in tensors:
      continue
    if key == "sequence_lens":
      raise ValueError(
        f"sequence_lens ({name!r}) must not be a constant, since a Layer has "
        "no lengths; run_node computes this node"
      )
    if np.any(np.asarray(as_array(f"{key} ({name!r})", tensors[name]))):
      raise ValueError(
        f"{key} ({name!r}) must be zero or not be a constant, since a Layer "
        "has no initial state; run_node computes this node"
      )


def _weights(
  attributes: Attributes, tensors: Mapping[str, Any]
) -> dict[str, Array]:
  """Return W, R, B and, with peepholes, P, after a check of shapes and dtypes.

  A missing B is 0.
  """
  count, gates = attributes.num_directions, len(GATES[attributes.op_type])

  def read(key: str, *shape: int | str) -> Array:
    name = attributes.names.get(key)
    if name is None or name not in tensors:
      raise ValueError(
        f"{key} is missing: there is no tensor {name!r}, got "
        f"{', '.join(sorted(tensors)) or 'none'}"
      )
    label = f"{key} ({name!r})"
    return check_shape(label, as_array(label, tensors[name]), *shape)

  r = read("R", count, "any", "any")
  hidden = r.shape[2]
  if attributes.hidden_size not in (None, hidden):
    raise ValueError(
      f"R ({attributes.names['R']!r}) must have hidden_size="
      f"{attributes.hidden_size} as its last axis, got {r.shape}"
    )
  rows = gates * hidden
  r = read("R", count, rows, hidden)
  arrays = {"W": read("W", count, rows, "any"), "R": r}
  if "B" in attributes.names:
    arrays["B"] = read("B", count, 2 * rows)
  else:
    arrays["B"] = np.zeros((count, 2 * rows), r.dtype)
  if "P" in attributes.names:
    arrays["P"] = read("P", count, 3 * hidden)
  for key, array in arrays.items():
    if array.dtype != r.dtype:
      raise ValueError(
        f"{key} ({attributes.names[key]!r}) must be {r.dtype}, as R, "
        f"got {array.dtype}"
      )
  return arrays
