"""Convert the weights of one layer and direction to ONNX's tensors, and back.

ONNX stores the transposed weights of one direction as

  W [G·H, D]    w_xᵀ          B [2·G·H]   two biases: those of W, then those
  R [G·H, H]    w_hᵀ                      of R
  P [3·H]       peepholes i, o, f

for D inputs, H hidden units and ONNX's G gates, which are in its own order:

  cell              ours          ONNX          operator
  lstm              i, f, g, o    i, o, f, c    LSTM
  peephole_lstm     i, f, g, o    i, o, f, c    LSTM with P
  coupled_lstm      f, g, o       i, o, f, c    LSTM with input_forget=1
  gru               r, z, n       z, r, h       GRU with linear_before_reset=1
  gru_reset_before  r, z, n       z, r, h       GRU
  rnn               a             i             RNN

ONNX's c and h are our g and n. Our b is written as the biases of W. The biases
of R are 0, except for that of h in a `gru`: it is b_n, which the reset gate
multiplies.

The specification does not say which gate input_forget=1 computes from the
other. onnxruntime has f = 1 − i, and ignores the rows of f. Since 1 − σ(a) =
σ(−a), the rows of our f are minus those of i. `to_tensors` writes the rows of
both, so that every reading of the attribute computes the same.

Reference: the operators LSTM, GRU and RNN of ONNX's opsets 14 and 22.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax.cells import (
  coupled_lstm,
  gru,
  gru_reset_before,
  lstm,
  peephole_lstm,
  rnn,
)
from lstm_jax.cells.cell import Cell, Params
from lstm_jax.cells.properties import cell_name
from lstm_jax.cells.weight_checks import check_params, check_weights, parts_of
from lstm_jax.interop.onnx.activations import base_cell
from lstm_jax.interop.tensors import Array


class Operator(NamedTuple):
  """How an operator of ONNX computes a cell."""

  op_type: str
  attributes: dict[str, int]
  gates: str  # of our cell, in its order
  params: Callable[..., Params]  # the type of the cell's params


OPERATORS: dict[Cell, Operator] = {
  lstm: Operator("LSTM", {}, "ifgo", lstm.LSTMParams),
  peephole_lstm: Operator("LSTM", {}, "ifgo", peephole_lstm.PeepholeLSTMParams),
  coupled_lstm: Operator(
    "LSTM", {"input_forget": 1}, "fgo", coupled_lstm.CoupledLSTMParams
  ),
  gru: Operator("GRU", {"linear_before_reset": 1}, "rzn", gru.GRUParams),
  gru_reset_before: Operator(
    "GRU", {}, "rzn", gru_reset_before.ResetBeforeGRUParams
  ),
  rnn: Operator("RNN", {}, "a", rnn.RNNParams),
}
# The gates of ONNX's operators, in its order and in our letters: g, n for c, h.
GATES = {"LSTM": "iofg", "GRU": "zrn", "RNN": "a"}


def operator(cell: Cell) -> Operator:
  """Return the ONNX operator of a cell, whatever its activations.

  Raises:
    ValueError: ONNX has none.
  """
  base = base_cell(cell)
  try:
    found = base in OPERATORS
  except TypeError:  # not hashable, such as weights in place of a cell
    found = False
  if not found:
    known = ", ".join(map(cell_name, OPERATORS))
    raise ValueError(
      f"ONNX has no operator for the cell {cell_name(cell)}, only for {known}"
    )
  return OPERATORS[base]


def to_tensors(cell: Cell, params: Params) -> dict[str, np.ndarray]:
  """Return W, R, B and, with peepholes, P of one direction.

  Args:
    cell: one of `OPERATORS`, with any activations.
    params: its weights, all in float32 or all in float64.

  Raises:
    ValueError: ONNX has no operator for the cell; or params are of another
      cell, do not fit each other, or are not all float32 or all float64.
  """
  form = operator(cell)
  cell = base_cell(cell)
  check_params(cell.project, params)
  check_weights(parts_of(cell), params)
  arrays: Any = type(params)(*map(np.asarray, params))
  for field, array in zip(arrays._fields, arrays, strict=True):
    if array.dtype not in (np.float32, np.float64):
      raise ValueError(
        f"params.{field} must be float32 or float64, got {array.dtype}"
      )
    if array.dtype != arrays[0].dtype:
      raise ValueError(
        f"params.{field} must be {arrays[0].dtype}, as params."
        f"{arrays._fields[0]}, got {array.dtype}"
      )

  def reordered(x: np.ndarray) -> np.ndarray:
    """Return [..., G·H] in ONNX's order for our array [..., gates·H]."""
    parts = np.split(x, len(form.gates), axis=-1)
    gates = dict(zip(form.gates, parts, strict=True))
    if cell is coupled_lstm:
      gates["i"] = -gates["f"]
    return np.concatenate([gates[g] for g in GATES[form.op_type]], axis=-1)

  w_b = reordered(arrays.b)
  r_b = np.zeros_like(w_b)
  if cell is gru:
    r_b[-len(arrays.b_n) :] = arrays.b_n
  tensors = {
    "W": reordered(arrays.w_x).T,
    "R": reordered(arrays.w_h).T,
    "B": np.concatenate([w_b, r_b]),
  }
  if cell is peephole_lstm:
    i, f, o = np.split(arrays.w_c, 3)
    tensors["P"] = np.concatenate([i, o, f])
  return tensors


def from_tensors(cell: Cell, tensors: Mapping[str, Array]) -> Params:
  """Return the params of one direction, the inverse of `to_tensors`.

  Args:
    cell: one of `OPERATORS`, with any activations.
    tensors: W [G·H, D], R [G·H, H], B [2·G·H], and P [3·H] for
      `peephole_lstm`, of shapes that fit each other. JAX may trace them.

  Raises:
    ValueError: ONNX has no operator for the cell.
  """
  form = operator(cell)
  cell = base_cell(cell)
  in_jax = any(isinstance(x, jax.Array) for x in tensors.values())
  numpy: Any = jnp if in_jax else np  # NumPy keeps float64

  def reordered(x: Array) -> Array:
    """Return [..., gates·H] in our order for ONNX's array [..., G·H]."""
    letters = GATES[form.op_type]
    parts = numpy.split(x, len(letters), axis=-1)
    gates = dict(zip(letters, parts, strict=True))
    if cell is coupled_lstm:
      gates["f"] = -gates["i"]  # whatever the rows of ONNX's f
    return numpy.concatenate([gates[g] for g in form.gates], axis=-1)

  w_b, r_b = numpy.split(tensors["B"], 2)
  more: tuple[Array, ...] = ()
  if cell is gru:  # the candidate keeps both biases
    cut = 2 * len(r_b) // 3
    more = (r_b[cut:],)
    r_b = numpy.concatenate([r_b[:cut], numpy.zeros_like(r_b[cut:])])
  elif cell is peephole_lstm:
    i, o, f = numpy.split(tensors["P"], 3)
    more = (numpy.concatenate([i, f, o]),)
  w_x, w_h = reordered(tensors["W"].T), reordered(tensors["R"].T)
  return form.params(w_x, w_h, reordered(w_b + r_b), *more)
