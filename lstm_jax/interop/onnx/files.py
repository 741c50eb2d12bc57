"""The recurrent layers of an ONNX file."""

import os
from typing import Any

from lstm_jax.interop.onnx.attributes import DOMAINS, INPUTS, is_recurrent
from lstm_jax.interop.onnx.nodes import (
  Layer,
  from_onnx,
  named_arrays,
  read_tensor,
)
from lstm_jax.interop.onnx.onnx_import import import_onnx
from lstm_jax.interop.tensors import Array, prefixed


def load(path: str | os.PathLike[str]) -> dict[str, Layer]:
  """Return the recurrent layers of an ONNX file, in the order of its nodes.

  Nodes in the bodies of If, Loop and Scan, and in functions, are not read. Nor
  are initial states or lengths that are inputs of the graph, or that other
  nodes compute, such as ConstantOfShape: pass these to `unroll`. Without
  `jax_enable_x64`, float64 becomes float32.

  Args:
    path: of the file. The weights of the layers are initializers or constants
      of its graph; an Identity node may give them a second name.

  Returns:
    The layers by the names of their nodes. A layer whose node has no name has
    the name of the node's first output.

  Raises:
    ValueError: the path is not UTF-8; the file is not an ONNX file, or has no
      LSTM, GRU or RNN; a tensor's data do not fit its shape, or external data
      is missing or cut off; two layers have the same name, or one has none; or
      `from_onnx` refuses a node.
    OSError: the file cannot be read.
    ModuleNotFoundError: the package onnx is not installed.
  """
  onnx = import_onnx()
  path = os.fsdecode(path)  # `check_model` takes bytes for the file's contents
  with open(path, "rb"):  # an OSError names the path; `check_model` does not
    pass
  try:
    path.encode()
  except UnicodeEncodeError:
    raise ValueError(
      f"path must be UTF-8, which the package onnx needs, got {path!r}"
    ) from None
  try:
    onnx.checker.check_model(path)
  except (onnx.checker.ValidationError, UnicodeDecodeError) as error:
    reason = str(error).strip().partition("\n")[0]
    # A message that quotes such text is empty, or cannot be decoded.
    if not reason or isinstance(error, UnicodeDecodeError):
      reason = "it has text that is not UTF-8"
    raise ValueError(f"{path} is not a valid ONNX file: {reason}") from None
  layers: dict[str, Layer] = {}
  with prefixed(path):  # `onnx.load` may raise: external data may be cut off
    graph = onnx.load(path, format="protobuf").graph
    arrays, unread = _constants(graph)
    for node in filter(is_recurrent, graph.node):
      name = node.name or next(filter(None, node.output), "")
      if not name:
        raise ValueError(f"{node.op_type} has neither a name nor outputs")
      if name in layers:
        raise ValueError(
          f"layers must have different names, got two of {name!r}"
        )
      with prefixed(f"{node.op_type} {name!r}"):
        for key in filter(unread.__contains__, node.input):
          raise ValueError(
            f"{key!r} must be a dense tensor if it is a constant, got a sparse "
            "tensor, a number, a string or a list"
          )
        layers[name] = from_onnx(node, arrays)
  if not layers:
    raise ValueError(f"{path} has none of {', '.join(INPUTS)}")
  return layers


def _constants(graph: Any) -> tuple[dict[str, Array], set[str]]:
  """Return the dense constants of an onnx.GraphProto, and the names of others.

  Dense are its initializers and the tensors of its Constant nodes; not read are
  sparse tensors, numbers, strings and lists. PyTorch writes equal arrays once,
  with an Identity for each further name.
  """
  arrays = named_arrays(graph.initializer)
  unread = {tensor.values.name for tensor in graph.sparse_initializer}
  for node in graph.node:
    if node.domain not in DOMAINS:  # another operator of the same name
      continue
    if node.op_type == "Identity":
      if arrays.keys() & set(node.input):
        arrays[node.output[0]] = arrays[node.input[0]]
      if unread & set(node.input):
        unread.add(node.output[0])
    if node.op_type == "Constant":
      name = node.output[0]
      attributes = {attribute.name: attribute for attribute in node.attribute}
      if "value" in attributes:
        arrays[name] = read_tensor(name, attributes["value"].t)
      if attributes.keys() != {"value"}:
        unread.add(name)
  return arrays, unread
