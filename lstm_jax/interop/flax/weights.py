"""Convert the weights of Flax's cells, linen and nnx, to ours and back."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax.core import meta

from lstm_jax.cells import gru, lstm, rnn
from lstm_jax.cells.cell import Cell, Params
from lstm_jax.cells.checks import check_shape
from lstm_jax.interop.flax.equivalence import equivalent_cell
from lstm_jax.interop.flax.nnx_layers import nnx_layers
from lstm_jax.interop.tensors import (
  CELL_OF_PARAMS,
  as_array,
  check_fit,
  copied_arrays,
)

# The gates of each cell, and its layers that have a bias, by their linen names.
LAYERS: dict[Cell, tuple[Sequence[str], Sequence[str]]] = {
  lstm: ("ifgo", ("hi", "hf", "hg", "ho")),
  gru: ("rzn", ("ir", "iz", "in", "hn")),  # the bias of hn is b_n
  rnn: ([""], ("i",)),
}
PARAMS = {cell: params for params, cell in CELL_OF_PARAMS.items()}


def from_linen(variables: Any) -> tuple[Cell[Any, Any], Params]:
  """Return our cell and the params equal to a linen cell's weights.

  The cell is recognized only by the names in the collection. The caller must
  make sure that its gates are sigmoids, that its other activations are tanh,
  and that a SimpleCell has no residual connection. Without `jax_enable_x64`,
  float64 becomes float32.

  Args:
    variables: the "params" collection of an LSTMCell, OptimizedLSTMCell,
      GRUCell or SimpleCell. Boxed weights (`with_partitioning`) are unboxed.
      All arrays may have the same further leading axes, such as those of a
      vmapped module.

  Raises:
    ValueError: the collection has other names, a shape that does not fit, or no
      floats; or a bias is missing, or is one that our cell lacks.
  """
  variables = meta.unbox(variables)
  if not isinstance(variables, Mapping):
    kind = type(variables).__name__
    raise ValueError(f'expected the collection "params", got a {kind}')
  cell = _cell_with(set(variables))
  gates, biased = LAYERS[cell]
  arrays = _read_arrays(variables, biased)
  _check_shapes(arrays, f"i{gates[0]}.kernel")

  def concatenated(names: Sequence[str], leaf: str) -> jax.Array:
    return _side_by_side([arrays[f"{name}.{leaf}"] for name in names])

  w_x, w_h = (
    concatenated([part + gate for gate in gates], "kernel") for part in "ih"
  )
  b = concatenated(biased[: len(gates)], "bias")
  more = (jnp.array(arrays["hn.bias"]),) if cell is gru else ()
  return cell, PARAMS[cell](w_x, w_h, b, *more)


def _side_by_side(parts: Sequence[jax.Array]) -> jax.Array:
  """Return one new array: donating it to a step does not delete the parts.

  Of a single part, `jnp.concatenate` would return the part itself.
  """
  if len(parts) == 1:
    return jnp.array(parts[0])
  return jnp.concatenate(parts, axis=-1)


def _cell_with(names: set[str]) -> Cell:
  """Return the cell whose layers have these names."""
  for cell, (gates, _) in LAYERS.items():
    if names == {part + gate for part in "ih" for gate in gates}:
      return cell
  found = ", ".join(sorted(map(str, names))) or "nothing"
  hint = '; pass variables["params"]' if "params" in names else ""
  raise ValueError(
    "expected the weights of an LSTMCell, OptimizedLSTMCell, GRUCell or "
    f"SimpleCell, got {found}{hint}"
  )


def _read_arrays(
  variables: Mapping[str, Any], biased: Sequence[str]
) -> dict[str, jax.Array]:
  """Return kernels, and biases of biased layers, by keys like "hi.kernel"."""
  arrays = {}
  for name in sorted(variables):
    layer = variables[name] if isinstance(variables[name], Mapping) else {}
    if "bias" in layer and name not in biased:
      raise ValueError(f"{name} must have no bias: our cell has none there")
    leaves = ("kernel", "bias") if name in biased else ("kernel",)
    if more := sorted({*map(str, layer)} - {*leaves}):
      raise ValueError(f"{name} must have no {', '.join(more)}")
    for leaf in leaves:
      if leaf not in layer:
        found = ", ".join(sorted(layer)) or "nothing"
        raise ValueError(f"{name} must have a {leaf}, got {found}")
      key = f"{name}.{leaf}"
      arrays[key] = jnp.asarray(as_array(key, layer[leaf]))
  return arrays


def _check_shapes(arrays: dict[str, jax.Array], first: str) -> None:
  """Raise ValueError unless all shapes fit that of the first kernel."""
  shape = arrays[first].shape
  if len(shape) < 2:
    raise ValueError(f"{first} must be [..., D, H], got {shape}")
  *leading, inputs, units = shape
  rows = {"i": inputs, "h": units}
  for name, array in arrays.items():
    sizes = [rows[name[0]], units] if name.endswith("kernel") else [units]
    expected = [*leading, *sizes]
    if list(array.shape) != expected:
      raise ValueError(
        f"{name} must be {expected}, as {first} is {list(shape)}, "
        f"got {array.shape}"
      )


def to_linen(params: Params) -> dict[str, Any]:
  """Convert params to the "params" collection of the matching linen cell.

  Without `jax_enable_x64`, NumPy's float64 becomes float32.

  Args:
    params: of `lstm`, `gru` or `rnn`; all arrays may have the same further
      leading axes, such as those of an ensemble.

  Raises:
    ValueError: params are of another cell, or do not fit each other.
  """
  cell = _check_kind(params)
  params = copied_arrays(params)
  count = max(params.b.ndim - 1, 0)  # of leading axes
  if len({x.shape[:count] for x in params}) > 1:
    shapes = ", ".join(f"{k} {x.shape}" for k, x in params._asdict().items())
    raise ValueError(
      f"all params must have the same leading axes, got {shapes}"
    )
  check_fit(
    jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape[count:], x.dtype), params
    )
  )
  # Donating the result to a step must not delete the caller's arrays.
  params = jax.tree.map(jnp.array, params)
  gates, biased = LAYERS[cell]
  layers: dict[str, Any] = {}
  for part, w in (("i", params.w_x), ("h", params.w_h)):
    kernels = jnp.split(w, len(gates), axis=-1)
    for gate, kernel in zip(gates, kernels, strict=True):
      layers[part + gate] = {"kernel": kernel}
  biases = jnp.split(params.b, len(gates), axis=-1)
  biases += [params.b_n] if cell is gru else []
  for name, b in zip(biased, biases, strict=True):
    layers[name]["bias"] = b
  return layers


def _check_kind(params: Any) -> Cell:
  """Return the cell of params; raise ValueError unless Flax has it."""
  cell: Any = CELL_OF_PARAMS.get(type(params))
  if cell not in LAYERS:
    kind = type(params).__name__
    raise ValueError(f"expected the params of lstm, gru or rnn, got {kind}")
  return cell


def from_nnx(module: Any) -> tuple[Cell[Any, Any], Params]:
  """Return our cell and the params equal to an nnx cell's weights.

  Without `jax_enable_x64`, float64 becomes float32.

  Args:
    module: an nnx.LSTMCell, OptimizedLSTMCell, GRUCell or SimpleCell. All
      weights may have the same further leading axes, such as those of a cell
      made by nnx.vmap.

  Raises:
    ValueError: module is not such a cell, has other activations, a residual
      connection or other layers, or has no weights (`nnx.eval_shape`).
  """
  cell, variables = _variables(module)
  w_x, w_h, b = (_side_by_side(_values(parts)) for parts in variables)
  # nnx.GRUCell has no bias b_n.
  more = (jnp.zeros(w_h.shape[:-1], b.dtype),) if cell is gru else ()
  return cell, PARAMS[cell](w_x, w_h, b, *more)


def to_nnx(params: Params, module: Any) -> None:
  """Write params into the weights of an existing nnx cell, in place.

  They are cast to the dtypes of the module's weights.

  Args:
    params: of `lstm`, `gru` or `rnn`. The b_n of a `gru` is compared with 0, so
      it cannot be traced (`jax.jit`).
    module: an nnx cell of the same kind and sizes.

  Raises:
    ValueError: the module is of another kind or size, or computes something
      else or has no weights, as in `from_nnx`; or params.b_n is not 0.
      The module is then unchanged.
  """
  cell, variables = _variables(module)
  name = type(module).__name__
  if _check_kind(params) is not cell:
    raise ValueError(f"{name} cannot hold {type(params).__name__}")
  params = copied_arrays(params)
  if cell is gru and params.b_n.any():
    raise ValueError("params.b_n must be 0: nnx.GRUCell has no such bias")
  weights: list[tuple[Any, jax.Array]] = []
  for field, parts in zip(("w_x", "w_h", "b"), variables, strict=True):
    leaf, like = getattr(params, field), _values(parts)[0]
    shape = (*like.shape[:-1], like.shape[-1] * len(parts))
    if leaf.shape != shape:
      shapes = f"{shape}, got {leaf.shape}"
      raise ValueError(f"{field} of this {name} must be {shapes}")
    weights += zip(parts, jnp.split(leaf, len(parts), axis=-1), strict=True)
  if cell is gru:
    check_shape("params.b_n", params.b_n, *params.w_h.shape[:-1])
  for part, value in weights:
    part[...] = value.astype(part[...].dtype)


def _values(parts: Sequence[Any]) -> list[jax.Array]:
  """Return the values of variables; raise ValueError if they have none."""
  try:
    return [part[...] for part in parts]
  except TypeError:  # a ShapeDtypeStruct has no elements
    raise ValueError(
      "the module's weights must be arrays, got only their shapes, as those of "
      "nnx.eval_shape"
    ) from None


def _variables(module: Any) -> tuple[Cell, tuple[list, list, list]]:
  """Return our cell for an nnx module, and its variables of w_x, w_h and b.

  Each of the three is a list of variables, to be concatenated along the gates.
  """
  cell, layers = nnx_layers(module)
  if equivalent_cell(module) is None:
    raise ValueError(
      f"this {type(module).__name__} computes something else than our cell: it "
      "must be Flax's own class with Flax's sigmoid and tanh, plain Linear "
      "layers and no residual connection"
    )
  return cell, (
    [linear.kernel for linear in layers.inputs],
    [linear.kernel for linear in layers.hidden],
    [linear.bias for linear in layers.biased],
  )
