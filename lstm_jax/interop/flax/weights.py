"""Convert the weights of Flax's cells, linen and nnx, to ours and back."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax.core import meta

from lstm_jax.cells import gru, lstm, rnn
from lstm_jax.cells.cell import Cell, Params
from lstm_jax.interop.flax.equivalence import equivalent_cell
from lstm_jax.interop.flax.nnx_layers import nnx_layers
from lstm_jax.interop.tensors import CELL_OF_PARAMS, as_array, check_fit


def from_linen(variables: Any) -> tuple[Cell, Params]:
  """Return our cell and the params equal to a linen cell's weights.

  The cell is known by the names in the collection alone: that its gates are
  sigmoids, and its other activations tanh, is for the caller to know. Without
  `jax_enable_x64`, float64 becomes float32.

  Args:
    variables: the "params" collection of an LSTMCell, OptimizedLSTMCell,
      GRUCell or SimpleCell. Boxed weights (`with_partitioning`) are unboxed.

  Raises:
    ValueError: the collection has other names, a shape that does not fit, a
      bias that our cell lacks, or no floats.
  """
  variables = meta.unbox(variables)
  if not isinstance(variables, Mapping):
    kind = type(variables).__name__
    raise ValueError(f'expected the collection "params", got a {kind}')
  names = set(variables)

  def read(name: str, leaf: str) -> jax.Array:
    layer = variables[name]
    present = sorted(layer) if isinstance(layer, Mapping) else []
    if leaf not in present:
      found = ", ".join(present) or "nothing"
      raise ValueError(f"{name} must have a {leaf}, got {found}")
    return jnp.asarray(as_array(f"{name}.{leaf}", layer[leaf]))

  def kernel_shape(name: str) -> tuple[int, ...]:
    shape = read(name, "kernel").shape
    if len(shape) < 2:
      expected = "[..., D, H]" if name.startswith("i") else "[..., H, H]"
      raise ValueError(f"{name}.kernel must be {expected}, got {shape}")
    return shape

  def concatenated(part: str, gates: Sequence[str], leaf: str) -> jax.Array:
    *stacked, units, _ = kernel_shape("h" + gates[0])
    rows = {"bias": [], "kernel": [units]}[leaf]
    if leaf == "kernel" and part == "i":
      rows = [kernel_shape("i" + gates[0])[-2]]
    shape = (*stacked, *rows, units)
    arrays = [read(part + gate, leaf) for gate in gates]
    for gate, array in zip(gates, arrays, strict=True):
      if array.shape != shape:
        name, first = f"{part}{gate}.{leaf}", f"h{gates[0]}.kernel"
        raise ValueError(
          f"{name} must be {list(shape)}, as {first} has {units} rows, "
          f"got {array.shape}"
        )
    return jnp.concatenate(arrays, axis=-1)

  def check_biases(*biased: str) -> None:
    for name in sorted(names.difference(biased)):
      if "bias" in variables[name]:
        raise ValueError(f"{name} must have no bias, which our cell lacks")

  if names == {part + gate for part in "ih" for gate in "ifgo"}:
    w_x, w_h = (concatenated(part, "ifgo", "kernel") for part in "ih")
    check_biases("hi", "hf", "hg", "ho")
    return lstm, lstm.LSTMParams(w_x, w_h, concatenated("h", "ifgo", "bias"))
  if names == {part + gate for part in "ih" for gate in "rzn"}:
    w_x, w_h = (concatenated(part, "rzn", "kernel") for part in "ih")
    check_biases("ir", "iz", "in", "hn")
    b, b_n = concatenated("i", "rzn", "bias"), concatenated("h", "n", "bias")
    return gru, gru.GRUParams(w_x, w_h, b, b_n)
  if names == {"i", "h"}:
    w_x, w_h = (concatenated(part, [""], "kernel") for part in "ih")
    check_biases("i")
    return rnn, rnn.RNNParams(w_x, w_h, concatenated("i", [""], "bias"))
  raise ValueError(
    "expected the weights of an LSTMCell, OptimizedLSTMCell, GRUCell or "
    f"SimpleCell, got {', '.join(sorted(names)) or 'nothing'}"
  )


def to_linen(params: Params) -> dict[str, Any]:
  """Convert params to the "params" collection of the matching linen cell.

  Args:
    params: of `lstm`, `gru` or `rnn`; each array may have further leading axes,
      such as those of an ensemble.

  Raises:
    ValueError: they are of another cell, or do not fit each other.
  """
  stacked = jnp.ndim(getattr(params, "b", 0)) - 1
  check_fit(
    jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape[stacked:], x.dtype), params
    )
  )

  def split_gates(gates: str, bias_part: str) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for part, w in (("i", params.w_x), ("h", params.w_h)):
      kernels = jnp.split(w, len(gates), axis=-1)
      for gate, kernel in zip(gates, kernels, strict=True):
        result[part + gate] = {"kernel": kernel}
    biases = jnp.split(params.b, len(gates), axis=-1)
    for gate, b in zip(gates, biases, strict=True):
      result[bias_part + gate]["bias"] = b
    return result

  if isinstance(params, lstm.LSTMParams):
    return split_gates("ifgo", "h")
  if isinstance(params, gru.GRUParams):
    result = split_gates("rzn", "i")
    result["hn"]["bias"] = params.b_n
    return result
  if isinstance(params, rnn.RNNParams):
    i = {"kernel": params.w_x, "bias": params.b}
    return {"i": i, "h": {"kernel": params.w_h}}
  raise ValueError(
    "expected the params of lstm, gru or rnn, got " + type(params).__name__
  )


def from_nnx(module: Any) -> tuple[Cell, Params]:
  """Return our cell and the params equal to an nnx cell's weights.

  Without `jax_enable_x64`, float64 becomes float32.

  Args:
    module: an nnx.LSTMCell, OptimizedLSTMCell, GRUCell or SimpleCell.

  Raises:
    ValueError: it is another module, or has other activations, a residual
      connection or other layers.
  """
  cell, variables = _variables(module)
  w_x, w_h, b = (
    jnp.concatenate([part[...] for part in parts], axis=-1)
    for parts in variables
  )
  if cell is lstm:
    return cell, lstm.LSTMParams(w_x, w_h, b)
  if cell is rnn:
    return cell, rnn.RNNParams(w_x, w_h, b)
  b_n = jnp.zeros(w_h.shape[:1], b.dtype)  # nnx.GRUCell has no such bias
  return cell, gru.GRUParams(w_x, w_h, b, b_n)


def to_nnx(params: Params, module: Any) -> None:
  """Write params into the weights of an existing nnx cell, in place.

  Args:
    params: of `lstm`, `gru` or `rnn`.
    module: an nnx cell of the same kind and sizes.

  Raises:
    ValueError: the module is of another kind or size, or computes something
      else, as in `from_nnx`; or params.b_n is not 0.
      The module is then unchanged.
  """
  cell, variables = _variables(module)
  name = type(module).__name__
  own = CELL_OF_PARAMS.get(type(params))
  if own not in (lstm, gru, rnn):
    expected = "the params of lstm, gru or rnn"
    raise ValueError(f"expected {expected}, got {type(params).__name__}")
  if own is not cell:
    raise ValueError(f"{name} cannot hold {type(params).__name__}")
  if cell is gru and params.b_n.any():
    raise ValueError("params.b_n must be 0: nnx.GRUCell has no such bias")
  weights: list[tuple[Any, jax.Array]] = []
  for field, parts in zip(("w_x", "w_h", "b"), variables, strict=True):
    leaf, like = getattr(params, field), parts[0][...]
    shape = (*like.shape[:-1], like.shape[-1] * len(parts))
    if leaf.shape != shape:
      shapes = f"{shape}, got {leaf.shape}"
      raise ValueError(f"{field} of this {name} must be {shapes}")
    weights += zip(parts, jnp.split(leaf, len(parts), axis=-1), strict=True)
  for part, value in weights:
    part[...] = value.astype(part[...].dtype)


def _variables(module: Any) -> tuple[Cell, tuple[list, list, list]]:
  """Return our cell for an nnx module, and its variables of w_x, w_h and b.

  Each of the three is a list of variables, to be concatenated along the gates.
  """
  cell, layers = nnx_layers(module)
  if equivalent_cell(module) is None:
    raise ValueError(
      f"this {type(module).__name__} computes something else than our cell: it "
      "must not be a subclass, have Flax's sigmoid and tanh, no residual "
      "connection, and plain Linear layers"
    )
  return cell, (
    [linear.kernel for linear in layers.inputs],
    [linear.kernel for linear in layers.hidden],
    [linear.bias for linear in layers.biased],
  )
