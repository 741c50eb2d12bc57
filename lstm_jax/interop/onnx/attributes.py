"""The attributes of a recurrent node of ONNX, and the cell that they mean.

  direction            forward, reverse or bidirectional
  layout               0 for [T, B, ...], 1 for [B, T, ...]
  hidden_size          H, which must be that of the weights
  activations          those of `with_activations` (see `onnx.activations`)
  linear_before_reset  1 for `gru`, 0 for `gru_reset_before`
  input_forget         1 for `coupled_lstm` (see `onnx.weights`)

The input P makes an LSTM a `peephole_lstm`. A node with `clip` is refused.
"""

from types import ModuleType
from typing import Any, NamedTuple

from lstm_jax.cells import (
  coupled_lstm,
  gru,
  gru_reset_before,
  lstm,
  peephole_lstm,
  rnn,
)
from lstm_jax.cells.cell import Cell
from lstm_jax.interop.onnx.activations import (
  MAKERS,
  STANDARD,
  read_activations,
)
from lstm_jax.interop.onnx.onnx_import import import_onnx

INPUTS = {
  "LSTM": (
    "X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P",
  ),
  "GRU": ("X", "W", "R", "B", "sequence_lens", "initial_h"),
  "RNN": ("X", "W", "R", "B", "sequence_lens", "initial_h"),
}  # fmt: skip
WEIGHTS = "W", "R", "B", "P"
OUTPUTS = {
  "LSTM": ("Y", "Y_h", "Y_c"),
  "GRU": ("Y", "Y_h"),
  "RNN": ("Y", "Y_h"),
}
TYPES = {  # of the attributes, in ONNX's words
  "activation_alpha": "FLOATS",
  "activation_beta": "FLOATS",
  "activations": "STRINGS",
  "clip": "FLOAT",
  "direction": "STRING",
  "hidden_size": "INT",
  "input_forget": "INT",
  "layout": "INT",
  "linear_before_reset": "INT",
}
DOMAINS = "", "ai.onnx"  # the two names of the domain of ONNX's own operators
NUM_DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}


class Attributes(NamedTuple):
  """The attributes of a recurrent node, and the names of its inputs."""

  op_type: str  # LSTM, GRU or RNN
  cell: Cell
  direction: str  # forward, reverse or bidirectional
  time_major: bool
  hidden_size: int | None  # None if it is not given
  names: dict[str, str]  # {"W": its tensor's name}, of all inputs it has

  @property
  def num_directions(self) -> int:
    """1 or 2: the first axis of the weights."""
    return NUM_DIRECTIONS[self.direction]


def is_recurrent(node: Any) -> bool:
  """Return whether an onnx.NodeProto is one of ONNX's LSTM, GRU and RNN."""
  return node.op_type in INPUTS and node.domain in DOMAINS


def read_attributes(node: Any) -> Attributes:
  """Return the attributes of an onnx.NodeProto.

  Raises:
    ValueError: the node is another object or of another operator, or has more
      inputs or outputs than its operator; or one of its attributes is unknown,
      occurs twice, or has a value of another type or one that no cell here has.
    ModuleNotFoundError: the package onnx is not installed.
  """
  onnx = import_onnx()
  if not isinstance(node, onnx.NodeProto):
    found = type(node).__name__
    raise ValueError(f"node must be an onnx.NodeProto, got {found}")
  op_type = node.op_type
  if not is_recurrent(node):
    kind = ".".join(filter(None, (node.domain, op_type)))
    raise ValueError(f"node must be one of {', '.join(INPUTS)}, got {kind}")
  for kind, given, most in (
    ("inputs", node.input, INPUTS[op_type]),
    ("outputs", node.output, OUTPUTS[op_type]),
  ):
    if len(given) > len(most):
      raise ValueError(
        f"{kind} of {op_type} must be at most {len(most)}, {', '.join(most)}, "
        f"got {len(given)}"
      )
  values: dict[str, Any] = {}
  for attribute in node.attribute:
    if attribute.name in values:
      raise ValueError(f"{attribute.name} must occur once in a node, got two")
    values[attribute.name] = _value(onnx, attribute)
  direction = values.pop("direction", "forward")
  if direction not in NUM_DIRECTIONS:
    known = ", ".join(NUM_DIRECTIONS)
    raise ValueError(f"direction must be one of {known}, got {direction!r}")
  layout = _zero_or_one(values, "layout")
  hidden_size = values.pop("hidden_size", None)
  if "clip" in values:
    raise ValueError(
      f"clip must be absent, since no cell has it, got {values['clip']:g}"
    )
  names = {
    key: name
    for key, name in zip(INPUTS[op_type], node.input, strict=False)
    if name
  }
  cell = _cell(op_type, values, "P" in names)
  activations = read_activations(op_type, values, NUM_DIRECTIONS[direction])
  if cell in MAKERS:
    cell = MAKERS[cell](*activations)  # the same, if they are STANDARD
  elif activations != STANDARD[op_type]:
    raise ValueError(
      "with P or input_forget=1, activations must be Sigmoid, Tanh, Tanh, "
      f"got {', '.join(map(str, activations))}"
    )
  if values:
    raise ValueError(
      f"{op_type} has no attribute {', '.join(sorted(values))} that is known "
      "here"
    )
  return Attributes(op_type, cell, direction, not layout, hidden_size, names)


def _value(onnx: ModuleType, attribute: Any) -> Any:
  """Return the value of an onnx.AttributeProto, with its strings decoded."""
  name = attribute.name
  if attribute.ref_attr_name:
    raise ValueError(
      f"{name} must have a value, got a reference to {attribute.ref_attr_name}"
    )
  found = onnx.AttributeProto.AttributeType.Name(attribute.type)
  expected = TYPES.get(name)  # None: no attribute that is known here
  if expected not in (None, found):
    raise ValueError(f"{name} must be of type {expected}, got {found}")
  value = onnx.helper.get_attribute_value(attribute)
  try:
    if expected == "STRINGS":
      return [text.decode() for text in value]
    return value.decode() if expected == "STRING" else value
  except UnicodeDecodeError as error:
    raise ValueError(f"{name} must be UTF-8, got {error.object!r}") from None


def _cell(op_type: str, values: dict[str, Any], peepholes: bool) -> Cell:
  """Return the cell, and remove the attributes that choose it from values."""
  if op_type == "RNN":
    return rnn
  if op_type == "GRU":
    after = _zero_or_one(values, "linear_before_reset")
    return gru if after else gru_reset_before
  if _zero_or_one(values, "input_forget"):
    if peepholes:
      raise ValueError(
        "input_forget must be 0 with P, since no cell has both, got 1"
      )
    return coupled_lstm
  return peephole_lstm if peepholes else lstm


def _zero_or_one(values: dict[str, Any], name: str) -> int:
  """Remove and return an attribute, which is 0 if it is not given."""
  value = values.pop(name, 0)
  if value not in (0, 1):
    raise ValueError(f"{name} must be 0 or 1, got {value}")
  return value
