"""Weights to and from the cells of Equinox, eqx.nn.LSTMCell and GRUCell.

Equinox stores the transposed weights, with the gates in the same order:

  weight_ih [G·H, D]   w_xᵀ      LSTMCell: G = 4, the gates i, f, g, o
  weight_hh [G·H, H]   w_hᵀ      GRUCell: G = 3, the gates r, z, n
  bias [G·H]           b
  bias_n [H]           b_n, of a GRUCell

The biases of a cell with use_bias=False are 0. `to_equinox` imports Equinox;
`from_equinox` only reads attributes and does not import it.

Source: `equinox/nn/_rnn.py` of Equinox 0.13.8.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax.cells import gru, lstm
from lstm_jax.cells.cell import Cell, Params
from lstm_jax.cells.checks import check_shape
from lstm_jax.interop.tensors import (
  Array,
  as_array,
  check_fit,
  check_no_bias,
  copied_arrays,
)

ATTRIBUTES = "weight_ih", "weight_hh", "bias", "use_bias"  # of both cells


def from_equinox(module: Any) -> tuple[Cell[Any, Any], Params]:
  """Return the cell and the params that compute the same as an Equinox cell.

  Without `jax_enable_x64`, float64 becomes float32.

  Args:
    module: an eqx.nn.LSTMCell or GRUCell, or gradients of one. A subclass is
      accepted too: its equations are not checked.

  Raises:
    ValueError: module is another object; or an array is missing, has a shape
      that does not fit the others, or holds no floats.
  """
  if not all(hasattr(module, name) for name in ATTRIBUTES):
    raise ValueError(
      "expected an LSTMCell or GRUCell of Equinox, "
      f"got {type(module).__module__}.{type(module).__name__}"
    )
  is_gru = hasattr(module, "bias_n")
  gates = 3 if is_gru else 4

  def read(name: str) -> Array:
    if getattr(module, name) is None:
      raise ValueError(f"{name} is missing")
    return as_array(name, getattr(module, name))

  w_h = check_shape("weight_hh", read("weight_hh"), "any", "any")
  rows, hidden = w_h.shape
  if rows != gates * hidden:
    raise ValueError(
      f"weight_hh of this {type(module).__name__} must be [{gates}H, H], "
      f"got {w_h.shape}"
    )
  w_x = check_shape("weight_ih", read("weight_ih"), rows, "any")
  biases = {"bias": rows, "bias_n": hidden} if is_gru else {"bias": rows}
  weights = [w_x.T, w_h.T]
  for name, size in biases.items():
    if module.use_bias:
      weights.append(check_shape(name, read(name), size))
    else:
      weights.append(np.zeros(size, w_x.dtype))
  copies = map(jnp.array, weights)
  if is_gru:
    return gru, gru.GRUParams(*copies)
  return lstm, lstm.LSTMParams(*copies)


def to_equinox(params: Params, *, bias: bool = True) -> Any:
  """Return an Equinox cell with these weights.

  Without `jax_enable_x64`, NumPy's float64 becomes float32.

  Args:
    params: of `lstm` or `gru`, or their gradients.
    bias: the cell's use_bias. If False, the biases of params are compared with
      0, so they cannot be traced (`jax.jit`).

  Raises:
    ValueError: the params are of a cell that Equinox does not have, or do not
      fit each other; or bias is False, and a bias is traced or not 0.
    ModuleNotFoundError: Equinox is not installed.
  """
  if not isinstance(params, (lstm.LSTMParams, gru.GRUParams)):
    raise ValueError(f"Equinox has no cell with {type(params).__name__}")
  check_fit(params)
  params = copied_arrays(params)
  arrays = {"weight_ih": params.w_x.T, "weight_hh": params.w_h.T}
  biases = {"bias": params.b}
  if isinstance(params, gru.GRUParams):
    biases["bias_n"] = params.b_n
  if bias:
    arrays |= biases
  else:
    for name, x in biases.items():
      field = name.replace("bias", "b")
      if isinstance(x, jax.core.Tracer):
        raise ValueError(f"{field} must not be traced with bias=False")
      check_no_bias(field, x)

  import equinox as eqx

  kind = eqx.nn.GRUCell if "bias_n" in biases else eqx.nn.LSTMCell
  input_size, hidden_size = params.w_x.shape[0], params.w_h.shape[0]
  shapes = eqx.filter_eval_shape(
    kind, input_size, hidden_size, use_bias=bias, key=jax.random.key(0)
  )
  return jax.tree_util.tree_map_with_path(
    lambda path, _: jnp.array(arrays[path[0].name]),  # a copy
    shapes,
  )
