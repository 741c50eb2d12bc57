"""A language model as one ONNX file: embedding, stack, readout, and its state.

The graph has the computation of `language.model`, with readable names:

  inputs    tokens [T, B] int64;  h_0 [B, H], and c_0 if the cell has one; h_1 …
  outputs   logits [T, B, V];  h_0_next, c_0_next, h_1_next …

where h_k is the state of layer k, for any T and B ≥ 1. A program that generates
text passes T = 1, and each `_next` as the state of the following call. If a
tokenizer is given, its vocabulary is in the file's metadata.

  >>> import jax
  >>> from lstm_jax.cells import lstm
  >>> from lstm_jax.language import CharTokenizer, ModelConfig, language_model
  >>> tokenizer = CharTokenizer.from_text("to be or not to be")
  >>> model = language_model(ModelConfig(hidden_size=8), tokenizer.size)
  >>> params = model.init(jax.random.key(0))
  >>> file = language_model_to_onnx(lstm, params, tokenizer)
  >>> [x.name for x in file.graph.output]
  ['logits', 'h_0_next', 'c_0_next']
  >>> {x.key: x.value for x in file.metadata_props}["symbols"]
  '[" ", "b", "e", "n", "o", "r", "t"]'
"""

import json
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax
import numpy as np

from lstm_jax.cells.cell import Cell, Params
from lstm_jax.cells.checks import check_shape
from lstm_jax.cells.properties import cell_name
from lstm_jax.cells.weight_checks import check_params
from lstm_jax.interop.onnx.nodes import to_onnx
from lstm_jax.interop.onnx.onnx_import import IR_VERSION, OPSET, import_onnx
from lstm_jax.interop.onnx.weights import operator
from lstm_jax.language import LanguageParams, Tokenizer
from lstm_jax.sequence.stack import check_some_layers

ModelProto = Any  # an onnx.ModelProto
MAX_BYTES = 2**31 - 2**26  # the rest is for the graph and the vocabulary


def language_model_to_onnx(
  cell: Cell, params: LanguageParams, tokenizer: Tokenizer | None = None
) -> ModelProto:
  """Return a language model as an ONNX model, which `onnx.save` writes.

  Products have the dtype of the params, even if the model has a
  `compute_dtype`. onnxruntime computes float32 only.

  Args:
    cell: the cell of every layer, one that `to_onnx` takes.
    params: the weights, all in float32 or all in float64.
    tokenizer: of the model. The metadata then have `unit`, what a token is, and
      `symbols`, the vocabulary as a JSON list of V strings.

  Returns:
    An onnx.ModelProto of opset 17, checked by onnx.checker.

  Raises:
    ValueError: ONNX has no operator for the cell, or lacks its activations;
      params are of another cell or dtype, do not fit each other, or have
      more than MAX_BYTES; or the tokenizer has another type, or does not have V
      symbols.
    ModuleNotFoundError: the package onnx is not installed.
  """
  onnx = import_onnx()
  operator(cell)  # or raises an error that lists the known cells
  params = jax.tree.map(np.asarray, params)
  _check_params(cell, params)
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
  if size > MAX_BYTES:
    raise ValueError(
      f"params must have at most {MAX_BYTES:,} bytes, since an ONNX file has "
      f"less than 2 GiB, got {size:,} bytes"
    )
  try:
    own_version = version("lstm-jax")
  except PackageNotFoundError:  # a clone on Python's path, not installed
    own_version = ""
  metadata = {
    "producer": f"lstm_jax {own_version}".rstrip(),
    "cell": cell_name(cell),
  }
  if tokenizer is not None:
    if not hasattr(tokenizer, "symbols"):
      found = type(tokenizer).__name__
      raise ValueError(f"tokenizer must be a Tokenizer or None, got {found}")
    if tokenizer.size != len(params.bias):
      raise ValueError(
        f"tokenizer must have {len(params.bias)} symbols, as params.bias, "
        f"got {tokenizer.size}"
      )
    metadata["unit"] = tokenizer.unit
    metadata["symbols"] = json.dumps(list(tokenizer.symbols))
  graph = _Graph(onnx, params.bias.dtype)
  xs = graph.embedding(params)
  for k, layer in enumerate(params.layers):
    xs = graph.layer(cell, k, layer, xs)
  graph.readout(params, xs)
  model = onnx.helper.make_model(
    onnx.helper.make_graph(
      graph.nodes, "language_model", graph.inputs, graph.outputs, graph.tensors
    ),
    producer_name="lstm_jax",
    producer_version=own_version,
    opset_imports=[onnx.helper.make_opsetid("", OPSET)],
    ir_version=IR_VERSION,
  )
  onnx.helper.set_model_props(model, metadata)
  onnx.checker.check_model(model, full_check=True)
  return model


class _Graph:
  """The parts of a graph, added in order from the inputs to the outputs."""

  def __init__(self, onnx: Any, dtype: np.dtype):
    self.onnx, self.dtype = onnx, dtype
    self.nodes: list[Any] = []
    self.tensors: list[Any] = []
    self.inputs = [self.value("tokens", np.dtype(np.int64), "T", "B")]
    self.outputs: list[Any] = []
    for axis in (0, 1):  # of the directions: 0 in a state, 1 in the outputs
      self.tensor(f"axis_{axis}", np.array([axis]))

  def value(self, name: str, dtype: np.dtype, *shape: str | int) -> Any:
    """Return the description of an input or output."""
    helper = self.onnx.helper
    kind = helper.np_dtype_to_tensor_dtype(dtype)
    return helper.make_tensor_value_info(name, kind, shape)

  def tensor(self, name: str, array: Any) -> str:
    """Add a constant, and return its name."""
    # Reshape, since `ascontiguousarray` turns a scalar into a vector [1].
    array = np.ascontiguousarray(array).reshape(array.shape)
    self.tensors.append(self.onnx.numpy_helper.from_array(array, name))
    return name

  def node(self, op_type: str, *inputs: str, output: str, **options) -> str:
    """Add a node with one output, and return the output's name."""
    node = self.onnx.helper.make_node(op_type, inputs, [output], **options)
    self.nodes.append(node)
    return output

  def embedding(self, params: LanguageParams) -> str:
    """Add the lookup of the tokens' embeddings; return their name.

    Tied embeddings (no readout) are scaled by √E, as in `language.model`.
    """
    table = self.tensor("embedding", params.embedding)
    xs = self.node("Gather", table, "tokens", output="embedded")
    if params.readout is not None:
      return xs
    root = np.asarray(params.embedding.shape[1] ** 0.5, self.dtype)
    scale = self.tensor("embedding_scale", root)
    return self.node("Mul", xs, scale, output="embedded_scaled")

  def layer(self, cell: Cell, k: int, params: Params, xs: str) -> str:
    """Add layer k and its state; return the name of its outputs [T, B, H]."""
    name = f"layer_{k}"
    fields = jax.eval_shape(cell.initial_state, params)._asdict()
    names, results = {"X": xs}, {"Y": f"{name}_y"}
    for field, leaf in fields.items():
      state = f"{field}_{k}"
      shape = "B", *leaf.shape
      self.inputs.append(self.value(state, self.dtype, *shape))
      self.outputs.append(self.value(f"{state}_next", self.dtype, *shape))
      before = f"{state}_before"  # [1, B, H]
      self.node("Unsqueeze", state, "axis_0", output=before)
      names[f"initial_{field}"] = before
      results[f"Y_{field}"] = f"{state}_after"
    node, tensors = to_onnx(
      cell, params, name=name, inputs=names, outputs=results, prefix=f"{name}."
    )
    self.nodes.append(node)
    self.tensors += tensors
    for field in fields:
      after, state = f"{field}_{k}_after", f"{field}_{k}_next"
      self.node("Squeeze", after, "axis_0", output=state)
    return self.node("Squeeze", f"{name}_y", "axis_1", output=f"{name}_hs")

  def readout(self, params: LanguageParams, hs: str) -> None:
    """Add the logits."""
    vocabulary_size = len(params.bias)
    if params.readout is None:
      w = self.node("Transpose", "embedding", output="readout", perm=[1, 0])
    else:
      w = self.tensor("readout", params.readout)
    product = self.node("MatMul", hs, w, output="logits_without_bias")
    bias = self.tensor("bias", params.bias)
    self.node("Add", product, bias, output="logits")
    logits = self.value("logits", self.dtype, "T", "B", vocabulary_size)
    self.outputs.insert(0, logits)


def _check_params(cell: Cell, params: LanguageParams) -> None:
  """Raise ValueError unless a model's weights fit the cell and each other."""
  if not isinstance(params, LanguageParams):
    found = type(params).__name__
    raise ValueError(f"params must be LanguageParams, got {found}")
  check_shape("params.embedding", params.embedding, "any", "any")
  check_shape("params.bias", params.bias, "any")
  dtype = params.bias.dtype
  if dtype not in (np.float32, np.float64):
    raise ValueError(f"params must be float32 or float64, got {dtype}")
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    if leaf.dtype != dtype:
      name = jax.tree_util.keystr(path)
      raise ValueError(
        f"params{name} must be {dtype}, as params.bias, got {leaf.dtype}"
      )
  size = params.embedding.shape[1]
  check_some_layers(params.layers, "params.layers")
  for k, layer in enumerate(params.layers):
    check_params(cell.project, layer)
    check_shape(f"params.layers[{k}].w_x", layer.w_x, size, "any")
    check_shape(f"params.layers[{k}].w_h", layer.w_h, "any", "any")
    size = layer.w_h.shape[0]
  vocabulary_size, tied = len(params.bias), params.readout is None
  shape = vocabulary_size, size if tied else "any"
  check_shape("params.embedding", params.embedding, *shape)
  if not tied:
    check_shape("params.readout", params.readout, size, vocabulary_size)
