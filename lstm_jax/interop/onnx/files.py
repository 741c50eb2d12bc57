"""The recurrent layers of an ONNX file."""

import os

from lstm_jax.interop.onnx.attributes import INPUTS
from lstm_jax.interop.onnx.nodes import Layer, from_onnx, named_arrays
from lstm_jax.interop.onnx.package import import_onnx


def load(path: str | os.PathLike) -> dict[str, Layer]:
  """Return the recurrent layers of an ONNX file, in the order of its nodes.

  Args:
    path: of the file. The weights of the layers are initializers or constants
      of its graph.

  Returns:
    The layers by the names of their nodes, or, of a node without a name, by
    that of its first output.

  Raises:
    ValueError: the file is not an ONNX file, or has no LSTM, GRU or RNN; or
      `from_onnx` raises it for a node.
    OSError: the file cannot be read.
    ModuleNotFoundError: the package onnx is not installed.
  """
  onnx = import_onnx()
  with open(path, "rb"):
    pass  # or an OSError that names the path
  try:
    onnx.checker.check_model(os.fspath(path))
  except onnx.checker.ValidationError as error:
    reason = str(error).strip().splitlines()[0]
    raise ValueError(f"{path} is not a valid ONNX file: {reason}") from None
  graph = onnx.load(path, format="protobuf").graph
  arrays = named_arrays(graph.initializer)
  for node in graph.node:
    for attribute in node.attribute if node.op_type == "Constant" else ():
      if attribute.name == "value":
        array = onnx.numpy_helper.to_array(attribute.t)
        arrays[node.output[0]] = array
  layers = {
    node.name or next(filter(None, node.output)): from_onnx(node, arrays)
    for node in graph.node
    if node.op_type in INPUTS and node.domain in ("", "ai.onnx")
  }
  if not layers:
    raise ValueError(f"{path} has none of {', '.join(INPUTS)}")
  return layers
