"""Convert the weights of Flax's cells, linen and nnx, to ours and back."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from flax.core import meta

from lstm_jax.cells import gru, lstm, rnn
from lstm_jax.cells.cell import Cell, Params

CELL_OF_PARAMS: dict[type, Cell] = {
  lstm.LSTMParams: lstm,
  gru.GRUParams: gru,
  rnn.RNNParams: rnn,
}


def from_linen(variables: Any) -> tuple[Cell, Params]:
  """Return our cell and the params equal to a linen cell's weights.

  The cell is known by the names in the collection alone: that its gates are
  sigmoids, and its other activations tanh, is for the caller to know.

  Args:
    variables: the "params" collection of an LSTMCell, OptimizedLSTMCell,
      GRUCell or SimpleCell. Boxed weights (`with_partitioning`) are unboxed.

  Raises:
    ValueError: the collection has other names, or units that do not fit.
  """
  variables = meta.unbox(variables)
  names = set(variables)

  def read(name: str, leaf: str) -> jax.Array:
    if leaf not in variables[name]:
      present = ", ".join(sorted(variables[name])) or "nothing"
      raise ValueError(f"{name} must have a {leaf}, got {present}")
    return variables[name][leaf]

  def concatenated(part: str, gates: Sequence[str], leaf: str) -> jax.Array:
    units = read("h" + gates[0], "kernel").shape[-2]
    arrays = [read(part + gate, leaf) for gate in gates]
    for gate, array in zip(gates, arrays, strict=True):
      if array.shape[-1] != units:
        expected = f"must be [..., {units}], as h{gates[0]}.kernel has {units} "
        raise ValueError(
          f"{part + gate}.{leaf} {expected}rows, got {array.shape}"
        )
    return jnp.concatenate(arrays, axis=-1)

  if names == {part + gate for part in "ih" for gate in "ifgo"}:
    w_x, w_h = (concatenated(part, "ifgo", "kernel") for part in "ih")
    return lstm, lstm.LSTMParams(w_x, w_h, concatenated("h", "ifgo", "bias"))
  if names == {part + gate for part in "ih" for gate in "rzn"}:
    w_x, w_h = (concatenated(part, "rzn", "kernel") for part in "ih")
    b, b_n = concatenated("i", "rzn", "bias"), concatenated("h", "n", "bias")
    return gru, gru.GRUParams(w_x, w_h, b, b_n)
  if names == {"i", "h"}:
    w_x, w_h = (concatenated(part, [""], "kernel") for part in "ih")
    return rnn, rnn.RNNParams(w_x, w_h, concatenated("i", [""], "bias"))
  raise ValueError(
    "expected the weights of an LSTMCell, OptimizedLSTMCell, GRUCell or "
    f"SimpleCell, got {', '.join(sorted(names)) or 'nothing'}"
  )


def to_linen(params: Params) -> dict[str, Any]:
  """Convert params to the "params" collection of the matching linen cell.

  Args:
    params: of `lstm`, `gru` or `rnn`.

  Raises:
    ValueError: they are of another cell.
  """

  def split_gates(gates: str, bias_part: str) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for part, w in (("i", params.w_x), ("h", params.w_h)):
      kernels = jnp.split(w, len(gates), axis=-1)
      for gate, kernel in zip(gates, kernels, strict=True):
        result[part + gate] = {"kernel": kernel}
    biases = jnp.split(params.b, len(gates))
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

  Args:
    module: an nnx.LSTMCell, OptimizedLSTMCell, GRUCell or SimpleCell.

  Raises:
    ValueError: it is another module.
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
    ValueError: the module is of another kind or size, or params.b_n is not 0.
      The module is then unchanged.
  """
  cell, variables = _variables(module)
  name = type(module).__name__
  if type(params) not in CELL_OF_PARAMS:
    expected = "the params of lstm, gru or rnn"
    raise ValueError(f"expected {expected}, got {type(params).__name__}")
  if CELL_OF_PARAMS[type(params)] is not cell:
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


class NNXLayers(NamedTuple):
  """The linear layers of an nnx cell, in the order of our gates."""

  inputs: list[nnx.Linear]  # their kernels, concatenated, are w_x
  hidden: list[nnx.Linear]  # w_h
  biased: list[nnx.Linear]  # the ones of both that have a bias; b


def nnx_layers(module: Any) -> tuple[Cell, NNXLayers]:
  """Return our cell for an nnx cell, and the nnx cell's layers.

  Raises:
    ValueError: it is another module.
  """
  if isinstance(module, nnx.LSTMCell):
    inputs = [module.ii, module.if_, module.ig, module.io]
    hidden = [module.hi, module.hf, module.hg, module.ho]
    return lstm, NNXLayers(inputs, hidden, biased=hidden)
  for cell, module_type, biased in (
    (lstm, nnx.OptimizedLSTMCell, "dense_h"),
    (gru, nnx.GRUCell, "dense_i"),
    (rnn, nnx.SimpleCell, "dense_i"),
  ):
    if isinstance(module, module_type):
      layers = [module.dense_i], [module.dense_h], [getattr(module, biased)]
      return cell, NNXLayers(*layers)
  raise ValueError(
    "expected an LSTMCell, OptimizedLSTMCell, GRUCell or SimpleCell, "
    f"got {type(module).__name__}"
  )


def _variables(module: Any) -> tuple[Cell, tuple[list, list, list]]:
  """Return our cell for an nnx module, and its variables of w_x, w_h and b.

  Each of the three is a list of variables, to be concatenated along the gates.
  """
  cell, layers = nnx_layers(module)
  return cell, (
    [linear.kernel for linear in layers.inputs],
    [linear.kernel for linear in layers.hidden],
    [linear.bias for linear in layers.biased],
  )
